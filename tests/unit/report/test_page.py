"""The page shows the records, escapes their texts and names figures that it cannot draw."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rdfia.claims import intervals, registry
from rdfia.claims import record as claim_records
from rdfia.claims.ledger import Ledger
from rdfia.claims.record import ClaimError
from rdfia.data import files
from rdfia.errors import StoreError
from rdfia.report import blocks, environment, figures
from rdfia.report import page as report_page

EVIL = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
VERIFIED = Path(__file__).parents[3] / "reports" / "verified"
CONFUSION = {"classes": ["Coast", "Forest"], "matrix": [[90, 10], [20, 80]]}


class Links(HTMLParser):
    """Anchors, links and pictures of a page; AssertionError where tags are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.files: list[str] = []
        self.tags: list[str] = []
        self.stack: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values["href"][1:]] if values.get("href", "").startswith("#") else []
        self.files += [values["src"]] if "src" in values else []
        if tag not in ("meta", "img", "input", "link", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def estimated(name: str, outcome: str, n: int = 100) -> dict[str, Any]:
    """A part of a record: 0.6 with an interval that contains the bound, 0.5."""
    return {
        "name": name,
        "bound": "above 0.5",
        "outcome": outcome,
        "value": 0.6,
        "low": 0.45,
        "high": 0.75,
        "n": n,
        "method": "planted",
        "level": 0.99,
    }


def every_verdict(folder: Path) -> Ledger:
    """A run with every verdict, every kind of evidence, and hostile texts."""
    run = Ledger(folder, "short", "cpu", accept=True)
    sweep = {
        "C": [0.1, 1.0],
        "test": [0.8, 0.9],
        "validation": [0.7, 0.8],
        "converged": [True, False],
    }
    row = {
        "row": "Relu2",
        "report": registry.TABLE1[0].accuracy,
        "reading": "second",
        "tap": "relu1_2",
        "accuracy": 0.706868,
    }
    ablation = {
        "rows": [
            {
                "recipe": "pool5",
                "C": 1.0,
                "validation": 0.89,
                "test": 0.9,
                "low": 0.88,
                "high": 0.92,
            }
        ]
    }
    depth = {"network": "vgg16", "accuracy": {"relu1_1": 0.5, "pool5": 0.9}}
    for claim_id, case, outcome, scope, evidence in (
        ("tme7.q1.total", "", "supported", "report", {}),
        ("tme7.q2.output", "", "contradicted", "report", {"lowest": -1.0}),
        ("tme7.q3.animals", EVIL, "supported", "substitute", {}),
        ("tme7.q8.depth", "vgg16", "contradicted", "substitute", depth),
        ("tme7.q10.head", "", "undecided", "report", {"bars": {"head": [0.8, 0.9], "SVM": [0.9]}}),
        ("tme7.q11.table1", "Relu2", "contradicted", "report", row),
        ("tme7.q11.C", "", "contradicted", "ours", sweep),
        ("tme7.best", "", "supported", "ours", {"ablation": ablation, "confusion": CONFUSION}),
    ):
        parts = [estimated(EVIL, outcome)]
        run.new(
            claim_id,
            case,
            outcome=outcome,
            scope=scope,
            parts=parts,
            measured=0.5,
            data=EVIL,
            weights="vgg16-features",
            note=EVIL,
            evidence=evidence,
        )
    run.unavailable(
        "tme7.q11.alexnet", "", "alexnet-full is not here. Get it: rdfia assets fetch alexnet-full"
    )
    run.failed("tme7.bfloat16", "", "RuntimeError: dtype")
    row = {
        "outcome": "contradicted",
        "date": "2026-01-02",
        "code": "abc",
        "changed": True,
        "folder": "cpu",
        "stale": False,
    }
    run.add(
        claim_records.Record(
            "tme7.q6.pretrained", outcome="recorded", measured=0.5, profile="full", recorded=row
        )
    )
    run.compare_right_images("vgg16/pool5/scene15", [True] * 9 + [False], "abc")
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Path]:
    """(a run, the folder of its page): written once for all tests that only read it."""
    root = tmp_path_factory.mktemp("written")
    ledger = every_verdict(root)
    report_page.write_run(root / "out", ledger)
    return ledger, root


