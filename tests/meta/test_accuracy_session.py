"""The accuracy session in small projects with planted faults: it fails for each, and only then."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import ROOT
from tests.support.small_projects import MEASURES, NEEDS, PIN, pin, pinned, records, run, write


def test_outcome_of_the_pin_passes_and_is_written(project: pytest.Pytester) -> None:
    write(project, MEASURES, value=13)
    pin(project, PIN)
    result = run(project, "-m", "accuracy and tme7")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["reproduced*tme7.q1.total: convolutions 13*1/1*", "reports/latest/index.html"]
    )
    assert records(project)["tme7.q1.total"]["verdict"] == "reproduced"
    page = (project.path / "reports" / "latest" / "index.html").read_text("utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("outcome", ["supported", "contradicted"])
def test_outcome_other_than_the_pin_fails(project: pytest.Pytester, outcome: str) -> None:
    write(project, MEASURES, value=13 if outcome == "contradicted" else 12)
    pin(project, pinned(outcome))
    result = run(project)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"*tme7.q1.total: convolutions 1?,*equals 13*its pin is {outcome}*--accept*"]
    )
    assert records(project)["tme7.q1.total"]["pinned"] == outcome
    assert "This run failed" in (project.path / "reports" / "latest" / "index.html").read_text(
        "utf-8"
    )


def test_becoming_undecided_fails_only_if_the_pin_was_far_from_the_bound(
    project: pytest.Pytester,
) -> None:
    write(
        project,
        """
    import pytest
    from rdfia.claims.intervals import proportion
    @pytest.mark.claim("tme8.q3.segmentation")
    def test_shares(claim):
        found = {{"share of a mask in the right quarter": proportion({count}, 100)}}
        claim.measured(found, scope="substitute")
    """,
        "tests/accuracy/test_tme8_planted.py",
        count=64,
    )
    assert run(project, "--accept").ret == 0
    file = project.path / "tests" / "accuracy" / "test_tme8_planted.py"
    file.write_text(file.read_text().replace("64", "60"))
    near = run(project)
    assert near.ret == 0
    near.stdout.fnmatch_lines(["undecided*tme8.q3.segmentation: *[[]its pin is supported[]]*"])
    taken = run(project, "--accept")  # a full run's record needs a pin of its outcome
    taken.stdout.fnmatch_lines(["accepted tme8.q3.*: supported -> undecided (it has another*"])
    file.write_text(file.read_text().replace("60", "72"))
    assert run(project, "--accept").ret == 0
    pins = project.path / "reports" / "baseline" / "pins.json"
    row = json.loads(pins.read_text())
    (key,) = row
    assert row[key]["errors from bound"] < 5
    row[key]["errors from bound"] = 5.0
    pins.write_text(json.dumps(row))
    file.write_text(file.read_text().replace("72", "60"))
    assert run(project).ret == 1


def test_interval_at_another_level_fails(project: pytest.Pytester) -> None:
    write(
        project,
        """
    import pytest
    from rdfia.claims.intervals import proportion
    @pytest.mark.claim("tme8.q3.segmentation")
    def test_shares(claim):
        claim.measured({"share of a mask in the right quarter": proportion(640, 1000, 0.95)})
    """,
    )
    result = run(project, "--accept")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*tme8.q3.segmentation*have no interval at 99%*"])


def test_missing_pin_fails_until_accepted(project: pytest.Pytester) -> None:
    write(project, MEASURES, value=12)
    assert run(project).ret == 1
    baseline = project.path / "reports" / "baseline"
    assert run(project, "--accept", "--stored-runs").ret == 0
    assert not (baseline / "costs.json").exists()  # nothing was trained
    (baseline / "pins.json").unlink()
    accepted = run(project, "--accept")
    assert accepted.ret == 0
    accepted.stdout.fnmatch_lines(["accepted tme7.q1.total|short|report: None -> contradicted*"])
    costs = json.loads((baseline / "costs.json").read_text())
    assert [list(rows) for rows in costs["short"]["own"].values()] == [["tme7.q1.total"]]
    assert run(project).ret == 0


def test_check_that_does_not_fit_is_deferred_and_fails_under_require_all(
    project: pytest.Pytester,
) -> None:
    write(project, MEASURES, value=13)
    pin(project, PIN)
    costs = {"short": {"own": {"cpu float32": {"tme7.q1.total": 1e9}}}}
    (project.path / "reports" / "baseline" / "costs.json").write_text(json.dumps(costs))
    late = run(project, "--minutes", "0.1")
    assert late.ret == 1  # nothing was measured
    late.stdout.fnmatch_lines(
        ["deferred*tme7.q1.total: it would take about * min here*--minutes 0.1*more minutes*"]
    )
    late.stdout.fnmatch_lines(["1 checks were deferred*", "deferred 1"])
    late.stdout.no_fnmatch_line("SKIPPED*")  # the reason is above, and the counts stay in sight
    run(project, "--minutes", "0.0001").stdout.fnmatch_lines(
        ["deferred*tme7.q1.total: the 0.0001 minutes of --minutes have passed; give more*"]
    )
    assert records(project)["tme7.q1.total"]["verdict"] == "deferred"
    assert "deferred" in (project.path / "reports" / "latest" / "index.html").read_text("utf-8")
    run(project, "--minutes", "0.1", "--require", "all").stdout.fnmatch_lines(
        ["*--require all, but: it would take*"]
    )
    assert run(project, "--minutes", "1e9").ret == 0


@pytest.fixture
def two(project: pytest.Pytester) -> pytest.Pytester:
    """A project with a check whose asset is missing, and then one that has the outcome of its pin.

    The second one failed in the last run.
    """
    write(project, NEEDS, "tests/accuracy/test_tme7_first.py")
    write(project, MEASURES, value=13)
    pin(project, PIN)
    cache = project.path / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text('{"tests/accuracy/test_tme7_planted.py::test_total": true}')
    return project


def test_check_that_failed_first_is_deferred_by_its_own_cost(two: pytest.Pytester) -> None:
    costs = {"short": {"own": {"cpu float32": {"tme7.q1.total": 1e9, "tme7.q3.animals": 1.0}}}}
    (two.path / "reports" / "baseline" / "costs.json").write_text(json.dumps(costs))
    late = two.runpytest_inprocess("--failed-first", "--minutes", "0.1")
    late.stdout.fnmatch_lines(["deferred*tme7.q1.total: it would*", "unavailable*tme7.q3.animals*"])


def test_claims_in_several_processes_are_refused(
    two: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    result = two.runpytest_subprocess("-n", "1", "--benchmark-disable")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*each process would replace the records of the others*"])
    assert not (two.path / "reports" / "latest").exists()


def test_missing_asset_skips_unless_required(project: pytest.Pytester) -> None:
    write(project, MEASURES, value=13)
    write(project, NEEDS, "tests/accuracy/test_tme7_animals.py")
    pin(project, PIN)
    result = run(project)
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0
    assert "assets fetch vgg16-full" in str(records(project)["tme7.q3.animals"]["note"])
    required = run(project, "--require", "vgg16-full")
    required.assert_outcomes(passed=1, failed=1)
    required.stdout.fnmatch_lines(["*tme7.q3.animals: --require vgg16-full, but: *"])


def test_run_without_measurements_fails(project: pytest.Pytester) -> None:
    write(project, NEEDS)
    result = run(project, "-m", "accuracy")
    result.assert_outcomes(skipped=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["FAILED: nothing was measured*"])
    assert run(project, "-m", "accuracy and tme9").ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("body", ["pass", "pytest.skip('not today')"])
def test_claim_without_record_fails(project: pytest.Pytester, body: str) -> None:
    write(
        project,
        """
    import pytest
    @pytest.mark.claim("tme7.q1.total")
    def test_total(claim):
        {body}
    """,
        body=body,
    )
    run(project).assert_outcomes(failed=1)


def test_recorded_verdict_is_not_shown_as_measured(project: pytest.Pytester) -> None:
    write(
        project,
        """
    import pytest
    @pytest.mark.claim("tme7.best")
    def test_best(claim):
        assert claim.recorded()
    """,
    )
    old = {
        "id": "tme7.best",
        "outcome": "contradicted",
        "scope": "ours",
        "profile": "full",
        "code": "abc",
    }
    folder = project.path / "reports" / "verified" / "cpu"
    folder.mkdir(parents=True)
    text = json.dumps({"environment": {"date": "2026-01-02"}, "records": [old]})
    (folder / "claims.json").write_text(text)
    assert run(project, "--device", "cpu").ret == 1  # nothing was measured
    record = records(project)["tme7.best"]
    assert record["verdict"] == "recorded"
    assert record["recorded"] == {
        "outcome": "missed",
        "date": "2026-01-02",
        "code": "abc",
        "folder": "cpu",
        "changed": True,
        "stale": True,
    }


def test_layer_with_other_right_images_fails(project: pytest.Pytester) -> None:
    write(
        project,
        """
    import numpy as np
    import pytest
    from rdfia.claims.intervals import exact_value
    @pytest.mark.claim("tme7.q1.total")
    def test_alexnet(claim):
        claim.measured({{"convolutions": exact_value(13)}})
        claim.compare_right_images("alexnet/pool5/scene15", np.arange(2985) >= {wrong}, "digest")
    """,
        wrong=390,
    )
    assert run(project).ret == 1
    assert run(project, "--accept").ret == 0
    assert run(project).ret == 0
    file = project.path / "tests" / "accuracy" / "test_tme7_planted.py"
    usual = file.read_text()
    for wrong in ("360", "420"):  # one point of accuracy more, and one less
        file.write_text(usual.replace("390", wrong))
        result = run(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*/pool5/scene15: accuracy 0.8*: *too many the same way*"])
