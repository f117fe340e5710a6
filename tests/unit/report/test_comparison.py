"""`rdfia compare`: conditions first, each planted change in its section, exit codes, messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdfia.__main__ import main
from rdfia.claims import intervals, judge
from rdfia.claims.record import Record, as_plain
from rdfia.report import comparison
from rdfia.report.results import Timing
from tests.unit.report.test_page import EVIL, Links

VERIFIED = Path(__file__).parents[3] / "reports" / "verified" / "cpu"
Json = dict[str, Any]
RIGHT = np.arange(1000) < 900


def a_run() -> Json:
    """A run with a check for each kind of estimate."""
    found = {
        "tme7.q1.total": {"parameters": intervals.exact_value(138_357_544)},
        "tme7.q10.head": {"accuracy": intervals.proportion(900, 1000)},
        "tme7.q8.depth": {"best layer minus first layer": intervals.mean([0.2, 0.21, 0.22, 0.2])},
        "tme9.q4.default": {"density": intervals.single_run(2.6)},
    }
    records = [
        Record(
            key,
            lab=key.partition(".")[0],
            outcome="undecided" if key.startswith("tme9") else "supported",
            parts=as_plain([{"name": name, **asdict(one)} for name, one in parts.items()]),
            code="c0de",
        ).as_json()
        for key, parts in found.items()
    ]
    records[1] |= {"right": {"accuracy": judge.pack_bits(RIGHT)}, "images": "scene15"}
    environment = {
        "date": "2026-11-30",
        "commit": "ea3da7186f68",
        "cpu": "AMD EPYC",
        "torch": "2.13.0",
        "threads": 2,
    }
    return {"environment": environment, "records": records}


def peers(seconds: float = 0.1, name: str = "DCGAN step") -> Json:
    """benchmarks.json with a row of three rounds."""
    column = {"ours": "ours", "peer": "usual", "dtype": "float32", "rate": 1 / seconds}
    samples = [
        {"ours": [seconds * noise, 9.0], "usual": [3 * seconds * noise, 9.0]}
        for noise in (1, 1.01, 1.02)
    ]
    for round_ in samples:  # the lower quartile of two equal samples and one slow
        for times in round_.values():
            times.insert(0, times[0])
    row = {"name": name, "unit": "steps", "columns": {"best": column}, "samples": samples}
    return {"rows": [row], "environment": {"date": "2026-11-30", "cpu": "AMD EPYC"}}


def written(path: Path, content: object) -> str:
    """The path of the file, as text, after writing it: without a sync, which can take seconds."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """The exit code and the lines of `rdfia compare` for two contents of a file."""

    def run(before: Json, after: Json, *options: str, name: str = "claims.json") -> Any:
        for folder, content in (("a", before), ("b", after)):
            written(tmp_path / folder / name, content)
        code = main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *options])
        return code, capsys.readouterr().out.splitlines()

    return run


def drop(run: Json) -> None:
    del run["records"][0]


def stops(run: Json) -> None:
    drop(run)
    run["unfinished"] = "3 of 4 checks had ended"


def fails(run: Json) -> None:
    run["records"][1]["failure"] = "tme7.q10.head: its pin has accuracy 0.9 and this run 0.5"


def contradicts(run: Json) -> None:
    part = run["records"][2]["parts"][0]
    for name in ("value", "low", "high"):
        part[name] -= 0.5
    run["records"][2]["outcome"] = "contradicted"


def loses_images(run: Json) -> None:
    right = RIGHT & (np.arange(1000) >= 50)
    found = intervals.proportion(int(right.sum()), 1000)
    run["records"][1]["parts"] = as_plain([{"name": "accuracy", **asdict(found)}])
    run["records"][1]["right"] = {"accuracy": judge.pack_bits(right)}


def counts_otherwise(run: Json) -> None:
    run["records"][0]["parts"][0] |= dict.fromkeys(("value", "low", "high"), 3.0)


def decides(run: Json) -> None:
    run["records"][3]["outcome"] = "supported"
    run["records"][3]["parts"][0]["value"] = 2.7


def adds(run: Json) -> None:
    run["records"].append({**run["records"][0], "case": "alexnet", "key": "tme7.q1.total/alexnet"})


def defers(run: Json) -> None:
    run["records"][0] |= {"outcome": "deferred", "note": "6 s would not fit"}


def new_torch(run: Json) -> None:
    run["environment"] |= {"torch": "2.15.0", "cpu": "H200"}


@pytest.mark.parametrize(
    ("change", "code", "lines"),
    [
        (drop, 1, ["Worse (1)", "  tme7.q1.total: reproduced -> missing"]),
        (stops, 0, ["stopped: 3 of 4", "Not reached in B", "q1.total: reproduced -> not reached"]),
        (fails, 1, ["Worse (1)", "  tme7.q10.head: reproduced", "its test fails now: its pin has"]),
        (
            contradicts,
            1,
            ["Worse (1)", "  tme7.q8.depth: reproduced -> contradicted", "difference -0.5 (-0.5"],
        ),
        (
            loses_images,
            0,
            ["Same outcome, a value differs", "50 images were right and are not now"],
        ),
        (counts_otherwise, 0, ["a value without an interval differs", "138,357,544 -> 3; without"]),
        (
            decides,
            0,
            ["Other outcome (1)", "undecided -> reproduced", "one run: its spread is not"],
        ),
        (adds, 0, ["New in B (1)", "tme7.q1.total/alexnet: reproduced", "parameters 138,357,544"]),
        (
            defers,
            0,
            ["Measured in one run only (1)", "reproduced -> deferred", "6 s would not fit"],
        ),
        (new_torch, 0, ["Conditions that differ (2)", "torch: 2.13.0 -> 2.15.0"]),
    ],
)
def test_planted_change_is_in_its_section(
    change: Callable[[Json], None],
    code: int,
    lines: list[str],
    compared: Callable[..., tuple[int, list[str]]],
) -> None:
    after = a_run()
    change(after)
    found, text = compared(a_run(), after)
    assert found == code
    assert max(map(len, text)) <= comparison.WIDTH
    whole = "\n".join(text)
    places = [whole.find(line) for line in lines]
    assert -1 not in places, whole
    assert places == sorted(places)
    sections = [line for line in text if line.partition(" (")[0] in comparison.SECTIONS.values()]
    assert len(sections) <= 1
    assert "got worse" in text[-1] or "got worse" in text[-2]
    assert ("nothing got worse" in whole) == (code == 0)


def test_stopped_run_among_several_explains_no_missing_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = a_run()
    stops(stopped)
    ended = {**stopped, "unfinished": "", "environment": {"date": "2026-11-29"}}
    before = written(tmp_path / "a.json", a_run())
    (tmp_path / "b").mkdir()
    written(tmp_path / "b" / "ended" / "claims.json", ended)
    written(tmp_path / "b" / "stopped" / "claims.json", stopped)
    for folder, code in (("stopped", 0), ("", 1)):
        assert main(["compare", before, str(tmp_path / "b" / folder)]) == code
        assert ("stopped: 3 of 4" in capsys.readouterr().out) == (code == 0)


def test_closed_pipe_changes_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: Callable[..., tuple[int, list[str]]]
) -> None:
    """As of `rdfia compare A B | head -1`, where the shell has `pipefail`."""
    read, write = os.pipe()
    os.close(read)
    page, other = tmp_path / "page.html", a_run()
    contradicts(other)
    with monkeypatch.context() as patch, open(write, "w") as closed:
        patch.setattr("sys.stdout", closed)
        assert compared(a_run(), other, "--page", str(page))[0] == 1
    assert page.exists()


def test_equal_runs_have_no_section(compared: Callable[..., tuple[int, list[str]]]) -> None:
    code, text = compared(a_run(), {**a_run(), "environment": a_run()["environment"]})
    assert code == 0
    assert text[-1] == "4 checks: nothing got worse; 4 unchanged. 4 values: 4 equal."
    assert not [line for line in text if line.endswith(".") and "(" in line]


def test_conditions_come_first(compared: Callable[..., tuple[int, list[str]]]) -> None:
    after = a_run()
    for change in (contradicts, counts_otherwise, new_torch):
        change(after)
    after["records"][0]["code"] = "0ther"
    _, text = compared(a_run(), after)
    titles = [line.partition(" (")[0] for line in text if line and line[0] not in " AB4"]
    assert titles[:2] == ["Conditions that differ", "Worse"]
    assert "  code of tme7's checks: c0de -> 0ther, c0de" in text


@pytest.mark.parametrize(
    ("seconds", "title", "ratio"),
    [
        (0.2, "Benchmarks with another rate (1)", "rate x 0.50 (0.49 to 0.51); speed-up over"),
        (0.101, "Benchmarks whose spread contains the change (1)", "rate x 0.99 (0.97 to 1.0"),
    ],
)
def test_rates_are_ratios_with_their_spread(
    seconds: float,
    title: str,
    ratio: str,
    compared: Callable[..., tuple[int, list[str]]],
) -> None:
    code, text = compared(peers(), peers(seconds), name="benchmarks.json")
    whole = "\n".join(text)
    assert code == 0  # times decide nothing
    assert title in whole
    assert ratio in whole
    assert "peer x 1.00 (" in whole


def test_benchmarks_of_one_run_are_listed(
    compared: Callable[..., tuple[int, list[str]]],
) -> None:
    code, text = compared(peers(), peers(name="cGAN step"), name="benchmarks.json")
    assert code == 0
    assert "Benchmarks of one run only (2)" in "\n".join(text)
    assert "  DCGAN step, best: 10 steps/s, float32" in text


def test_files_of_pytest_benchmark_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(cpu: str, stats: Json) -> Json:
        machine = {"cpu": {"brand_raw": cpu}, "python_version": "3.11.7"}
        row = {"fullname": "bench_a.py::test_a", "stats": stats}
        return {"machine_info": machine, "datetime": "2026-11-30", "benchmarks": [row]}

    first = run("EPYC", {"median": 0.1, "data": [0.1, 0.1, 0.101]})
    a = written(tmp_path / "a.json", first)
    b = written(tmp_path / "b.json", run("M4", {"median": 0.05, "data": [0.05, 0.05, 0.0505]}))
    c = written(tmp_path / "c.json", run("M4", {"median": 0.05}))
    assert main(["compare", a, b]) == 0
    text = capsys.readouterr().out
    assert "  cpu: EPYC -> M4" in text
    assert "2026-11-30" in text
    assert "bench_a.py::test_a: 10 -> 20 calls/s\n      rate x 2.00 (1.9" in text
    assert main(["compare", a, c]) == 0
    assert "rate x 2.00 (a single round)" in capsys.readouterr().out


def test_bar_of_the_largest_change_of_a_rate_ends_at_the_edge() -> None:
    a = {"twice": Timing("", (0.1,)), "half": Timing("", (0.1,)), "equal": Timing("", (0.1,))}
    b = {"twice": Timing("", (0.05,)), "half": Timing("", (0.2,)), "equal": Timing("", (0.1,))}
    rows = [row for section in comparison._benchmarks(a, b) for row in section.rows]
    bars = {row.name: bar.intervals[""][1] for row in rows for bar in row.bars}
    assert bars == {"twice": 100.0, "half": 0.0, "equal": 50.0}


def test_committed_runs_equal_themselves_and_the_folder_above_holds_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(VERIFIED / "tme7-short")
    assert main(["compare", run, run]) == 0
    text = capsys.readouterr().out
    assert "nothing got worse" in text
    assert "Conditions" not in text
    assert main(["compare", str(VERIFIED), run]) == 1  # further short runs are below it
    text = capsys.readouterr().out
    dates = re.search(r" runs, (20\S+ \S+) UTC\s+to\s+(20\S+ \S+)\s+UTC", text)
    assert dates is not None, text
    assert dates[1] < dates[2]
    assert "another value" not in text


def test_page_shows_every_section_with_bars_and_escapes_texts(
    tmp_path: Path, compared: Callable[..., tuple[int, list[str]]]
) -> None:
    before, after = a_run(), a_run()
    contradicts(after)
    loses_images(after)
    after["environment"]["cpu"] = EVIL
    for run in (before, after):
        run["records"][1] |= {"case": EVIL, "key": EVIL}
    code, text = compared(before, after, "--page", str(tmp_path / "page.html"))
    assert code == 1
    html = (tmp_path / "page.html").read_text("utf-8")
    page = Links(html)
    assert len(page.targets) == 3
    assert set(page.targets) <= set(page.ids)
    assert page.tags.count("script") == 1  # the one of the page
    assert "img" not in page.tags
    assert page.tags.count("svg") == 4
    assert EVIL not in "\n".join(text[:3])
    assert "http" not in html


def test_markdown_has_a_table_for_each_section_and_no_markup_of_texts(
    compared: Callable[..., tuple[int, list[str]]],
) -> None:
    before, after = a_run(), a_run()
    contradicts(after)
    after["records"][2]["failure"] = "a | b\n<img src=x> `c` \x1b[31m"
    code, text = compared(before, after, "--markdown")
    assert code == 1
    assert text[0].startswith("### 4 checks: 1 got worse")
    (row,) = [line for line in text if line.startswith("| tme7.q8.depth")]
    assert "✓ reproduced | ✗ contradicted |" in row
    assert r"a \| b<br>&lt;img src=x&gt; \`c\` \\x1b\[31m" in row
    assert row.replace(r"\|", "").count("|") == 5
    assert text.count("| --- | --- | --- | --- |") == 1


def test_bars_have_the_bound_where_it_is_near() -> None:
    claim, name, bound = next(
        (claim.id, name, bound.value)
        for claim in comparison.CLAIMS.values()
        for name, bound in claim.bounds.items()
        if not bound.margin
    )
    near = intervals.Estimate(bound + 0.01, bound - 0.01, bound + 0.03, 9, "planted")
    far = intervals.Estimate(bound + 1.01, bound + 0.99, bound + 1.03, 9, "planted")
    for value, expected in ((near, True), (far, False)):
        moved = intervals.Estimate(value.value, value.low - 0.001, value.high, 9, "planted")
        change = comparison.changes.value_change(name, value, moved)
        bars = comparison._bars(claim, change)
        assert bars is not None
        assert (bars.line is not None) == expected
        assert all(0 <= x <= 100 for ends in bars.intervals.values() for x in ends)


@pytest.mark.parametrize(
    ("contents", "code", "message"),
    [
        (None, 2, "got no claims.json or benchmarks.json, expected a file of a run"),
        ({"claims.json": {"records": []}}, 2, "no timed row, expected claims in both"),
        ({"benchmarks.json": peers()}, 2, "has claims, .*has benchmarks, expected"),
        ({"claims.json": []}, 1, "got other content than a run"),
        ({"claims.json": {"records": [{"id": 3}]}}, 1, "got other content than a run"),
        (
            {
                "claims.json": {
                    "records": [{"id": "tme7.q1.total", "parts": [{}], "outcome": "supported"}]
                }
            },
            1,
            "a record cannot be compared",
        ),
        ({"benchmarks.json": {"rows": [{"name": "a", "columns": {"b": {}}}]}}, 1, "KeyError"),
    ],
)
def test_messages_name_the_path_and_what_was_expected(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    contents: Json | None,
    code: int,
    message: str,
) -> None:
    run = a_run()
    run["records"] = [{**record, "profile": "full"} for record in run["records"]]
    written(tmp_path / "a" / "claims.json", run)
    (tmp_path / "b").mkdir()
    for name, content in (contents or {}).items():
        written(tmp_path / "b" / name, content)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == code
    found = capsys.readouterr()
    assert re.search(message, found.err), found.err
    assert ("b" in found.err) == (code > 0)
    assert not (code and found.out)


def test_two_paths_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["compare", "a"])
    assert error.value.code == 2
    assert "B" in capsys.readouterr().err
