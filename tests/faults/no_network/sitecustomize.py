"""An audit hook that stops a test, and its child processes, from reaching another machine.

Python imports a module of this name at its start. conftest.py puts this folder first on PYTHONPATH,
and imports the module by its full name. The hook does not see programs that are not Python, a
Python that ignores its environment (-I, -E, -S) or gets another one, and sockets that a library
opens without Python, such as those between torch's processes on this machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

# Names the file in which every process of a test records its attempts.
REPORT = "RDFIA_TEST_REACHED"
# Hosts that are this machine.
NAMES = ("", "localhost", "::", "::1", "0.0.0.0", os.uname().nodename)
# Event -> index of the argument with the address, or with the name to look up. connect_ex raises
# the event connect.
EVENTS = {
    "connect": 1,
    "sendto": 1,
    "sendmsg": 1,
    "getaddrinfo": 0,
    "gethostbyname": 0,
    "gethostbyaddr": 0,
    "getnameinfo": 0,
}
PLACES = {f"socket.{name}": place for name, place in EVENTS.items()}


class Reached(BaseException):
    """Not an Exception, so that code which handles a missing network does not catch it."""


class Guard:
    """The state of the hook, which cannot be removed: it only acts while this is `on`."""

    on = installed = False
    report = ""
    error: type[BaseException] = Reached


def hook(event: str, arguments: tuple[object, ...]) -> None:
    # Python calls it for every event, so it has to be fast.
    place = PLACES.get(event)
    if place is None or not GUARD.on:
        return
    host = arguments[place]
    if isinstance(host, tuple):
        host = host[0]
    elif place:
        return  # a path, or no address
    if isinstance(host, bytes | bytearray):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or local(host):  # addresses of other families are numbers
        return
    what = f"{event} {host!r}"
    with open(GUARD.report, "a") as stream:
        stream.write(f"{what}\n")
    raise GUARD.error(
        f"the test reached for another machine ({what}): tests need no network; "
        "serve it on loopback (tests/support/loopback.py)"
    )


def local(host: str) -> bool:
    """Whether `host` is a name or address of this machine, as far as is known without a lookup."""
    host = host.lower().partition("%")[0].removeprefix("::ffff:")
    numbers = host.startswith("127.") and host.replace(".", "").isdigit()
    return numbers or host in NAMES or host.startswith(f"{NAMES[-1].lower()}.")


GUARD = Guard()


def watch(report: str, error: type[BaseException]) -> None:
    GUARD.report, GUARD.error, GUARD.on = report, error, True
    if not GUARD.installed:
        sys.addaudithook(hook)
        GUARD.installed = True


@contextlib.contextmanager
def guarding(report: str, error: type[BaseException]) -> Iterator[None]:
    """Watches this process inside the context; afterwards an outer context continues."""
    before = (GUARD.report, GUARD.error, GUARD.on)
    watch(report, error)
    try:
        yield
    finally:
        GUARD.report, GUARD.error, GUARD.on = before


def hand_over() -> None:
    """Imports the module of this name that Python would find without this folder, if any."""
    here = os.path.dirname(os.path.abspath(__file__))
    mine, path = sys.modules.pop(__name__), sys.path[:]
    sys.path[:] = [folder for folder in path if os.path.abspath(folder) != here]
    try:
        __import__(__name__)
    except ModuleNotFoundError:
        sys.modules[__name__] = mine
    finally:
        sys.path[:] = path


if __name__ == "sitecustomize":
    if os.environ.get(REPORT):
        watch(os.environ[REPORT], Reached)
    hand_over()
