"""The kit for a borrowed GPU: a planted fault makes each check red and stops no other check."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from benchmarks import ROOT
from benchmarks.gpu_kit import archive, checks, gan_runs, out_of_memory, parity, parts, steps
from benchmarks.gpu_kit.__main__ import main
from benchmarks.workloads import PeerWorkload
from rdfia.errors import BatchReduced, StoreError
from rdfia.experiments import gan_studies
from tests.support.benchmark_rows import COLUMN, benchmark
from tests.support.planted_gans import Long
from tests.support.tolerances import PARITY

PYTHON = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'found.json').write_text('[1]'); "

# --- parity


def test_error_above_its_limit_does_not_hold() -> None:
    limit = PARITY["activation", "float32"].rtol
    expected = torch.linspace(1, 2, 50)
    row = parity.compared("vgg16 pool5", "float32", expected * (1 + 0.9 * limit), expected)
    assert row["holds"]
    row = parity.compared("vgg16 pool5", "float32", expected * (1 + 1.1 * limit), expected)
    assert (row["holds"], row["limit"]) == (False, limit)
    assert row["error"] == pytest.approx(1.1 * limit, rel=0.01)


@pytest.mark.parametrize(
    "wrong", [torch.full((4,), torch.nan), torch.ones(3)], ids=["NaN", "another shape"]
)
def test_result_of_another_shape_or_nan_does_not_hold(wrong: torch.Tensor) -> None:
    assert not parity.compared("gram", "tf32", wrong, torch.ones(4))["holds"]


def test_room_that_raises_is_a_row_and_the_next_room_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(device: str, _dtype: torch.dtype) -> dict[str, Any]:
        if device != "cpu":
            raise RuntimeError("expected all tensors to be on the same device")
        return {"gram": [1.0]}

    def sound(_device: str, dtype: torch.dtype) -> dict[str, Any]:
        return {"gram": torch.ones(2, dtype=dtype)}

    monkeypatch.setattr(
        parity, "ROOMS", {"planted": parity.Room(planted), "sound": parity.Room(sound)}
    )
    found = list(parity.rows("meta"))
    assert [(row["room"], row["holds"]) for row in found] == [
        ("planted", False),
        *[("sound", True)] * 3,
    ]
    assert "same device" in found[0]["note"]


def test_every_quantity_has_a_row_in_the_tolerance_table() -> None:
    for kind in (*parity.KINDS, "activation"):
        assert {(kind, "float32"), (kind, "tf32")} <= PARITY.keys()
    assert {
        parity.kind_of(name)
        for name in ("pixels", "dcgan losses, 10 steps", "smoothgrad", "vgg16 pool5")
    } == {"pixel", "training", "gradient", "activation"}


# --- steps


def attempt(folder: Path, code: str, seconds: float) -> steps.Outcome:
    step = steps.Step("planted", 1, 0, ("-c", code, "{out}"))
    return steps.run_step(step, seconds, {"out": str(folder)}, os.environ, folder / "log.txt")


@pytest.mark.parametrize(
    ("code", "state", "note"),
    [
        ("", "done", ""),
        ("sys.exit(1)", "red", "exit status 1"),
        ("print('the reason'); sys.exit(3)", "failed", "the reason"),
        ("import os; os.abort()", "failed", "exit status -6"),
        ("raise ImportError('no captum')", "red", "no captum"),
    ],
)
def test_failed_step_has_its_reason_and_keeps_its_files(
    tmp_path: Path, code: str, state: str, note: str
) -> None:
    outcome = attempt(tmp_path, WRITES + code, 60)
    assert (outcome.state, note in outcome.note) == (state, True), outcome
    assert (tmp_path / "found.json").exists()


def test_hanging_step_is_ended_with_its_child_processes(tmp_path: Path) -> None:
    code = (
        WRITES
        + """
import signal, subprocess, time
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1], "child").write_text(str(child.pid))
while True:
    time.sleep(0.1)