@pytest.fixture
def page(written: tuple[Ledger, Path]) -> str:
    return (written[1] / "out" / "index.html").read_text("utf-8")


def test_links_have_anchors_and_pictures_have_files(
    page: str, written: tuple[Ledger, Path]
) -> None:
    found, root = Links(page), written[1]
    assert found.stack == []
    assert set(found.targets) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert {f"out/{file}" for file in found.files} == {
        path.relative_to(root).as_posix() for path in (root / "out" / "figures").iterdir()
    }
    assert len(found.files) == 6  # depth, head, table 1, C, ablation, confusion
    assert "could not be drawn" not in page


def test_page_loads_nothing_and_no_text_becomes_markup(page: str) -> None:
    assert re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page) == []
    assert "@import" not in page
    assert Links(page).tags.count("script") == 1  # ours
    assert "onerror=alert(1)>" not in page
    assert "&lt;script&gt;alert(" in page


def test_verdicts_are_shown_and_counted(page: str, written: tuple[Ledger, Path]) -> None:
    for verdict, n in claim_records.count_verdicts(list(written[0].records.values())).items():
        assert f"{verdict}</span> <b>{n}</b>" in page
        assert page.count(f'data-verdict="{verdict}"') == n
    recorded = "contradicted</span> by the full run of 2026-01-02 on cpu, code abc; "
    assert f"{recorded}the code has changed since" in page
    assert "RuntimeError: dtype" in page


def test_undecided_checks_are_listed_with_the_size_that_decides(page: str, tmp_path: Path) -> None:
    assert "1 check is undecided" in page
    run = Ledger(tmp_path, "short", "cpu")
    name = "share of a mask in the right quarter"
    run.new("tme8.q3.segmentation", "a", outcome="undecided", parts=[estimated(name, "undecided")])
    run.new("tme8.q3.segmentation", "b", outcome="supported", parts=[estimated(name, "supported")])
    html = report_page.write_run(tmp_path / "near", run).read_text("utf-8")
    listed = html[html.index("1 check is undecided") : html.index("<nav>")]
    assert f"{name} 0.6 (0.45 to 0.75), to be above 0.5; n of about 225 instead of 100" in listed
    assert "tme8.q3.segmentation/a</a>" in listed
    assert "tme8.q3.segmentation/b" not in listed


def test_undecided_check_of_an_unknown_claim_is_listed(tmp_path: Path) -> None:
    run = Ledger(tmp_path, "short", "cpu")
    parts = [estimated("a bound that is gone", "undecided")]
    run.records["tme8.gone"] = claim_records.Record(
        "tme8.gone", lab="tme8", outcome="undecided", parts=parts
    )
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert "a bound that is gone 0.6 (0.45 to 0.75), to be above 0.5; more data" in html


def test_changes_after_a_result_are_shown(tmp_path: Path) -> None:
    changed = {row.id: row.changed for row in registry.CLAIMS.values() if row.changed}
    run = Ledger(tmp_path, "short", "cpu")
    for claim_id in changed:
        run.unavailable(claim_id, "", "not here")
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert html.count("Changed after a result was seen") == len(changed) > 0


def test_only_the_filters_are_hidden_without_script(page: str) -> None:
    hidden = re.findall(r"<(\w+)[^>]* hidden", page)
    assert hidden == ["form"]


def test_every_answer_is_listed_and_text_only_ones_are_marked(page: str) -> None:
    labs = {claim.lab for claim in registry.CLAIMS.values()}
    rows = [row for row in registry.ANSWERS if row["lab"] in labs]
    assert all(f'id="{row["lab"]}-{row["answer"]}"' in page for row in rows)
    assert page.count("Text only: no program can check it") == sum(
        not row["executable"] for row in rows
    )


def test_table1_shows_both_readings(page: str) -> None:
    cells = ("Relu2", "0.906868", "relu6: not measured", "relu1_2: 0.7069 (-20.0)")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_page_is_rebuilt_from_claims_json_alone(
    page: str, written: tuple[Ledger, Path], tmp_path: Path
) -> None:
    again, out = tmp_path / "again", written[1] / "out"
    files.write_json(again / "claims.json", files.read_json(out / "claims.json"))
    assert report_page.rebuild(again).read_text("utf-8") == page
    for path in (out / "figures").iterdir():
        assert (again / "figures" / path.name).read_bytes() == path.read_bytes()


