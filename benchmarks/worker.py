"""A process that runs the gate's rows on the package of the tree it was started in, on request.

    python -m benchmarks.worker DEVICE

Two of them, in two trees, let one commit be timed against another call by call. Requests and
answers are lines of JSON on standard input and output; whatever else prints goes to the error
stream.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class WorkerError(Exception):
    """A row could not be made or run; the message is the worker's own."""


# What differs from process to process, and is none of ours: numpy's threads wait in a loop for
# torch's to leave the cores, and the other way round (6 to 90 ms for the same SVM); memory that
# goes back to the system is cleared anew.
CALM = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


class Worker:
    """The other end: a worker in `tree`, to be closed; usable in a `with`. `calm` adds CALM to its
    environment.
    """

    def __init__(self, tree: Path, device: str = "cpu", calm: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", device],
            cwd=tree,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(CALM if calm else {})},
        )

    @functools.cached_property
    def hello(self) -> Json:
        """The names of its `rows`, and its `threads`; read before anything is asked."""
        try:
            return self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> Json:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise WorkerError(
                f"the worker ended (exit status {self.process.wait()}); its message stands above"
            )
        answer: Json = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, what: str, **values: Any) -> Any:
        """The answer to a request of `serve`."""
        if self.process.stdin is None or not self.hello:
            raise WorkerError("the worker has no input")
        self.process.stdin.write(json.dumps({"what": what, **values}) + "\n")
        self.process.stdin.flush()
        return self._read()["answer"]

    def sample(self, rest: float = 0.0) -> float:
        """Seconds of a call of the row that was made last, after `rest` seconds.

        In them the threads of the process that ran before stop waiting in a loop for more work
        (OpenMP's habit).
        """
        time.sleep(rest)
        return float(self.ask("sample"))

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def strangers(tree: Path) -> list[str]:
    """Modules of ours that were not loaded from `tree`: an installed package fills in for a file
    that a tree lacks.
    """
    ours = {
        name: module
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("rdfia", "benchmarks")
    }
    files = {
        name: Path(getattr(module, "__file__", None) or tree).resolve()
        for name, module in ours.items()
    }
    return [
        f"{name} from {file}"
        for name, file in files.items()
        if not file.is_relative_to(tree.resolve())
    ]


def require_modules_of(tree: Path) -> None:
    """ImportError: modules of ours were loaded from elsewhere, so that a time would be of other
    code than the tree's.
    """
    if wrong := strangers(tree):
        raise ImportError(f"it has no {wrong[0]} (another tree's, as {len(wrong)} in all)")


def _slowed(call: Callable[[], Any], share: float) -> Callable[[], Any]:
    """`call`, followed by busy waiting for `share` of its own time: a planted slowdown."""
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


def case_named(name: str) -> Any:
    """A case of the benchmarks by its name."""
    from benchmarks import bench_tme7, bench_tme8, bench_tme9

    cases = (*bench_tme7.CASES, *bench_tme8.CASES, *bench_tme9.CASES)
    return next(case for case in cases if case.name == name)


def serve(device: str) -> None:
    """Answers `make` (says how many calls a sample has), `sample`, and `pairs`.

    What is made is a row of the gate or its control (`pairs` times it beside the frozen reference).
    A benchmark's ways are made by `case`, timed by `time`, let go by `drop`; `operations` counts.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(value: Json) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    import torch

    try:
        from benchmarks import pairs, references, ways
        from benchmarks.rows import ROWS, synchronised

        require_modules_of(Path.cwd())
    # these benchmarks are of the head, the package may be one of before a module moved
    except ImportError as error:
        tell({"error": f"the package of this tree cannot be timed by these benchmarks: {error}"})
        return
    settings = contextlib.ExitStack()
    if device != "cpu":  # the peers' too, whose convolutions would be TF32 beside our float32
        from rdfia.device.precision import product_precision

        settings.enter_context(product_precision(device))
    timed: list[pairs.Sampler] = []
    cases: dict[str, ways.Way] = {}
    tell({"rows": list(ROWS), "threads": torch.get_num_threads()})
    gc.disable()  # it rests while samples are taken, and runs before a row is made
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer: Any = None
            if asked["what"] == "case":
                cases[asked["way"]] = ways.Way(
                    case_named(asked["case"]), device, asked["way"], asked["dtype"]
                )
                answer = cases[asked["way"]].first(asked["result"])
            elif asked["what"] == "time":
                answer = cases[asked["way"]].seconds()
            elif asked["what"] == "drop":
                del cases[asked["way"]]
            elif asked["what"] == "operations":
                answer = cases[asked["way"]].operations()
            elif asked["what"] == "make":
                timed.clear()
                gc.collect()
                repeats, slow = asked.get("repeats", 0), asked.get("slowdown", 0.0)
                if asked.get("row") == "control":
                    both = [references.control(device), references.control(device)]
                else:
                    row = ROWS[asked["row"]]
                    both = list(row.make(device))
                    if not row.same(both[0](), both[1]()):
                        raise ValueError(
                            "the result is not the reference's; speed says nothing then"
                        )
                ours = pairs.Sampler(synchronised(_slowed(both[0], slow), device), repeats=repeats)
                timed.append(ours)
                if asked.get("beside"):
                    timed.append(pairs.Sampler(synchronised(both[1], device)))
                require_modules_of(Path.cwd())
                answer = ours.repeats
            elif asked["what"] == "sample":
                answer = timed[0]()
            else:
                answer = [
                    side.tolist() for side in pairs.interleave(timed[0], timed[1], asked["n"])
                ]
            tell({"answer": answer})
        except Exception as error:
            what = asked.get("row") or asked.get("case") or asked["what"]
            tell({"error": f"{what}: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "cpu")