"""
    )
    begin = time.monotonic()
    outcome = attempt(tmp_path, code, 5.0)
    assert (outcome.state, outcome.note) == ("timed out", "last output: interrupted")
    assert time.monotonic() - begin < 20
    assert (tmp_path / "found.json").exists()
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_note_of_a_step_without_an_answer_to_ctrl_c_is_what_it_wrote_before(tmp_path: Path) -> None:
    outcome = attempt(tmp_path, "import time; print('row 7', flush=True); time.sleep(60)", 3.0)
    assert (outcome.state, outcome.note) == ("timed out", "last output: row 7")


def test_step_of_a_background_run_can_be_interrupted(tmp_path: Path) -> None:
    code = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
from benchmarks.gpu_kit import steps
steps.RESERVED = 0
step = "import time\\ntry:\\n time.sleep(60)\\nexcept KeyboardInterrupt:\\n print('it could write')"
steps.STEPS = [steps.Step("waits", 1, 0, ("-c", step))]
steps.run(Path(sys.argv[1], "no kit"), "cpu", 0.05, Path(sys.argv[1]))
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        check=True,
        env={**os.environ, **PYTHON},
    )
    (outcome,) = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert (outcome["state"], outcome["note"]) == ("timed out", "last output: it could write")


def test_run_that_is_ended_keeps_what_its_step_wrote(tmp_path: Path) -> None:
    code = f"""
import runpy
from benchmarks.gpu_kit import steps
words = ("-c", {WRITES + "import time; time.sleep(60)"!r}, "{{out}}")
steps.STEPS = [steps.Step("long", 1, 0, words)]
runpy.run_module("benchmarks.gpu_kit", run_name="__main__")
"""
    words = ["run", "--device", "cpu", "--minutes", "2", "--out", str(tmp_path)]
    environment = {**os.environ, **PYTHON, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, env=environment) as run:
        while not any(tmp_path.glob("rdfia-gpu-kit-*/records/found.json")):
            assert run.poll() is None
            time.sleep(0.1)
        run.terminate()
    assert run.returncode == 130
    with tarfile.open(tmp_path / archive.NAME) as records:
        assert {"found.json", "logs/long.txt"} <= set(records.getnames())


def test_each_step_is_saved_before_the_next_begins() -> None:
    plan = [
        steps.Step("first", 1, 0, ()),
        steps.Step("large", 1, 1e9, ()),
        steps.Step("without", 1, 0, (), ("mnist",)),
        steps.Step("last", 1, 0, ()),
    ]
    events: list[Any] = []

    def run(step: steps.Step, seconds: float) -> steps.Outcome:
        events.append((step.name, round(seconds)))
        return steps.Outcome(step.name, "timed out")

    found = steps.run_steps(
        plan, 400, run, lambda so_far: events.append(len(so_far)), lambda name: name == "mnist"
    )
    assert [outcome.state for outcome in found] == [
        "timed out",
        "deferred",
        "unavailable",
        "timed out",
    ]
    # the next steps get what a step does not use
    assert events == [("first", 100), 1, 2, 3, ("last", 400), 4]
    important, other = steps.Step("important", 1, 60, ()), steps.Step("other", 9, 60, ())
    assert steps.allowance([important, other], 100) == 60


def test_steps_are_in_order_of_importance_and_name_their_output() -> None:
    assert [step.name for step in steps.STEPS] == [
        "environment",
        "parity",
        "same-answer",
        "counters",
        "speed",
        "pipeline",
        "profiles",
        "tme8",
        "tme7",
        "gans",
        "gans-claims",
        "memory",
        "team",
    ]
    assert all(
        any("{out}" in word for word in step.words) and "{device}" in step.words
        for step in steps.STEPS
    )
    sessions = [step.words for step in steps.STEPS if "pytest" in step.words]
    assert all(any(word.startswith("--output={out}/") for word in words) for words in sessions)
    named = {name for step in steps.STEPS for name in step.needs}
    assert named <= {name for names in parts.PARTS.values() for name in names}


def test_run_of_some_steps_names_its_card_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [steps.Step(name, 1, 0, ("-c", "")) for name in ("environment", "large", "small")]
    monkeypatch.setattr(steps, "STEPS", planned)
    assert steps.run(tmp_path / "no kit", "cpu", 1, tmp_path, ["small"]) == 0
    made = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [step["name"] for step in made] == ["environment", "small"]


@pytest.mark.parametrize(
    ("words", "status"),
    [(steps.PYTEST, 0), (steps.PYTEST.removesuffix(" -W default"), 1)],
    ids=["a step's", "as in the suite"],
)
def test_warning_does_not_fail_a_step(tmp_path: Path, words: str, status: int) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_graph.py").write_text(
        "import warnings\ndef test(): warnings.warn('a graph was not captured')\n"
    )
    ended = subprocess.run(
        [sys.executable, *words.split(), "test_graph.py"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # starts in a third of the time
    )
    assert ended.returncode == status


def test_unknown_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["run", "--out", str(tmp_path), "--steps", "parity,sped", "--kit", str(tmp_path)]) == 2
    )
    assert "sped: no such step" in capsys.readouterr().err


# --- what the steps do


def test_runs_that_fit_are_chosen_seed_by_seed() -> None:
    runs = [("CelebA", run) for run in gan_studies.STUDY]
    step = dict.fromkeys(("dcgan", "cdcgan", "cgan"), 2.0)
    every, costs = gan_runs.runs_that_fit(runs, step, 1e6, 4)
    assert every == list(range(len(runs)))
    names = [run.name for run in gan_studies.STUDY]
    five, default = (costs[names.index(f"{name}-0")] for name in ("5-of-D", "default"))
    assert five - gan_runs.SCORE_SECONDS * len(gan_studies.STUDY[0].snapshots) == pytest.approx(
        3 * 2.0 * gan_studies.STEPS / 1000
    )
    fit, _ = gan_runs.runs_that_fit(runs, step, gan_runs.START_SECONDS + 2.5 * default, 1)
    assert fit == [0, 1]
    assert gan_runs.runs_that_fit(runs, step, gan_runs.START_SECONDS, 4)[0] == []


def test_every_planned_run_is_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that no claim of the first seeds needs come last."""
    present = {"celeba-32", "cifar10-train", "mnist", "squeezenet1_1"}
    monkeypatch.setattr(gan_runs.assets, "find", lambda name: name in present or None)
    found = gan_runs.planned_runs("cuda")
    planned = [(title, run) for title in ("CelebA", "MNIST") for run in gan_studies.plan(title)]
    assert sorted(found, key=str) == sorted(planned, key=str)
    whole = [run.config.seed for title, run in found if title == "MNIST"]
    assert whole == sorted(whole)
    names = [run.name for _, run in found]
    assert names.index("nz-1000-4") < names.index("dcgan") < names.index("default-of-2000-0")
    present.remove("squeezenet1_1")  # without it no photo can be scored
    assert {title for title, _ in gan_runs.planned_runs("cuda")} == {"MNIST"}