def test_figures_of_gans_are_in_the_order_of_the_report(tmp_path: Path) -> None:
    run = Ledger(tmp_path, "short", "cpu", accept=True)
    scores = {
        "scores": {"distance": {"default": [1.0, 2.0], "nz 10": [1.5, "nan"]}},
        "default": "default",
    }
    steps = {
        "by_step": {"cGAN": [[25, 100], [0.1, 0.2], [0.01, 0.01]]},
        "unit": "share",
        "log": "x",
    }
    record = run.new("tme7.best", outcome="supported", evidence={"study": scores, "by": steps})
    kept = figures.png(figures.losses([[1.0, 2.0, 0.5, 0.5]]))
    numbers = [*range(20, 10, -1)]
    for number in numbers:
        files.write_atomic(tmp_path / f"out/figures/figure{number}-a.png", kept)
        record.figures.append({"file": f"figures/figure{number}-a.png", "caption": "c", "alt": "a"})
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert "could not be drawn" not in html
    found = re.findall(r'<section id="(figure\d+|study|steps)"', html)
    assert found == [
        *(f"figure{n}" for n in range(11, 17)),
        "study",
        *(f"figure{n}" for n in range(17, 21)),
        "steps",
    ]
    for number in numbers:
        section = html[html.index(f'<section id="figure{number}"') :]
        assert f"figures/figure{number}-a.png" in section[: section.index("</section>")]
    assert (tmp_path / "out/figures/study-tme7-best.png").exists()
    assert (tmp_path / "out/figures/steps-tme7-best.png").exists()


def test_git_ignores_photos_and_keeps_generated_images() -> None:
    names = [f"figure{n}{end}" for n in (1, 2, 4, 5, 10) for end in (".png", "-a.png")] + [
        "mistakes.png"
    ]
    made = [
        f"figure{n}{end}" for n in (*range(11, 21), 3, 6, 7, 8, 9) for end in (".png", "-a.png")
    ]
    paths = [f"reports/verified/cpu/tme9/figures/{name}" for name in (*names, *made)]
    root = VERIFIED.parents[1]
    git = subprocess.run(
        ["git", "check-ignore", *paths], cwd=root, capture_output=True, text=True, check=False
    )
    if git.returncode > 1:
        pytest.skip(f"no git repository: {git.stderr}")
    assert [Path(path).name for path in git.stdout.split()] == names


def test_caption_says_what_the_plot_shows(tmp_path: Path) -> None:
    run = Ledger(tmp_path, "short", "cpu", accept=True)
    steps = {"by_step": {"a": [[1, 2], [0.2, 0.3], [0.0, 0.1]]}, "unit": "coverage"}
    bars = {"bars": {"a": [0.5, 1.5]}}
    for i, evidence in enumerate((bars, {**bars, "unit": "L2 of the change"}, steps)):
        run.new("tme7.q11.C", str(i), outcome="supported", evidence=evidence)
    found = report_page.pictures(tmp_path, [*run.records.values()])
    assert [one.caption.partition(".")[0] for one in (*found["compared"], *found["steps"])] == [
        "By row: test accuracy (share, 0 to 1)",
        "By row: L2 of the change",
        "By training step: coverage",
    ]


def test_evidence_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    run = Ledger(tmp_path, "short", "cpu", accept=True)
    broken = [
        {"C": [1.0], "test": [0.5, 0.6], "converged": [True]},
        {"classes": ["a"], "matrix": 3},
        {"rows": [{"recipe": "x"}]},
        {"bars": 3},
        {"network": "vgg16", "accuracy": 0.5},
        {"network": "vgg16", "accuracy": {"a": None}},
        {"scores": {"a": {"b": [1.0]}}, "default": "c"},
        {"scores": [1], "default": "c"},
        {"by_step": [1], "unit": "share"},
    ]
    for i, evidence in enumerate(broken):
        run.new("tme7.q11.C", str(i), outcome="supported", evidence=evidence)
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert html.count("could not be drawn") == 8
    assert html.count('class="record') + html.count("class=record") == len(broken)


