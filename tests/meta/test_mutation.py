"""The mutation testing of tests/mutation, on a project of one module whose faults are known."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation import report, runs
from tests.mutation.mutants import Mutant, is_valid, mutants_of, sample
from tests.mutation.runs import MOST, Suite, TestFile, Verdict, Worker, judge_each, read_rows

ROOT = Path(__file__).parents[2]
MODULE = """
LIMIT = 3


def double(x):
    return 2 * x


def countdown(n):
    while n > 0:
        n -= 1
    return n


def unused():
    return 1


class Box:
    size = 4


def table():
    return [5]


TABLE = table()
"""
TESTS = """
from functools import cache

import pytest

from rdfia import small


@cache
def doubled():
    return small.double(3)


def test_double_returns():
    assert doubled()


def test_double():
    assert doubled() == 6


def test_countdown():
    assert small.countdown(3) == 0


def test_limit():
    assert small.LIMIT == 3


def test_table():
    assert small.TABLE == [5]


@pytest.mark.parametrize("n", range(small.Box.size))
def test_name_depends_on_the_size(n):
    assert n < 4
"""
BYTES = """
from pathlib import Path

from rdfia import small


def test_bytes_are_the_stored_ones():
    assert len(Path(small.__file__).read_text()) == %d
"""
SESSION = """
def test_run_of_pytest_without_a_warning(pytester):
    pytester.makeini("[pytest]\\nfilterwarnings = error")
    pytester.makepyfile("def test(): pass")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
