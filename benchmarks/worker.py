"""A process that runs workloads on the package of the tree that it was started in, on request.

    python -m benchmarks.worker DEVICE

Two of them, in two trees, let one commit be timed against another call by call. Requests and
answers are lines of JSON on standard input and output; everything else is printed to the error
stream.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
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
    """The client's side of a worker process in `tree`; use it in a `with`, or close it.

    `calm`: with CALM_ENVIRONMENT.
    """

    def __init__(self, tree: Path, device: str = "cpu", calm: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", device],
            cwd=tree,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(CALM_ENVIRONMENT if calm else {})},
        )

    @functools.cached_property
    def greeting(self) -> Json:
        """Names of the gate's `rows`, number of `threads`; WorkerError where it cannot start."""
        try:
            return self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> Json:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise WorkerError(
                f"the worker ended (exit status {self.process.wait()}); see its message above"
            )
        answer: Json = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, request: str, **values: Any) -> Any:
        """The answer to a request, which is a method of `Server`. WorkerError: it failed."""
        if self.process.stdin is None or not self.greeting:
            raise WorkerError("the worker has no input")
        self.process.stdin.write(json.dumps({"request": request, **values}) + "\n")
        self.process.stdin.flush()
        return self._read()["answer"]

    def sample(self, name: str = "") -> float:
        """Seconds of a call, after a rest: of a variant, or of the gate's last workload."""
        time.sleep(REST)
        return float(self.ask("sample", name=name))

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def modules_from_elsewhere(tree: Path) -> list[str]:
    """Modules of rdfia and benchmarks that were not loaded from `tree`, with their files.

    Python takes them from an installed package where a tree lacks the file.
    """
    found = []
    for name, module in sys.modules.items():
        if name.split(".")[0] in ("rdfia", "benchmarks"):
            file = Path(getattr(module, "__file__", None) or tree).resolve()
            if not file.is_relative_to(tree.resolve()):
                found.append(f"{name} from {file}")
    return found


def require_modules_of(tree: Path) -> None:
    """Raises ImportError where a time would be of other code than the tree's."""
    if wrong := modules_from_elsewhere(tree):
        raise ImportError(f"it has no {wrong[0]} (another tree's, as {len(wrong)} in all)")


def _slowed(call: Callable[[], Any], share: float) -> Callable[[], Any]:
    """`call`, then busy waiting for `share` of its time: a planted slowdown."""
    if not share:
        return call

    def slowed() -> Any:
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        while time.perf_counter() < end + share * (end - start):
            pass
        return result

    return slowed


class Server:
    """The worker's side: each public method is a request, with the values of its JSON object."""

    def __init__(self, device: str) -> None:
        from benchmarks import references, sampling, variants, workloads

        self.device, self.workloads, self.variants = device, workloads, variants
        self.sampling, self.references = sampling, references
        self.samplers: list[sampling.Sampler] = []  # ours and, where asked for, the reference's
        self.made: dict[str, variants.Variant] = {}

    def make(
        self, row: str, slowdown: float = 0.0, with_reference: bool = False, repeats: int = 0
    ) -> int:
        """Makes a workload of the gate, or "control"; returns how many calls a sample has.

        `slowdown`: planted, as a share of the time. `with_reference`: the frozen reference too.
        """
        self.samplers.clear()
        gc.collect()
        if row == "control":
            ours, reference = (self.references.control(self.device) for _ in range(2))
        else:
            workload = self.workloads.GATE[row]
            ours, reference = workload.make(self.device)
            agree = self.workloads.results_agree(ours(), reference(), workload.tolerance)
            if not agree:
                raise ValueError("the result differs from the reference's, so it is not timed")
        timed = self.sampling.synchronised(_slowed(ours, slowdown), self.device)
        self.samplers.append(self.sampling.Sampler(timed, repeats=repeats))
        if with_reference:
            timed = self.sampling.synchronised(reference, self.device)
            self.samplers.append(self.sampling.Sampler(timed))
        require_modules_of(Path.cwd())
        return self.samplers[0].repeats

    def sample(self, name: str) -> float:
        """Seconds of a call of a variant, or of the gate's workload ("")."""
        return self.made[name].sample() if name else self.samplers[0]()

    def pairs(self, n: int) -> list[list[float]]:
        """Seconds of `n` pairs, ours and the frozen reference."""
        ours, reference = self.samplers
        return [side.tolist() for side in self.sampling.interleave(ours, reference, n)]

    def make_variant(self, workload: str, name: str, dtype: str, result: str) -> float:
        """Makes a side of a peer's workload; returns the seconds of its first call."""
        peer = self.workloads.PEERS[workload]
        self.made[name] = self.variants.Variant(peer, self.device, name, dtype)
        return self.made[name].first_call(result)

    def drop_variant(self, name: str) -> None:
        del self.made[name]

    def operations(self, name: str) -> int:
        return self.made[name].operations()


def serve(device: str) -> None:
    """Answers requests until the input ends. Answers keep standard output for themselves."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(value: Json) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        import torch

        # First a module without torchvision, whose import may need operators that rdfia declares.
        importlib.import_module("rdfia.transfer.svm")
        require_modules_of(Path.cwd())
        server = Server(device)
        require_modules_of(Path.cwd())
    except ImportError as error:  # these benchmarks are newer than the package of this tree
        send({"error": f"the package of this tree cannot be timed by these benchmarks: {error}"})
        return
    settings = contextlib.ExitStack()
    if (
        device != "cpu"
    ):  # the peers too, whose convolutions would be TF32 with_reference our float32
        from rdfia.device.precision import product_precision

        settings.enter_context(product_precision(device))
    send({"rows": list(server.workloads.GATE), "threads": torch.get_num_threads()})
    gc.disable()  # it runs before a workload is made, and not while samples are taken
    for line in sys.stdin:
        asked = json.loads(line)
        request = asked.pop("request")
        try:
            send({"answer": getattr(server, request)(**asked)})
        except Exception as error:
            subject = asked.get("row") or asked.get("workload") or request
            send({"error": f"{subject}: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "cpu")
