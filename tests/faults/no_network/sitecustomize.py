"""No process of a test may reach for another machine: an audit hook notes it and refuses it, in
child processes too.

Python imports a module of this name at its start, from this folder, which conftest.py puts first on
PYTHONPATH, and imports itself by its whole name. What it does not see: programs that are not
Python; Python that is told to forget its environment (-I, -E, -S) or is given another one; and
sockets that a library opens without Python, such as those where torch's processes meet, on this
machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

# names the file in which every process of a test notes what it reached for
REPORT = "RDFIA_TEST_REACHED"
# who connects to these stays here
NAMES = ("", "localhost", "::", "::1", "0.0.0.0", os.uname().nodename)
# Which argument says where to: an address, or a name that is looked up. connect_ex is a connect
# here.
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
    """Not an Exception: what handles a network that is not there shall not handle this."""


class Guard:
    """What the hook goes by; it cannot be taken away, so it asks whether it is `on`."""

    on = installed = False
    report = ""
    error: type[BaseException] = Reached


def hook(event: str, arguments: tuple[object, ...]) -> None:
    # it is called for whatever Python does: most of all it has to be fast
    place = PLACES.get(event)
    if place is None or not GUARD.on:
        return
    host = arguments[place]
    if isinstance(host, tuple):
        host = host[0]
    elif place:
        return  # a path, or none: where it is connected to
    if isinstance(host, bytes | bytearray):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or local(host):  # other families than the internet's have numbers
        return
    what = f"{event} {host!r}"
    with open(GUARD.report, "a") as stream:
        stream.write(f"{what}\n")
    raise GUARD.error(
        f"the test reached for another machine ({what}): tests need no network; serve it on loopback "
        "(tests/support/loopback.py)"
    )


def local(host: str) -> bool:
    """Is this a name or an address of this machine, as far as that is known without asking anybody?"""
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
    """Watches this process as long as this lasts; inside another one, that one goes on afterwards."""
    before = (GUARD.report, GUARD.error, GUARD.on)
    watch(report, error)
    try:
        yield
    finally:
        GUARD.report, GUARD.error, GUARD.on = before


def hand_over() -> None:
    """Imports the module of this name that would have been found without this folder, if there is
    one.
    """
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