"""
SMALL = "tests/test_small.py"
LINES = {  # test -> the lines of the module that it runs
    "test_double_returns": [6],
    "test_double": [],
    "test_countdown": [10, 11, 12],
    "test_limit": [],
    "test_table": [],
    **{f"test_name_depends_on_the_size[{n}]": [] for n in range(4)},
}


def mutant(before: str, after: str, name: str = "a", at_import: bool = False) -> Mutant:
    """The mutant of MODULE with `after` in place of `before`."""
    start = MODULE.index(before)
    line = MODULE[:start].count("\n") + 1
    lines = (1, MODULE.count("\n")) if at_import else (line, line)
    return Mutant(
        name,
        "small",
        "",
        "planted",
        start,
        start + len(before),
        after,
        lines,
        at_import,
        line,
        before,
        after,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tests" / "mutation", root / "tests" / "mutation")
    for name, text in {
        "rdfia/__init__.py": "",
        "rdfia/small.py": MODULE,
        "tests/__init__.py": "",
        SMALL: TESTS,
        "tests/test_bytes.py": BYTES % len(MODULE),
        "tests/test_session.py": SESSION,
        "conftest.py": "pytest_plugins = ['pytester']",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def worker(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(project, tmp_path_factory.mktemp("worker") / "0", libraries=())
    yield made
    made.close()


@pytest.fixture
def suite(project: Path, tmp_path: Path) -> Suite:
    """The suite with its lines, as `measure` finds them."""
    found = Suite(project, tmp_path, [SMALL])
    found.files[SMALL] = TestFile(
        "key",
        seconds={f"{SMALL}::{name}": 0.1 for name in LINES},
        lines={"": {"small.py": [2, 5, 9, 15, 19, 20, 23, 24, 27]}}
        | {f"{SMALL}::{name}": {"small.py": rows} for name, rows in LINES.items() if rows},
    )
    return found


def test_fault_is_killed_by_the_test_that_sees_it(suite: Suite, worker: Worker) -> None:
    verdict = suite.judge(worker, mutant("n > 0", "n > 1"))
    assert (verdict.outcome, verdict.by) == ("killed", f"{SMALL}::test_countdown")
    # Its own tests first, then the others of the file.
    assert verdict.tests == len(LINES)
    # The copy is as before.
    assert suite.judge(worker, mutant("return n", "return (n)")).outcome == "survived"


def test_result_that_another_test_computed_is_seen(suite: Suite, worker: Worker) -> None:
    # Only `test_double_returns` runs the line, which is stored; `test_double` looks at it.
    assert suite.judge(worker, mutant("2 * x", "3 * x")).by == f"{SMALL}::test_double"


def test_constant_is_judged_by_the_files_that_name_its_module(suite: Suite, worker: Worker) -> None:
    changed = mutant("LIMIT = 3", "LIMIT = 4", at_import=True)
    assert suite.judge(worker, changed).by == f"{SMALL}::test_limit"


def test_function_that_only_imports_run_is_judged_as_a_constant(
    suite: Suite, worker: Worker
) -> None:
    assert suite.judge(worker, mutant("[5]", "[6]")).by == f"{SMALL}::test_table"


def test_module_that_cannot_be_imported_is_killed(suite: Suite, worker: Worker) -> None:
    verdict = suite.judge(worker, mutant("LIMIT = 3", "LIMIT = 3 / 0", at_import=True))
    assert (verdict.outcome, verdict.by) == ("killed", f"import of {SMALL}")


def test_test_with_a_new_name_is_run(suite: Suite, worker: Worker) -> None:
    verdict = suite.judge(worker, mutant("size = 4", "size = 5", at_import=True))
    assert verdict.by == f"{SMALL}::test_name_depends_on_the_size[4]"


def test_fault_in_code_that_no_test_runs_survives(suite: Suite, worker: Worker) -> None:
    assert suite.judge(worker, mutant("return 1", "return 2")) == Verdict("uncovered", "", 0, 0.0)


def test_endless_loop_is_killed_by_its_time(
    suite: Suite, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "GRACE", 0.1)
    verdict = suite.judge(worker, mutant("n -= 1", "n -= 0"))
    assert verdict.outcome == "killed"
    assert verdict.by == f"{SMALL}::test_countdown (takes too long)"


@pytest.mark.parametrize(
    ("loop", "limit"),
    [
        ("while True:\n        try:\n            n -= 0\n        except BaseException: pass", 0.2),
        ("import time; time.sleep(600)", 99.0),
    ],
    ids=["deaf", "idle"],
)
def test_loop_that_handles_every_error_and_idle_test_are_killed(
    worker: Worker, loop: str, limit: float
) -> None:
    with worker.mutated(mutant("while n > 0:\n        n -= 1", loop)):
        known = [f"{SMALL}::{name}" for name in LINES]
        limits = {f"{SMALL}::test_countdown": limit}
        found = worker.run([SMALL], limits, known=known, idle=3.0)
    assert found["late"]
    assert (found["code"], found["running"]) == (None, f"{SMALL}::test_countdown")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({}, ("survived", "")),
        ({"code": 1, "failed": ["a"]}, ("killed", "a")),
        ({"code": None, "late": True, "running": "a"}, ("killed", "a (takes too long)")),
        ({"code": None, "running": "a"}, ("killed", "a (ends the process)")),
        ({"code": None}, ("killed", "imports (ends the process)")),
        ({"code": 4}, ("killed", "import of conftest.py")),
        ({"code": 5}, ("survived", "")),
    ],
)
def test_outcome_of_each_answer(answer: dict[str, Any], outcome: tuple[str, str]) -> None:
    nothing = {"code": 0, "failed": [], "late": False, "running": None}
    assert runs._outcome({**nothing, **answer}) == outcome


def test_tests_of_a_mutant_are_limited_by_their_seconds(suite: Suite) -> None:
    row = suite.files[SMALL]
    row.seconds = {name: 1.0 + n for n, name in enumerate(row.seconds)}
    assert suite.chosen(mutant("2 * x", "3 * x"), most=3.0) == {
        SMALL: [f"{SMALL}::test_double_returns", f"{SMALL}::test_double"]
    }
    # A slow test alone is run.
    assert suite.chosen(mutant("n > 0", "n > 1"), most=0.1) == {SMALL: [f"{SMALL}::test_countdown"]}


def test_lines_are_measured_once_and_tests_that_compare_bytes_are_left_out(
    project: Path, worker: Worker, tmp_path: Path
) -> None:
    pytest.importorskip("coverage", reason="install the extra `mutation` to measure lines")
    said: list[str] = []
    suite = Suite(project, tmp_path, ["tests"])
    suite.measure([worker], said.append)
    assert len(said) == 3
    assert {name: row.left_out for name, row in suite.files.items() if row.left_out} == {
        "tests/test_bytes.py": ["tests/test_bytes.py::test_bytes_are_the_stored_ones"]
    }
    lines = suite.files[SMALL].lines
    assert lines[""]["small.py"] == [2, 5, 9, 15, 19, 20, 23, 24, 27]
    assert {
        name: lines[f"{SMALL}::{name}"]["small.py"] for name, rows in LINES.items() if rows
    } == {name: rows for name, rows in LINES.items() if rows}
    Suite(project, tmp_path, ["tests"]).measure([worker], said.append)
    assert len(said) == 3
    suite._stored(SMALL).write_text('{"key": "1", "sec')  # cut by a kill
    Suite(project, tmp_path, ["tests"]).measure([worker], said.append)
    assert len(said) == 4


def many() -> list[Mutant]:
    """Valid mutants of one place in three rooms, with an id each."""
    return [
        Mutant(
            f"{room}{n}", f"{room}small", "", "planted", at, at + 1, str(n), (2, 2), True, 2, "", ""
        )
        for room, count in (("", 8), ("far.", 3), ("near.", 12))
        for at in [MODULE.index("3")]
        for n in range(10, 10 + count)
    ]


def ids(mutants: Sequence[Mutant], seed: int, skip: set[str] | None = None) -> list[str]:
    sources = dict.fromkeys(("small", "far.small", "near.small"), MODULE)
    return [each.id for each in sample(mutants, sources, seed, skip or set())]


def test_seed_decides_the_sample_and_every_room_has_its_share() -> None:
    first = ids(many(), 1)
    assert ids(many()[::-1], 1) == first
    assert ids(many(), 2) != first
    assert sorted(first) == sorted(each.id for each in many())
    rooms = [re.sub(r"\d+", "", name) for name in first]
    assert all(set(rooms[i : i + 3]) == {"", "far.", "near."} for i in range(0, 9, 3))
    # Without one mutant, the others of each room keep their order.
    left = ids([each for each in many() if each.id != first[4]], 1)
    for room in ("", "far.", "near."):
        of_room = re.compile(rf"{re.escape(room)}\d+")
        assert list(filter(of_room.fullmatch, left)) == [
            name for name in first if of_room.fullmatch(name) and name != first[4]
        ]


def test_change_that_changes_nothing_is_not_sampled() -> None:
    assert not is_valid(mutant("LIMIT = 3", "LIMIT = (3)"), MODULE)
    assert not is_valid(mutant("LIMIT = 3", "LIMIT ="), MODULE)
    assert is_valid(mutant("LIMIT = 3", "LIMIT = 4"), MODULE)


class Judge(Suite):
    """A suite that kills each mutant at once."""

    def judge(self, worker: Worker, mutant: Mutant, most: float = MOST) -> Verdict:
        return Verdict("killed", "t", 1, 0.0)


def test_second_run_continues_where_the_first_was_stopped(
    project: Path, worker: Worker, tmp_path: Path
) -> None:
    results = tmp_path / "results.jsonl"
    results.touch()
    judge = Judge(project, tmp_path, [SMALL])
    sources = dict.fromkeys(("small", "far.small", "near.small"), MODULE)
    for part in (5, None):
        done = {str(row["id"]) for row in read_rows(results)}
        rest = itertools.islice(sample(many(), sources, 1, done), part)
        judge_each(judge, [worker], rest, results, lambda _: None, seed=1)
        if part:
            # The process ended while it wrote.
            results.write_text(results.read_text() + '{"id": "cut')
    judged = [str(row["id"]) for row in read_rows(results)]
    assert sorted(judged) == sorted(each.id for each in many())
    assert len(results.read_text().splitlines()) == len(judged) + 1


def row(name: str, outcome: str, by: str = "") -> dict[str, Any]:
    return {"id": name, "outcome": outcome, "by": by, "tests": 3, "part": "tests/unit"}


def test_report_counts_killed_equivalent_and_changed_mutants() -> None:
    known = {each.id: each for each in many()}
    rows = [
        row("10", "killed", "t"),
        row("11", "survived"),
        row("12", "survived"),
        row("13", "uncovered"),
        row("13", "killed", "later"),
        row("changed since", "survived"),
    ]
    text = report.page(rows, known, {"repr": 7}, {"12": "it is the same."})
    assert "| **top** | 4 | 2 | 1 | 1 | 67% |" in text
    assert "| `__repr__` | 7 |" in text
    assert "4 by tests/unit" in text
    survivors = text.partition("## Survivors")[2]
    assert re.findall(r"\((\d+)\): (.+)", survivors) == [
        ("11", "**survived** 3 tests"),
        ("12", "equivalent, because it is the same."),
        ("13", "killed by `later`"),
    ]


@pytest.mark.parametrize(
    ("marks", "problem"),
    [({"99": "gone"}, "not in the code: 99"), ({"10": "is killed"}, "but killed: 10")],
)
def test_planted_mark_that_is_wrong_is_an_error(marks: dict[str, str], problem: str) -> None:
    known = {each.id: each for each in many()}
    with pytest.raises(ValueError, match=problem):
        report.page([row("10", "killed", "t")], known, {}, marks)


def test_mark_without_a_reason_or_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "marks.toml"
    entry = '[[mutant]]\nid = "1"\nwhere = "a"\nchange = "b"\n'
    path.write_text(entry)
    with pytest.raises(ValueError, match="1 has no because"):
        report.marks(path)
    path.write_text(2 * f'{entry}because = "c"\n')
    with pytest.raises(ValueError, match="1 is listed twice"):
        report.marks(path)
    path.write_text(f'{entry}because = "c"\n')
    assert report.marks(path) == {"1": "c"}


LEFT_OUT = {
    "docstring": '"""Two words."""',
    "annotation": "x: int",
    "error text": 'raise ValueError("a" + "b")',
    "help text": 'f(help="words")',
    "repr": "def __repr__(self): return 'a'",
    "import": "if TYPE_CHECKING:\n    x = 1",
    "logging": 'logger.info("a", 3)',
    "encoding": 'f("utf-8")',
    "guard": "assert a == 3",
}


def generated(source: str, module: str = "small") -> tuple[list[str], dict[str, int]]:
    """What each mutant's changed line is, and the rules that left code out."""
    pytest.importorskip("mutmut", reason="install the extra `mutation` to make mutants")
    mutants, left_out = mutants_of(source, module)
    return [each.after for each in mutants if is_valid(each, source)], dict(left_out)


