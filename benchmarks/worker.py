"""A process that runs workloads on the package of the tree that it was started in, on request.

Two of them, in two trees, let one commit be timed against another call by call.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Json = dict[str, Any]

REST = 0.01  # seconds before a sample of another process: OpenMP's threads stop waiting in a loop
# What differs from process to process without a change of ours: numpy's threads wait in a loop for
# torch's to leave the cores, and the other way round (6 to 90 ms for the same SVM); memory that is
# returned to the system is cleared again.
CALM_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


class WorkerError(Exception):
    """A workload could not be made or run; the message is the worker's own."""


class Worker:
    """The client's side of a worker process in `tree`; use it in a `with`.

    `calm`: with CALM_ENVIRONMENT.
    """

    def __init__(self, tree: Path, device: str = "cpu", calm: bool = False) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", device, str(theirs.fileno())],
                cwd=tree,
                stdout=2,  # the error stream
                pass_fds=[theirs.fileno()],
                env={**os.environ, **(CALM_ENVIRONMENT if calm else {})},
            )

    @functools.cached_property
    def threads(self) -> int:
        """Number of torch's threads; WorkerError where the worker cannot start."""
        return int(self._answer())

    def _answer(self) -> Any:
        try:
            answer, error = self.connection.recv()
        except (EOFError, ConnectionError):
            raise WorkerError(
                f"the worker ended (exit status {self.process.wait()}); see its message above"
            ) from None
        if error:
            raise WorkerError(error)
        return answer

    def ask(self, request: str, **values: Any) -> Any:
        """The answer to a request, which is a method of `variants.Server`.

        WorkerError: it failed, or the worker cannot start.
        """
        _ = self.threads  # a worker's first answer, also after an error
        self.connection.send((request, values))
        return self._answer()

    def sample(self, name: str = "ours") -> float:
        """Seconds of a call of a side, after a rest."""
        time.sleep(REST)
        return float(self.ask("sample", name=name))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def require_modules_of(tree: Path) -> None:
    """Raises ImportError where a module of rdfia or benchmarks was not loaded from `tree`.

    Python takes it from an installed package where the tree lacks the file; a time would be of
    other code.
    """
    for name, module in sys.modules.items():
        if name.split(".")[0] in ("rdfia", "benchmarks"):
            file = Path(getattr(module, "__file__", None) or tree).resolve()
            if not file.is_relative_to(tree.resolve()):
                raise ImportError(f"it has no {name}: Python took that of {file}")


def serve(device: str, connection: Connection) -> None:
    """Answers requests with (answer, error) until the connection ends."""
    try:
        # First a module without torchvision, whose import may need operators that rdfia declares.
        importlib.import_module("rdfia.transfer.svm")
        require_modules_of(Path.cwd())
        from benchmarks import variants
        from rdfia.device.precision import product_precision

        require_modules_of(Path.cwd())
    except ImportError as error:  # these benchmarks are newer than the package of this tree
        reason = f"the package of this tree cannot be timed by these benchmarks: {error}"
        connection.send((None, reason))
        return
    server = variants.Server(device)
    gc.disable()  # it runs before a workload is made, and not while samples are taken
    # the peers too, whose convolutions would be TF32 beside our float32
    with product_precision(device):
        connection.send((server.threads, ""))
        while True:
            try:
                request, values = connection.recv()
            except EOFError:
                return
            try:
                answer = getattr(server, request)(**values)
                if request == "make":
                    require_modules_of(Path.cwd())
                connection.send((answer, ""))
            except Exception as error:
                subject = values.get("row") or values.get("workload") or request
                connection.send((None, f"{subject}: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve(sys.argv[1], Connection(int(sys.argv[2])))
