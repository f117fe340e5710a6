"""Small projects in which pytest runs with our conftest.py: their tests, pins and records."""

from __future__ import annotations

import json

import matplotlib.figure
import pytest
import torch

from rdfia.claims import judge
from rdfia.claims.registry import CLAIMS
from rdfia.data import assets
from rdfia.report import figures
from rdfia.report import page as report_page

# imported here, because an inner run must not import torch again
PRELOADED = (assets, figures, report_page, matplotlib.figure, torch)
MEASURES = """
    import pytest
    @pytest.mark.claim("tme7.q1.total")
    def test_total(claim):
        from rdfia.claims.intervals import exact_value
        found = {{"convolutions": exact_value({value})}}
        claim.measured(found, weights="<script>alert(1)</script>")
"""
NEEDS = """
    import pytest
    @pytest.mark.claim("tme7.q3.animals")
    def test_animals(claim):
        claim.need("vgg16-full")
"""


def pinned(outcome: str) -> dict[str, object]:
    """The pin of MEASURES with this outcome."""
    bounds = {"convolutions": CLAIMS["tme7.q1.total"].bounds["convolutions"]}
    row = {
        "outcome": outcome,
        "bounds": judge.bounds_digest(bounds),
        "errors from bound": 99.0,
        "parts": {"convolutions": [13.0, 0.0]},
    }
    return {"tme7.q1.total|short|report": row}


PIN = pinned("supported")


# Not the name of a real file, because the suite has imported those.
PLANTED = "tests/accuracy/test_tme7_planted.py"


def write(project: pytest.Pytester, source: str, path: str = PLANTED, **values: object) -> None:
    file = project.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = source.format(**values) if values else source
    file.write_text("\n".join(line[4:] for line in lines.splitlines()), "utf-8")


def pin(project: pytest.Pytester, pins: dict[str, object]) -> None:
    (project.path / "reports" / "baseline").mkdir(parents=True)
    (project.path / "reports" / "baseline" / "pins.json").write_text(json.dumps(pins))


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "no:cacheprovider", *options)


def records(project: pytest.Pytester) -> dict[str, dict[str, object]]:
    run = json.loads((project.path / "reports" / "latest" / "claims.json").read_text("utf-8"))
    return {record["key"]: record for record in run["records"]}