@pytest.mark.parametrize("rule", LEFT_OUT)
def test_code_that_a_rule_leaves_out_has_no_mutants(rule: str) -> None:
    found, left_out = generated(LEFT_OUT[rule] + "\n")
    assert left_out[rule] >= 1
    # The call itself may be forgotten; its text is as before.
    assert {each for each in found if each not in {"pass", "f()"}} == set()


def test_guard_of_zip_is_left_out() -> None:
    found, left_out = generated("zip(a, b, strict=True)\n")
    assert left_out == {"guard": 1}
    assert "zip(a, b, strict=False)" not in found
    assert "zip(a, b, )" not in found


def test_appearance_is_left_out_of_figures_only() -> None:
    assert "f(x, )" not in generated("y = f(x, color=3)\n", "report.figures")[0]
    assert "y = f(x, )" in generated("y = f(x, color=3)\n", "gans.scores")[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 2", "x = 3"),
        ("def f(rate=5): pass", "def f(rate=6): pass"),
        ("y = a < b", "y = a <= b"),
        ("y = fit(x, tol=t)", "y = fit(x, )"),
        ("optimizer.zero_grad()", "pass"),
        ("y = x.detach()", "y = x"),
        ("y = a if b else c", "y = a if (b) or True else c"),
    ],
)
def test_known_fault_is_among_the_mutants(line: str, expected: str) -> None:
    found, _ = generated(f"{line}\n")
    assert expected.replace(" ", "") in {each.replace(" ", "") for each in found}


