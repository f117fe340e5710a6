"""The network guard: tests of a small project try each way to another machine, and must fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.no_network import sitecustomize

ROOT = Path(__file__).parents[2]
FAR = "192.0.2.1"  # reserved for documentation: no machine has this address
WAYS = {
    "connect": f"tcp.connect(('{FAR}', 9))",
    "connect_ex": f"tcp.connect_ex(('{FAR}', 9))",
    "six": "six.connect(('2001:db8::1', 9))",
    "sendto": f"udp.sendto(b'x', ('{FAR}', 9))",
    "sendmsg": f"udp.sendmsg([b'x'], [], 0, ('{FAR}', 9))",
    "name": "socket.getaddrinfo('example.invalid', 80)",
    "bytes": "socket.getaddrinfo(b'example.invalid', 80)",
    "old name": "socket.gethostbyname('example.invalid')",
    "reverse": f"socket.gethostbyaddr('{FAR}')",
    "url": "urllib.request.urlopen('http://example.invalid/')",
    "almost loopback": "socket.getaddrinfo('127.example.invalid', 80)",
}
SOCKETS = """
@pytest.fixture
def sockets():
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            yield {"tcp": tcp, "udp": udp, "six": six}
"""
LOOPBACK = """
def test_here(sockets):
    tcp, udp, six = sockets.values()
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("127.0.0.1", "localhost", "::ffff:127.0.0.1", None):
            socket.getaddrinfo(name, 80)
        socket.create_connection(server.getsockname()).close()
        assert tcp.connect_ex(server.getsockname()) == 0
    socket.gethostbyname(socket.gethostname())
    udp.sendto(b"x", ("127.0.0.1", 9))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("here")
        server.listen()
        client.connect("here")
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, two:
        one.sendmsg([b"x"])
    code = "import socket; socket.getaddrinfo('localhost', 80)"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_after():
    pass
"""
HEAD = (
    "import contextlib, os, pytest, socket, subprocess, sys, threading, urllib.request, warnings\n"
)
HANDLED = """
def test_handled():
    with contextlib.suppress(BaseException):
        socket.getaddrinfo("example.invalid", 80)

def test_thread():
    thread = threading.Thread(target=reach)
    thread.start()
    thread.join()

def reach():
    try:
        socket.getaddrinfo("example.invalid", 80)
    except BaseException:
        pass

def test_child():
    subprocess.run([sys.executable, "-c", CODE], stderr=subprocess.DEVNULL)

def test_grandchild():
    run = f"subprocess.run([sys.executable, '-c', {CODE!r}], stderr=subprocess.DEVNULL)"
    subprocess.run([sys.executable, "-c", f"import subprocess, sys; {run}"])

def test_fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later Pythons warn if there are threads
        child = os.fork()
    if not child:
        reach()
        os._exit(0)
    os.waitpid(child, 0)

CODE = '''
import socket
try:
    socket.getaddrinfo("example.invalid", 80)
except Exception:
    print("handled")
'''
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((ROOT / "conftest.py").read_text("utf-8"))
    pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text("utf-8"))
    (pytester.path / "tests" / "unit").mkdir(parents=True)
    return pytester


def run(project: pytest.Pytester, text: str) -> pytest.RunResult:
    (project.path / "tests" / "unit" / "test_reaching.py").write_text(HEAD + SOCKETS + text)
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly", "tests/unit")


def test_every_network_call_fails_its_test(project: pytest.Pytester) -> None:
    cases = "\n".join(f"    pytest.param({code!r}, id={name!r})," for name, code in WAYS.items())
    test = "def test_way(code, sockets):\n    exec(code, globals(), sockets)\n"
    result = run(project, f"@pytest.mark.parametrize('code', [\n{cases}\n])\n{test}")
    result.assert_outcomes(failed=len(WAYS), errors=len(WAYS))  # at the call, and at the end
    result.stdout.fnmatch_lines([f"*another machine (socket.connect '{FAR}')*"])


def test_handled_errors_threads_and_child_processes_fail_the_test_too(
    project: pytest.Pytester,
) -> None:
    result = run(project, HANDLED)
    result.assert_outcomes(passed=5, errors=5)
    result.stdout.fnmatch_lines(
        ["*contacted another machine: socket.getaddrinfo 'example.invalid'*"]
    )


def test_loopback_is_allowed(project: pytest.Pytester) -> None:
    result = run(project, LOOPBACK)
    result.assert_outcomes(passed=2)


def test_guard_is_on_during_a_test_only() -> None:
    assert sitecustomize.GUARD.on
    with sitecustomize.guarding("nowhere", KeyError):
        assert sitecustomize.GUARD.report == "nowhere"
    assert sitecustomize.GUARD.report not in ("", "nowhere")


def test_child_process_keeps_its_own_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.customized = True\n")
    path = f"{Path(sitecustomize.__file__).parent}{os.pathsep}{tmp_path}"
    code = "import sys; print(customized, sys.modules['sitecustomize'].__file__)"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", str(tmp_path / "sitecustomize.py")]