def test_kit_scores_last_images_before_the_generators_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [("MNIST", gan_studies.OVER_SEEDS["cdcgan-no-y-in-D"][0])]
    monkeypatch.setattr(gan_runs, "planned_runs", lambda _device: runs)
    bench, asked = Long(), Mock(return_value={})
    bench.y = torch.arange(10)
    monkeypatch.setattr(gan_runs, "_bench", lambda *_: bench)
    monkeypatch.setattr(bench, "last_image_scores", asked)
    assert not gan_runs.make_run("cuda", tmp_path, 0)
    asked.assert_called_once_with(runs[0][1])
    for error in (StoreError("a run of another config"), RuntimeError("out of memory")):
        monkeypatch.setattr(bench, "run", Mock(side_effect=error))
        assert gan_runs.make_run("cuda", tmp_path, 0)


def test_failed_run_behind_one_that_is_not_made_in_time_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Event()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # `train` sets them
    pools = SimpleNamespace(get_context=lambda _way: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(gan_runs, "multiprocessing", pools)
    monkeypatch.setitem(gan_runs.PROCESSES, "cpu", 2)
    monkeypatch.setattr(gan_runs, "milliseconds", lambda _device: {})
    monkeypatch.setattr(gan_runs, "runs_that_fit", lambda *_: ([0, 1], [1.0, 1.0]))
    runs = [("MNIST", run) for run in gan_studies.STUDY[:2]]
    monkeypatch.setattr(gan_runs, "planned_runs", lambda _device: runs)
    monkeypatch.setattr(gan_runs, "make_run", lambda *where: where[-1] == 1 or late.wait(60))
    try:
        assert not gan_runs.train("cpu", 0.02, tmp_path)
    finally:
        late.set()


@pytest.mark.parametrize(
    ("factor", "warn", "holds"),
    [(1.0, True, True), (1.5, True, False), (1.0, False, False)],
    ids=["the same", "another result", "no warning"],
)
def test_smaller_batch_must_warn_and_give_the_same_result(
    factor: float, warn: bool, holds: bool
) -> None:
    def call() -> torch.Tensor:
        try:
            return torch.ones(600)  # 2,400 bytes, of which a third is left
        except torch.OutOfMemoryError:
            if warn:
                warnings.warn("fewer at a time", BatchReduced, stacklevel=1)
            return factor * torch.cat([torch.ones(100)] * 2)

    assert out_of_memory.peak("cpu", call) == 2400
    row = out_of_memory._with_a_third("cpu", call, 2400, torch.ones(200))
    assert row["holds"] is holds, row


def test_error_at_the_memory_limit_does_not_hold() -> None:
    row = out_of_memory._with_a_third("cpu", lambda: torch.ones(600), 2400, torch.ones(600))
    assert (row["holds"], "out of memory" in row["note"]) == (False, True)
    assert out_of_memory._error("cpu", lambda: torch.ones(600), 2400) == "nothing"
    assert out_of_memory._error("cpu", lambda: torch.ones(600), 800).startswith("OutOfMemoryError")


@dataclasses.dataclass
class Counted:
    """A row of the gate: what it makes for a device."""

    call: Callable[[], Any]

    def make(self, _device: str) -> tuple[Callable[[], Any], None]:
        return self.call, None


def test_row_that_fails_or_has_other_counters_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("on another device")

    rows = {"sum": Counted(lambda: torch.ones(3).sum()), "broken": Counted(broken)}
    monkeypatch.setattr(checks.gate, "GATE", rows)
    monkeypatch.setattr(checks.gate, "COUNTED", ["parameters", "sum"])
    monkeypatch.setattr(checks.counters, "BASELINE", tmp_path / "baseline.json")
    assert checks.count("cpu", tmp_path)
    kept = json.loads((tmp_path / "counters.json").read_text())
    (tmp_path / "baseline.json").write_text(json.dumps(kept))
    assert checks.count("cpu", tmp_path)
    rows["sum"].call = lambda: float(torch.ones(3).sum())  # waits for the device
    assert not checks.count("cpu", tmp_path)
    found = json.loads((tmp_path / "counters.json").read_text())["other than the baseline"]
    assert "sum: waits of the host 0 -> 1" in found
    monkeypatch.setattr(checks.gate, "COUNTED", ["broken"])
    assert not checks.count("cpu", tmp_path)


@pytest.mark.parametrize(("second", "holds"), [(b"two", True), (b"other", False), (None, False)])
def test_other_bytes_by_two_processes_are_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: bytes | None, holds: bool
) -> None:
    def extract(words: list[str], **_: Any) -> None:
        store = Path(words[-1])
        store.mkdir()
        for i, data in enumerate([b"one", second if store.name == "store-2" else b"two"]):
            if data is not None:
                (store / f"{i}.safetensors").write_bytes(data)

    monkeypatch.setattr(checks.subprocess, "run", extract)
    assert checks.team("cpu", tmp_path) is holds
    assert json.loads((tmp_path / "team.json").read_text())["holds"] is holds


def test_only_rows_that_missed_their_target_are_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: Any) -> tuple[Callable[[], Any], None]:
        return lambda: [torch.ones(8, 8) @ torch.ones(8, 8)], None

    for name in ("missed", "reached"):
        workload = PeerWorkload(name, "a peer", make, 0.1, 1, "steps", {"cpu": 1.0})  # type: ignore
        monkeypatch.setitem(checks.PEERS, name, workload)
    column = {**COLUMN, "share": 0.6, "ours": "ours", "dtype": "float32"}
    rows = [
        {**benchmark(at_least), "name": name, "columns": {"at the peer's dtype": column}}
        for name, at_least in (("missed", 5.0), ("reached", 4.0))
    ]
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "benchmarks.json").write_text(json.dumps({"rows": rows}))
    assert checks.profiles("cpu", tmp_path)
    (table,) = (tmp_path / "profiles").iterdir()
    assert table.name == "missed.txt"
    assert "aten::mm" in table.read_text()
    assert "wanted 5" in table.read_text()