def test_lines_of_a_mutant_are_those_of_its_statement_or_of_its_function() -> None:
    pytest.importorskip("mutmut", reason="install the extra `mutation` to make mutants")
    source = (
        "A = 1\n\n\ndef f(x=2):\n    if x > 3:\n        return g(\n            4)\n    return 5\n"
    )
    found, _ = mutants_of(source, "small")
    places = {
        each.before: (each.lines, each.at_import) for each in found if each.operator == "number"
    }
    assert places == {
        "A = 1": ((1, 9), True),
        "def f(x=2):": ((4, 8), True),
        "if x > 3:": ((5, 5), False),
        "4)": ((6, 7), False),
        "return 5": ((8, 8), False),
    }
    # An id stays when other lines move.
    moved, _ = mutants_of("\nB = 7\n" + source, "small")
    assert {each.id for each in found} < {each.id for each in moved}
    assert len({each.id for each in moved}) == len(moved)


def test_committed_results_and_marks_are_readable() -> None:
    path = ROOT / "reports" / "verified" / "mutation.jsonl"
    assert {row["outcome"] for row in read_rows(path)} <= {"killed", "survived", "uncovered"}
    assert len(path.read_text("utf-8").splitlines()) == len(read_rows(path))
    marked = report.marks(ROOT / "tests" / "mutation" / "equivalent.toml")
    rows = report.latest(read_rows(path))
    assert {name for name in marked if rows.get(name, {}).get("outcome") == "killed"} == set()


def test_worker_answers_are_lines_of_json() -> None:
    # A process that ends while it writes leaves half a line.
    from tests.mutation.worker import _summary

    lines = ['{"started": "a"}', '{"ended": "a", "seconds": 1}', '{"started": "b"}', '{"fai']
    found = _summary(lines, late=False)
    assert (found["running"], found["code"], found["failed"]) == ("b", None, [])
    assert json.loads(json.dumps(found)) == found
