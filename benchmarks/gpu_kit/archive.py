"""One archive of records and figures, a summary to read, and what `receive` does with them on the
other side.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdfia.data import files as data_files
from rdfia.errors import ArgumentError, StoreError, TooLarge

NAME = "records.tar.gz"
SPEED = Path("speed", "benchmarks.json")
LIMIT = 16 * 2**20  # bytes of the archive: what comes back may have no larger file
# in the order of worth; nothing else is kept
KINDS = (".json", ".txt", ".html", ".safetensors", ".png")
# bytes of an archive that a file takes beside its content, compressed far less than that
HEADERS = 1024


def _worth(path: Path) -> tuple[int, int]:
    return KINDS.index(path.suffix), path.stat().st_size


def pack(folder: Path, to: Path, limit: int = LIMIT) -> list[str]:
    """Packs the records below `folder` into the file `to`, records before figures, small files
    before large ones.

    Returns the names of what was left out, so that the archive has at most `limit` bytes. TooLarge:
    it has more.
    """
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file() and path.suffix in KINDS), key=_worth
    )
    left, out, taken = 0.98 * limit, list[str](), list[Path]()
    for path in files:
        size = len(zlib.compress(path.read_bytes(), 6)) + HEADERS
        if size > left:
            out.append(path.relative_to(folder).as_posix())
        else:
            left -= size
            taken.append(path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in sorted(taken):
            tar.add(path, path.relative_to(folder).as_posix())
    if len(data := buffer.getvalue()) > limit:
        raise TooLarge(
            f"{to.name} has {len(data):,} bytes, at most {limit:,} come back: run fewer --steps"
        )
    data_files.write_atomic(to, data)
    return out


# --- the summary
# ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    try:
        return data_files.read_json(path) if path.exists() else None
    except StoreError:  # a step that was ended may leave one half-written
        return None


def misses(row: Mapping[str, Any]) -> list[str]:
    """What a row of the benchmarks was meant to reach, and did not: words for each."""
    said, wanted = [], row["wanted"]
    if wanted["speed-up"] < wanted["at least"]:
        said.append(
            f"{wanted['speed-up']:.2f} times as fast ({wanted['low']:.2f} to {wanted['high']:.2f}), "
            f"wanted {wanted['at least']:g}"
        )
    best = list(row["columns"].values())[-1]
    if best.get("share", 1.0) < best.get("share wanted", 0.0):
        said.append(
            f"{best['share']:.2f} of the matrix product's rate, wanted {best['share wanted']:g}"
        )
    return said


def _counted(words: Sequence[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or "none"


def _machine(records: Path) -> dict[str, Any]:
    machine = (_read(records / "environment.json") or {"environment": {}})["environment"]
    found = {name: machine[name] for name in ("date", "torch", "code", "commit") if name in machine}
    return {**found, **({"card": machine["accelerator"]} if machine else {})}


def _parity(records: Path) -> dict[str, Any]:
    rows = (_read(records / "parity.json") or {"rows": []})["rows"]
    beyond = [
        "{quantity}, {arithmetic}: {error:.2g}, at most {limit:g} {note}".format(**row).strip()
        for row in rows
        if not row["holds"]
    ]
    return {"parity": {"rows": len(rows), "beyond": beyond}}


def _speed(records: Path) -> dict[str, Any]:
    run = _read(records / SPEED) or {"rows": [], "deferred": {}}
    ratios = {
        row["name"]: {
            title: round(column["speed-up"], 2) for title, column in row["columns"].items()
        }
        for row in run["rows"]
    }
    missed = {row["name"]: said for row in run["rows"] if (said := misses(row))}
    return {
        "speed": ratios,
        "misses": missed,
        "deferred rows": run["deferred"] | run.get("failed", {}),
    }


def _claims(records: Path) -> dict[str, Any]:
    runs = {path.parent.name: _read(path) for path in sorted(records.glob("*/claims.json"))}
    said = {
        name: {
            "verdicts": _counted([record["verdict"] for record in run["records"]]),
            "failed": [record["failure"] for record in run["records"] if record["failure"]],
        }
        for name, run in runs.items()
        if run and run["records"]
    }
    return {"claims": said}


NOTHING: dict[str, Any] = {
    "card": "unknown",
    "date": "",
    "torch": "",
    "code": "",
    "commit": "",
    "speed": {},
    "misses": {},
    "deferred rows": {},
    "parity": {"rows": 0, "beyond": []},
    "claims": {},
}


def summary(records: Path, whole: dict[str, Any]) -> dict[str, Any]:
    """What the records say, in short: `whole` has device, minutes, kit and steps; the rest is read
    from them.

    A record that is not what it should be is named in `unreadable`, and costs its part alone.
    """
    found: dict[str, Any] = {**NOTHING, **whole, "unreadable": [], "left out": []}
    for part in (_machine, _parity, _speed, _claims):
        try:
            found |= part(records)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found["unreadable"].append(f"{part.__name__.strip('_')}: {error!r}")
    return found


def text(found: Mapping[str, Any]) -> str:
    """The summary as a person reads it."""
    where = "{card} ({device}), torch {torch}, {date}, commit {commit}".format(**found)
    lines = [where, ""]
    lines += [
        f"{step['name']:<14}{step['state']:<13}{step['seconds']:>7} s  {step['note']}"
        for step in found["steps"]
    ]
    lines += [
        "",
        f"parity: {found['parity']['rows']} rows, {len(found['parity']['beyond'])} beyond their limit",
    ]
    lines += [f"  {line}" for line in found["parity"]["beyond"]]
    for name, columns in found["speed"].items():
        lines.append(
            f"{name}: {', '.join(f'{value:g} ({title})' for title, value in columns.items())}"
        )
        lines += [f"  missed: {line}" for line in found["misses"].get(name, ())]
    lines += [f"{name}: {why}" for name, why in found["deferred rows"].items()]
    for name, run in found["claims"].items():
        lines += [
            "",
            f"claims of {name}: {run['verdicts']}",
            *(f"  {line}" for line in run["failed"]),
        ]
    lines += ["", "kit: " + (", ".join(_named(row) for row in found["kit"]["unpacked"]) or "none")]
    lines += [f"  {line}" for line in found["kit"]["problems"]]
    lines += [f"could not be read: {said}" for said in found["unreadable"]]
    lines += [f"left out of the archive: {name}" for name in found["left out"]]
    return "\n".join(lines) + "\n"


def _named(row: Mapping[str, str]) -> str:
    return f"{row['name']} ({row['changed']})" if row["changed"] else row["name"]


def save(records: Path, out: Path, whole: dict[str, Any], limit: int = LIMIT) -> None:
    """Leaves archive, summary.json and summary.txt in `out`, of the records that there are now."""
    records.mkdir(parents=True, exist_ok=True)
    found = summary(records, whole)
    # its place in the archive, also where that is full
    data_files.write_json(records / "summary.json", found)
    found["left out"] = pack(records, out / NAME, limit)
    if found["left out"]:
        data_files.write_json(records / "summary.json", found)
        pack(records, out / NAME, limit)
    data_files.write_json(out / "summary.json", found)
    data_files.write_atomic(out / "summary.txt", text(found).encode())


# --- the other side
# -------------------------------------------------------------------------------------------------


def receive(path: Path, root: Path) -> Path:
    """Unpacks an archive below `root`/cuda; returns that folder. Records that are there of other
    steps and rows stay.

    ArgumentError: it is no archive of a run, its run was not on CUDA, or the records that are there
    are another card's.
    """
    with tempfile.TemporaryDirectory(prefix="rdfia-received-") as temporary:
        try:
            with tarfile.open(path) as tar:
                tar.extractall(temporary, filter="data")
            found = json.loads(Path(temporary, "summary.json").read_text())
            device, card = found["device"], found["card"]
        except (OSError, tarfile.TarError, ValueError, KeyError, EOFError, zlib.error) as error:
            raise ArgumentError(
                f"{path} is no archive of a run ({error}); expected the {NAME} of `run`"
            ) from error
        if device != "cuda":
            raise ArgumentError(
                f"{path} is of a run on {device}, a rehearsal; only runs on cuda are evidence of CUDA"
            )
        target = root / "cuda"
        kept = _read(target / "summary.json")
        if kept and kept["card"] != card:
            raise ArgumentError(
                f"{target} holds the records of {kept['card']}, these are of {card}: move those away"
            )
        if not re.search(r"\w", card) or card in ("none", "unknown"):
            raise ArgumentError(
                f"{path} names no card: its step `environment` failed, see logs/environment.txt in it"
            )
        rows = _read(target / SPEED)
        shutil.copytree(temporary, target, dirs_exist_ok=True)
    if rows and (now := _read(target / SPEED)) != rows:
        from benchmarks.duel import joined

        data_files.write_json(target / SPEED, joined(rows, now))
    if kept:
        data_files.write_json(target / "summary.json", summary(target, _together(kept, found)))
    return target


def _together(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs say of themselves: a step that was not begun in the later one is that of the
    run before.
    """
    steps = {step["name"]: step for step in kept["steps"]}
    steps |= {
        step["name"]: step
        for step in now["steps"]
        if step["name"] not in steps or step["state"] not in ("deferred", "unavailable")
    }
    kit = {
        name: [
            *kept["kit"][name],
            *(row for row in now["kit"][name] if row not in kept["kit"][name]),
        ]
        for name in ("unpacked", "problems")
    }
    return {
        "device": now["device"],
        "minutes": kept["minutes"] + now["minutes"],
        "kit": kit,
        "steps": list(steps.values()),
    }
