"""The page of all committed runs: current, complete, without photos of data sets."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdfia.claims import judge
from rdfia.claims.ledger import committed_runs
from rdfia.claims.record import Record
from rdfia.claims.registry import ANSWERS, CLAIMS
from rdfia.data import files
from rdfia.errors import ArgumentError
from rdfia.report import blocks, figures, overview, overview_pictures
from rdfia.report.blocks import Picture
from rdfia.report.overview import Check
from rdfia.report.overview_pictures import Shown
from tests.unit.report.test_page import Links

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
CLAIM = CLAIMS["tme8.q3.segmentation"]  # above 0.5
NAME, BOUND = next(iter(CLAIM.bounds.items()))
Runs = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    if not (ROOT / "reports" / "verified" / "cpu" / "gans" / "figures").is_dir():
        pytest.skip("the sdist has no pictures of runs: clone the project")
    return committed_runs(ROOT)


@pytest.fixture(scope="module")
def shown(runs: Runs) -> list[Shown]:
    return overview_pictures.pictures(ROOT, runs)


@pytest.fixture(scope="module")
def html(runs: Runs, shown: list[Shown]) -> str:
    return overview.html(runs, shown)


def test_committed_page_is_that_of_the_committed_records(html: str) -> None:
    committed = (DOCS / "index.html").read_text("utf-8")
    assert committed == html, "docs/index.html has drifted from the records: make page"


def test_committed_chart_is_that_of_the_committed_records(runs: Runs) -> None:
    chart = overview.chart(runs)
    assert (DOCS / "claims.svg").read_text("utf-8") == chart, "make page"
    drawn = re.findall(r'<text x="12" y="12">(.+?)</text>', chart)
    assert drawn == [claim.id for claim in CLAIMS.values() if claim.scope == "report"]


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        (["undecided", "supported"], "supported"),
        (["supported", "contradicted"], "supported"),
        (["undecided", "contradicted"], "contradicted"),
        (["undecided"], "undecided"),
    ],
)
def test_chart_draws_an_estimate_of_the_states_outcome(outcomes: list[str], shown: str) -> None:
    checks = tuple(checked(outcome) for outcome in outcomes)
    decided = overview._deciding_estimate(overview.Sentence(CLAIMS[checks[0].record.id], checks))
    assert decided is not None
    assert decided[0].outcome == shown
    assert overview._deciding_estimate(overview.Sentence(CLAIMS["tme7.q1.total"], ())) is None


def test_changed_record_changes_the_page(runs: Runs, shown: list[Shown], html: str) -> None:
    for change in ("value", "outcome"):
        changed = copy.deepcopy(runs)
        record = next(r for _, run in changed for r in run["records"] if r.id == "tme8.q2.noise")
        if change == "value":
            record.parts[0]["value"] += 0.001
        else:
            record.outcome = "unavailable"
        assert overview.html(changed, shown) != html


def test_committed_pictures_are_those_of_the_records(shown: list[Shown]) -> None:
    paths = [DOCS / one.picture.file for one in shown]
    assert sorted(paths) == sorted((DOCS / "pictures").iterdir()), "make page"
    for one, path in zip(shown, paths, strict=True):
        with Image.open(path) as image:
            assert image.size == (one.width, one.height), path.name
            if image.format == "PNG":
                assert path.read_bytes() == one.source.read_bytes(), path.name
                continue
            got = np.asarray(image.convert("RGB").reduce(4), dtype=float)
        with Image.open(one.source) as image:
            expected = np.asarray(image.convert("RGB").reduce(4), dtype=float)
        # blocks of 4 x 4 pixels: WebP with losses moves single pixels of noise, not their means
        assert np.abs(got - expected).mean() < 4, path.name


def test_page_is_small_and_loads_nothing(html: str) -> None:
    size = sum(path.stat().st_size for path in (DOCS / "pictures").iterdir()) + len(html.encode())
    assert size < 6e6
    assert len(html.encode()) < 6e5
    assert re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html) == []
    assert html.count("<img") == html.count("<img loading=lazy width=")


def test_links_have_anchors_and_pictures_have_files(html: str) -> None:
    found = Links(html)
    assert found.stack == []
    assert set(found.targets) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert found.files
    assert all((DOCS / file).is_file() for file in found.files)


def test_every_answer_sentence_and_figure_is_on_the_page(html: str) -> None:
    found = set(Links(html).ids)
    assert {f"{row['lab']}-{row['answer']}" for row in ANSWERS} <= found
    assert {f"{blocks.slug(name)}-claim" for name in CLAIMS} <= found
    assert {f"figure{number}" for number in overview.FIGURES} <= found


def test_every_sentence_of_the_report_has_its_french_words(html: str) -> None:
    for claim in CLAIMS.values():
        assert bool(claim.french) == (claim.scope == "report"), claim.id
    for row in ANSWERS:
        assert bool(row.get("french")) == (not row["executable"]), row
    words = sum(bool(claim.french) for claim in CLAIMS.values())
    assert html.count("<blockquote lang=fr>") == words + sum("french" in row for row in ANSWERS)


def test_single_run_is_named_once(html: str) -> None:
    texts = re.findall(r"\(one run\)</b> <span class=small>([^<]*n&nbsp;=[^<]*)<", html)
    assert texts
    assert [text for text in texts if "run" in text] == []


def test_no_photo_of_a_data_set_is_published(shown: list[Shown]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "reports/verified"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("no git repository, which knows the committed pictures: clone it")
    tracked = set(listed.stdout.split())
    assert {one.source.relative_to(ROOT).as_posix() for one in shown} <= tracked


@pytest.mark.parametrize(
    "name", ["figure1-a", "figure5-a", "figure10-a", "mistakes", "figure7-readings-a"]
)
def test_photo_that_is_on_this_machine_is_left_out(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "verified" / "cpu"
    png = figures.png(figures.losses([[1.0, 2.0, 0.5, 0.5]]))
    for file in (name, "figure12-a"):
        files.write_atomic(folder / "figures" / f"{file}.png", png)
    rows = [{"file": f"figures/{file}.png"} for file in (name, "figure12-a")]
    record = Record(CLAIM.id, outcome="supported", figures=rows)
    run = {"records": [record], "environment": {}}
    found = overview_pictures.pictures(tmp_path, [("cpu", run)])
    assert [one.source.stem for one in found] == ["figure12-a"]
    ignored = subprocess.run(
        ["git", "check-ignore", f"reports/verified/cpu/figures/{name}.png"], cwd=ROOT, check=False
    )
    assert ignored.returncode != 1, f".gitignore has no {name}"


def test_checkout_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--all: got no claims"):
        overview.write(tmp_path)


def test_written_page_removes_pictures_that_it_no_longer_shows(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "verified" / "cpu"
    record = checked("supported", figures=[{"file": "figures/figure12-a.png", "alt": "a"}]).record
    files.write_json(folder / "claims.json", {"records": [record.as_json()], "environment": {}})
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    files.write_atomic(folder / "figures" / "figure12-a.png", buffer.getvalue())
    files.write_atomic(tmp_path / "docs" / "pictures" / "old.png", buffer.getvalue())
    (tmp_path / "docs" / "pictures" / ".a.png.killed.part").mkdir()  # while it was written
    page = overview.write(tmp_path)
    assert [path.name for path in (page.parent / "pictures").iterdir()] == ["cpu-figure12-a.webp"]
    assert 'src="pictures/cpu-figure12-a.webp"' in page.read_text("utf-8")


def test_checkout_without_pictures_gets_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "verified" / "cpu"
    record = checked("supported").record
    files.write_json(folder / "claims.json", {"records": [record.as_json()], "environment": {}})
    assert overview.write(tmp_path).is_file()


# --- states, sentences, the matrix


def part(value: float = 0.6, low: float = 0.45, high: float = 0.75) -> dict[str, Any]:
    return {
        "name": NAME,
        "bound": str(BOUND),
        "outcome": "undecided",
        "value": value,
        "low": low,
        "high": high,
        "n": 10,
        "method": "planted",
        "level": 0.99,
    }


def checked(outcome: str, scope: str = "report", torch: str = "2.13.0", **values: Any) -> Check:
    values = {"parts": [part()], "bounds": judge.bounds_digest({NAME: BOUND}), **values}
    record = Record(CLAIM.id, outcome=outcome, scope=scope, **values)
    return Check(record, "cpu", {"torch": torch})


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([], "not measured"),
        (["report supported"], "holds"),
        (["report supported", "substitute contradicted"], "holds"),
        (["report supported", "report undecided"], "holds in part"),
        (["report supported", "report contradicted"], "holds in part"),
        (["report contradicted", "report undecided"], "does not hold"),
        (["report undecided", "substitute supported"], "undecided"),
        (["substitute supported"], "holds"),
        (["substitute contradicted"], "does not hold"),
        (["substitute contradicted", "substitute undecided"], "undecided"),
        (["ours supported"], "not measured"),
    ],
)
def test_state_of_a_sentence(outcomes: list[str], state: str) -> None:
    checks = [checked(*reversed(text.split())) for text in outcomes]
    assert overview.state_of(CLAIM, checks) == state


def test_full_runs_come_before_short_ones_and_stale_records_are_left_out() -> None:
    short = checked("contradicted", profile="short").record
    full, other = (checked("supported", profile="full", case=case).record for case in ("", "b"))
    stale = checked("supported", profile="full", case="c", bounds="other").record
    absent = Record(CLAIM.id, case="d", outcome="unavailable", profile="full", note="no weights")
    runs: Runs = [
        ("cpu/short", {"records": [short], "environment": {}}),
        ("cpu/full", {"records": [full, other, stale, absent], "environment": {}}),
    ]
    (found,) = (row for row in overview.sentences(runs) if row.claim.id == CLAIM.id)
    assert [check.record for check in found.checks] == [full, other]
    assert [check.record for check in found.others] == [short]
    assert [record.case for record in found.missing] == ["d"]


def test_matrix_has_a_column_for_each_condition() -> None:
    checks = (
        checked("supported", dtype="float32"),
        checked("undecided", dtype="bfloat16 (Adam float32)"),
        checked("contradicted", dtype="float32", torch="2.15.1"),
    )
    row = overview.Sentence(CLAIM, checks)
    columns, lines = overview.matrix([row])
    assert columns == [
        ("cpu", "float32", "2.13"),
        ("cpu", "bfloat16", "2.13"),
        ("cpu", "float32", "2.15"),
        ("cuda", "", ""),
    ]
    assert lines == [["holds", "undecided", "does not hold", ""]]
    on_cuda = checked("supported", dtype="bfloat16 and float32", device="cuda")
    columns, _ = overview.matrix([overview.Sentence(CLAIM, (on_cuda,))])
    assert columns == [("cuda", "float32", "2.13"), ("cuda", "bfloat16", "2.13")]


@pytest.mark.parametrize(
    ("dtype", "products", "types"),
    [
        ("", "float32", ["exact"]),
        ("", "TF32", ["exact"]),
        ("float32", "float32", ["float32"]),
        ("float32", "TF32", ["tf32"]),
        ("TF32", "float32", ["tf32"]),
        ("float64", "TF32", ["float64"]),
        ("float16", "float32", ["float16"]),
        ("float8_e4m3fn", "float32", ["float8_e4m3fn"]),
        ("bfloat16 (Adam float32)", "TF32", ["bfloat16"]),
        ("bfloat16 and float32", "TF32", ["bfloat16", "tf32"]),
        ("float16, float32", "float32", ["float16", "float32"]),
    ],
)
def test_compute_types_are_those_of_the_record_and_of_its_products(
    dtype: str, products: str, types: list[str]
) -> None:
    check = checked("supported", dtype=dtype, device="cuda")
    check.environment["float32 products"] = products
    assert check.columns == [("cuda", kind, "2.13") for kind in types]


def test_columns_of_unknown_types_come_last_in_a_fixed_order() -> None:
    types = ["float8_e5m2", "float64", "", "float8_e4m3fn", "float16", "bfloat16"]
    checks = tuple(checked("supported", dtype=dtype) for dtype in types)
    columns, _ = overview.matrix([overview.Sentence(CLAIM, checks)])
    shown = ["bfloat16", "float16", "exact", "float64", "float8_e4m3fn", "float8_e5m2", ""]
    assert [kind for _, kind, _ in columns] == shown


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"device": "cuda", "accelerator": "a GPU", "cpu": "x", "threads": 2}, "a GPU"),
        ({"cpu": "x", "torch computes with": "AVX2", "threads": 1}, "x, AVX2, 1 thread"),
        ({"cpu": "x", "threads": 11}, "x, 11 threads"),
    ],
)
def test_processor_of_a_run(environment: dict[str, Any], text: str) -> None:
    assert overview.processor(environment) == text


def test_page_lists_what_a_check_contradicts_and_what_is_on_a_substitute() -> None:
    records = [
        checked(outcome, scope, case=outcome).record
        for outcome, scope in (("supported", "substitute"), ("contradicted", "substitute"))
    ]

    def page_of(*shown: Record) -> str:
        return overview.html([("cpu/a", {"records": [*shown], "environment": {}})], [])

    link = f'href="#{blocks.slug(CLAIM.id)}-claim">{CLAIM.id}</a>.</p>'
    in_part = f"with a check that contradicts them: <a {link}"
    assert in_part in page_of(*records)
    assert in_part not in page_of(records[0])
    assert "; 1 on a substitute only" in page_of(records[0])
    assert "on a substitute only</span></li>" not in page_of(checked("supported").record)
    assert 'data-scope="substitute"' in page_of(records[0])


def test_runs_count_the_checks_that_the_page_shows() -> None:
    stale = checked("supported", bounds="other").record
    former = dataclasses.replace(stale, id="tme7.q99.removed")
    records = [checked("supported").record, stale, former]
    run = {"records": records, "environment": {"date": "today"}}
    assert [row[:4] for row in overview._run_rows([("a", run)])] == [["a", "today", None, 1]]
    assert overview._run_rows([("a", {**run, "records": [stale]})]) == []


# --- what is undecided, figures


def test_undecided_estimates_come_in_the_order_of_what_would_decide_them() -> None:
    ends = [(0.6, 0.45, 0.75), (0.7, 0.45, 0.95), (0.5001, 0.4, 0.6), (1.5, -math.inf, math.inf)]
    check = checked("undecided", parts=[part(*values) for values in ends])
    decided = checked("supported", parts=[part(0.7, 0.6, 0.8) | {"outcome": "supported"}])
    found = overview._undecided([overview.Sentence(CLAIM, (check, decided))])
    values = {kind: [row["value"] for _, _, row in rows] for kind, rows in found.items()}
    assert values == {"more": [0.7, 0.6], "far": [0.5001], "one": [1.5]}
    # 10 images * (0.25 / 0.2)^2, rounded up
    assert found["more"][0][0] == 16 / 10


def test_titles_of_figures_differ_and_later_pictures_say_what_they_are(html: str) -> None:
    titles = re.findall(r"<h4>(Figure \d+: .*?)</h4>", html)
    assert len(titles) == len(set(titles)) == len(overview.FIGURES)
    assert "<h4>Drawn as Figure 17: cDCGAN by step</h4>" in html


def test_pictures_of_a_check_name_its_case_and_stand_at_its_sentence() -> None:
    def picture(section: str, claim: str, height: int) -> Shown:
        return Shown(Picture(f"{claim}/case"), section, Path(f"{section}.png"), 100, height)

    shown = [
        picture("figure12", CLAIM.id, 100),
        picture("figure13", CLAIM.id, 200),
        picture("compared", CLAIM.id, 50),
        picture("figure12", "tme8.q2.noise", 50),
    ]
    anchors: set[str] = set()
    first = overview._figures_of(shown, {CLAIM.id}, anchors)
    assert [(row["anchor"], row["beside"]) for row in first["figures"]] == [
        ("figure12", True),
        ("figure13", False),
    ]
    assert [one.case for one in first["further"]] == ["case"]
    (later,) = overview._figures_of(shown, {"tme8.q2.noise"}, anchors)["figures"]
    assert (later["anchor"], later["pictures"]) == ("", [shown[3]])
    assert later["title"] == "Drawn as Figure 12: momentum 0.9"
    assert shown[3].case == ""


# --- bars


@pytest.mark.parametrize(
    ("ends", "marks"),
    [
        # the scale: an eighth of the span is free on each side
        ((0.9, 0.7, 1.3), {"low": 30.0, "value": 50.0, "high": 90.0, "from": 10.0, "to": 100.0}),
        ((0.5, 0.5, 0.5), {"low": 50.0, "value": 50.0, "high": 50.0, "from": 50.0, "to": 100.0}),
        (
            (1.5, -math.inf, math.inf),
            {"low": 0.0, "value": 90.0, "high": 100.0, "from": 10.0, "to": 100.0},
        ),
        (("nan", "nan", "nan"), {"from": 50.0, "to": 100.0}),
    ],
)
def test_bar_has_its_marks_where_the_values_are(ends: Any, marks: dict[str, float]) -> None:
    record = checked("undecided").record
    assert str(BOUND) == "above 0.5"
    assert blocks.bar_marks(record, part(*ends)) == marks


def test_bar_of_a_bound_that_has_changed_has_no_edge() -> None:
    record = checked("undecided").record
    assert set(blocks.bar_marks(record, {**part(), "bound": "above 0.4"})) == {
        "low",
        "value",
        "high",
    }


def test_bar_within_a_margin_has_two_edges() -> None:
    claim, (name, bound) = next(
        (claim, item)
        for claim in CLAIMS.values()
        for item in claim.bounds.items()
        if item[1].direction == "within"
    )
    edges = bound.value - bound.margin, bound.value + bound.margin
    row = {**part(bound.value, *edges), "name": name, "bound": str(bound)}
    marks = blocks.bar_marks(Record(claim.id), row)
    assert (marks["from"], marks["to"]) == (10.0, 90.0)