@pytest.mark.parametrize(
    "run", [str(path.relative_to(VERIFIED)) for path in sorted(VERIFIED.rglob("claims.json"))]
)
def test_page_of_a_committed_run_can_be_drawn(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DPI", 25)  # small pictures: to encode them takes half of the time
    for name in ("claims.json", "benchmarks.json", "power.json", "live.json", "faults.json"):
        if (kept := (VERIFIED / run).with_name(name)).exists():
            (tmp_path / name).write_bytes(kept.read_bytes())
    html = report_page.rebuild(tmp_path).read_text("utf-8")
    # the most frequent figure
    drawn = '"bars": {' in (tmp_path / "claims.json").read_text("utf-8")
    assert html.count("<img") == len(set(Links(html).files)) >= drawn
    assert "could not be" not in html
    assert ("<th>withstood</th>" in html or "<th class=n>withstood</th>" in html) == (
        tmp_path / "faults.json"
    ).exists()


def test_figures_of_a_recorded_run_are_copied(tmp_path: Path) -> None:
    kept = tmp_path / "reports" / "verified" / "cpu" / "figures" / "figure2.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"png")
    row = {
        "id": "tme7.q4.conv1",
        "outcome": "supported",
        "profile": "full",
        "figures": [{"file": "figures/figure2.png", "caption": "maps", "alt": "64 maps"}],
    }
    files.write_json(
        kept.parents[1] / "claims.json", {"environment": {"date": "2026-01-02"}, "records": [row]}
    )
    run = Ledger(tmp_path, "short", "cpu")
    run.recorded("tme7.q4.conv1")
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert (tmp_path / "out" / "figures" / "figure2.png").read_bytes() == b"png"
    assert "maps Committed run of 2026-01-02, not run now: cpu, profile full." in html
    kept.unlink()  # as for photos, which are not committed
    again = Ledger(tmp_path, "short", "cpu")
    again.recorded("tme7.q4.conv1")
    html = report_page.write_run(tmp_path / "bare", again).read_text("utf-8")
    assert "figure2.png" not in html.replace("&quot;", "")
    assert "the picture is not stored; a full run draws it again" in html


def test_environment_has_no_path_and_no_host_name(tmp_path: Path) -> None:
    found = environment.environment(tmp_path, "cpu", "short")
    text = json.dumps(found)
    import socket

    assert socket.gethostname() not in [str(value) for value in found.values()]
    assert re.search(r"(?<![\w.])/[a-z]+/", text) is None
    assert {
        "torch",
        "torchvision",
        "scikit-learn",
        "cores",
        "threads",
        "bfloat16",
        "code",
        "date",
    } <= set(found)
    assert {"name", "source", "sha256"} <= set().union(*map(set, found["assets"]))


def test_table_aligns_numbers_and_escapes() -> None:
    html = blocks.render("thresholds.html", rows=[("<a>", 1234)])
    assert "<td>&lt;a&gt;</td><td class=n>1,234</td>" in html


def test_table_of_facts_has_a_head(page: str) -> None:
    assert "<th>-</th>" not in page
    assert re.search(r"<th>fact</th>.*<td>python</td>", page)


def test_missing_records_are_an_error_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"claims\.json"):
        report_page.rebuild(tmp_path)


def test_failed_record_is_at_the_top_of_the_page(tmp_path: Path) -> None:
    run = Ledger(tmp_path, "short", "cpu")
    try:
        run.measured("tme7.q1.total", "", {"convolutions": intervals.exact_value(16)})
    except ClaimError as error:
        run.records["tme7.q1.total"].failure = str(error)
    html = report_page.write_run(tmp_path / "out", run).read_text("utf-8")
    assert (
        0 < html.index("This run failed") < html.index("it has no pin") < html.index('id="claims"')
    )


def test_mistakes_are_in_their_own_section(tmp_path: Path) -> None:
    ledger = every_verdict(tmp_path)
    image: Any = [[0, 1], [1, 0]]
    drawn = figures.png(figures.mistakes([image], ["a"], ["b"], [1.0]))
    files.write_atomic(tmp_path / "out/figures/mistakes.png", drawn)
    ledger.records["tme7.best"].figures.append(
        {"file": "figures/mistakes.png", "caption": "c", "alt": "a"}
    )
    html = report_page.write_run(tmp_path / "out", ledger).read_text("utf-8")
    place = html.index('src="figures/mistakes.png"')
    assert html.index('<section id="mistakes">') < place < html.index('id="thresholds"')
