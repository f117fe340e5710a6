"""The page's sections on time draw the record's values; a broken record costs its section alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ROOT
from rdfia.report import benchmarks, figures

COLUMN = {
    "dtype": "float32",
    "peer": "as its manual has it",
    "seconds": 0.1,
    "peer seconds": 0.26,
    "speed-up": 2.6,
    "speed-up low": 2.4,
    "speed-up high": 2.9,
    "rounds": 3,
    "share": 0.4,
}
BEST = {**COLUMN, "speed-up": 1.5, "speed-up low": 1.4, "speed-up high": 1.6, "peer": "autocast"}
ROW = {
    "name": "DCGAN step",
    "against": "the lab's <loop>",
    "one column": "",
    "columns": {"at the peer's dtype": COLUMN, "each at its best": BEST},
}
WHERE = {
    "device": "cpu",
    "cpu": "a processor",
    "accelerator": "none",
    "threads": 2,
    "torch": "2.13",
    "date": "today",
}
POWER = {
    "rounds": 40,
    "load": 1,
    "verdicts": 300,
    "false alarms of the whole gate": 0,
    "no verdict": 3,
    "caught": {"DCGAN step": {"10%": 0.97}},
    "seconds of a sample": {"DCGAN step": 0.02},
    "spread of a round": {"DCGAN step": 0.05},
    "usual ratio to the reference": {"DCGAN step": 0.71},
    "at most": {"DCGAN step": 1.0},
}


def test_figure_shows_both_columns_with_intervals() -> None:
    figure = benchmarks.speedups([ROW, {**ROW, "columns": {"at the peer's dtype": COLUMN}}])
    ax: Any = figure.axes[0]
    for marker, values in (("o", [[2.6], [2.6]]), ("s", [[1.5]])):
        assert [
            list(line.get_xdata()) for line in ax.lines if line.get_marker() == marker
        ] == values
    assert [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2][:2] == [
        [2.4, 2.9],
        [1.4, 1.6],
    ]
    assert figures.png(figure)


@pytest.mark.parametrize("run", sorted(ROOT.glob("reports/verified/*/speed*/benchmarks.json")))
def test_committed_seconds_have_the_committed_ratio(run: Path) -> None:
    """Seconds and speed-up come from the same samples."""
    for row in json.loads(run.read_text())["rows"]:
        for column in row["columns"].values():
            ratio = column["peer seconds"] / column["seconds"]
            assert ratio == pytest.approx(column["speed-up"]), row["name"]


def test_growth_exponent_is_the_slope_of_logarithms() -> None:
    assert benchmarks.growth_exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert benchmarks.growth_exponent([1, 2, 4, 8], [5, 5, 5, 5]) == pytest.approx(0)
    row = {"work": [1, 2, 4, 8], "values": [3.0, 6.0, 12.0, 24.0], "exponent": 1.0}
    (legend,) = benchmarks.growth({"extraction": row}, "seconds").legends
    assert legend.get_texts()[0].get_text() == "extraction: exponent 1.00"


def test_section_has_rows_start_growth_and_claims(tmp_path: Path) -> None:
    grown = {"seconds": {"extraction": {"work": [1, 2], "values": [1.0, 2.0], "exponent": 1.0}}}
    kept = {
        "start": {"import rdfia": [0.0444, 0.15]},
        "bfloat16": [["tme7.bfloat16/<net>", "reproduced", "0", "1"]],
    }
    where = {**WHERE, "set in the environment": "ATEN_CPU_CAPABILITY=avx2"}
    run = {"rows": [ROW], "environment": where, "growth": grown, **kept}
    run |= {"deferred": {"fooling": "not begun"}, "failed": {"saliency": "is not that of captum"}}
    (tmp_path / "benchmarks.json").write_text(json.dumps(run))
    html = benchmarks.benchmarks(tmp_path, tmp_path / "verified")
    assert "the lab&#39;s &lt;loop&gt;" in html
    # settings that limit the processor
    assert "a processor, with ATEN_CPU_CAPABILITY=avx2, 2 threads" in html
    assert "2.60 (2.40 to 2.90)" in html.replace("\u00a0", " ")
    assert html.count("<img") == 2
    assert "0.0444" in html
    assert "tme7.bfloat16/&lt;net&gt;" in html
    assert "fooling: not begun" in html
    assert "saliency: is not that of captum" in html
    assert "Nothing was measured on a CUDA device" in html
    assert (tmp_path / "figures" / "speed-ratios.png").exists()


def write_committed_run(folder: Path, device: str, row: dict[str, Any], **where: str) -> None:
    (folder / device / "speed").mkdir(parents=True)
    run = {"rows": [row], "environment": {**WHERE, "device": device, **where}}
    (folder / device / "speed" / "benchmarks.json").write_text(json.dumps(run))


def test_section_compares_cpu_and_cuda_once_cuda_was_measured(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.json").write_text(json.dumps({"rows": [], "environment": WHERE}))
    write_committed_run(tmp_path, "cpu", ROW)
    assert "Nothing was measured on a CUDA device" in benchmarks.benchmarks(tmp_path, tmp_path)
    wanted = {"speed-up": 7.5, "low": 7.1, "high": 7.9, "at least": 5.0}
    fast = {**COLUMN, "speed-up": 6.25, "speed-up low": 6.0, "speed-up high": 6.5}
    row = {
        **ROW,
        "wanted": wanted,
        "columns": {"at the peer's dtype": fast, "each at its best": BEST},
    }
    write_committed_run(tmp_path, "cuda", row, accelerator="a <card>")
    html = benchmarks.benchmarks(tmp_path, tmp_path)
    assert "Nothing was measured" not in html
    for text in (
        "a &lt;card&gt;, at the peer&#39;s dtype",
        "2.60 (2.40 to 2.90)",
        "6.25 (6.00 to 6.50)",
        "7.50 of 5",
    ):
        assert text in html


def test_table_by_device_names_what_one_device_lacks() -> None:
    where = {**WHERE, "accelerator": "a card"}
    _, lines = benchmarks.table_by_device(
        {"rows": [ROW], "environment": WHERE}, {"rows": [], "environment": where}
    )
    assert lines == [
        [
            "DCGAN step",
            "the lab's <loop>",
            "2.60 (2.40 to 2.90)",
            "1.50 (1.40 to 1.60)",
            "not measured",
            "not measured",
            "",
        ]
    ]


def test_section_on_the_gate_has_its_error_rates(tmp_path: Path) -> None:
    (tmp_path / "power.json").write_text(json.dumps({"loaded": POWER}))
    (tmp_path / "live.json").write_text(
        json.dumps([["DCGAN step", 0.2, "slower", "DCGAN step: 1.21 <of>"]])
    )
    html = benchmarks.gate(tmp_path)
    assert "1.21 &lt;of&gt;" in html
    assert "(they share rounds): 0 false alarms, 3 without a verdict" in html
    assert "by 10%" in html


def test_no_record_gives_no_section(tmp_path: Path) -> None:
    assert (benchmarks.benchmarks(tmp_path), benchmarks.gate(tmp_path)) == ("", "")


@pytest.mark.parametrize(
    "wrong", ["{", "[]", "{}", '{"rows": [{}], "environment": {}}', '{"a": {}}']
)
@pytest.mark.parametrize(
    ("name", "section"),
    [("benchmarks.json", benchmarks.benchmarks), ("power.json", benchmarks.gate)],
)
def test_broken_record_costs_its_section_alone(
    tmp_path: Path, name: str, section: Any, wrong: str
) -> None:
    (tmp_path / name).write_text(wrong)
    html = section(tmp_path)
    assert html == "" or f"{name} could not be drawn" in html
