"""The archive of records and figures with its summary, and the command that receives it."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdfia.data import files as data_files
from rdfia.errors import ArgumentError, StoreError, TooLarge

NAME = "records.tar.gz"
SPEED = Path("speed", "benchmarks.json")
LIMIT = 16 * 2**20  # bytes of the archive: the other machine returns no larger file
SUFFIXES = (".json", ".txt", ".html", ".safetensors", ".png")  # the most important first
HEADERS = 1024  # bytes of a file in an archive besides its content; an upper limit


def _priority(path: Path) -> tuple[int, int]:
    return SUFFIXES.index(path.suffix), path.stat().st_size


def pack(folder: Path, to: Path, limit: int = LIMIT) -> list[str]:
    """Packs the records below `folder` into the file `to`; returns the names of files left out.

    Records go before figures, small files before large ones, up to `limit` bytes. TooLarge: the
    archive has more all the same.
    """
    records = [
        path
        for path in folder.rglob("*")
        # not what a step was writing when it was ended
        if path.is_file() and path.suffix in SUFFIXES and path.parent.suffix != ".part"
    ]
    left = 0.98 * limit
    left_out, taken = list[str](), list[Path]()
    for path in sorted(records, key=_priority):
        size = len(zlib.compress(path.read_bytes(), 6)) + HEADERS
        if size > left:
            left_out.append(path.relative_to(folder).as_posix())
        else:
            left -= size
            taken.append(path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in sorted(taken):
            tar.add(path, path.relative_to(folder).as_posix())
    if len(data := buffer.getvalue()) > limit:
        raise TooLarge(
            f"{to.name} has {len(data):,} bytes, but at most {limit:,} can be returned: "
            "run fewer --steps"
        )
    data_files.write_atomic(to, data)
    return left_out


# --- the summary


def _read(path: Path) -> Any:
    try:
        return data_files.read_json(path) if path.exists() else None
    except StoreError:  # a step that was stopped may leave a file half-written
        return None


def misses(row: Mapping[str, Any]) -> list[str]:
    """The targets that a row of the benchmarks missed, a text for each."""
    lines = []
    wanted = row["wanted"]
    if wanted["speed-up"] < wanted["at least"]:
        lines.append(
            "{speed-up:.2f} times as fast ({low:.2f} to {high:.2f}), wanted {at least:g}".format(
                **wanted
            )
        )
    best = list(row["columns"].values())[-1]
    if best.get("share", 1.0) < best.get("share wanted", 0.0):
        lines.append(
            f"{best['share']:.2f} of the matrix product's rate, wanted {best['share wanted']:g}"
        )
    return lines


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
    ratios = dict[str, dict[str, float]]()
    missed = dict[str, list[str]]()
    for row in run["rows"]:
        columns = row["columns"].items()
        ratios[row["name"]] = {title: round(column["speed-up"], 2) for title, column in columns}
        if lines := misses(row):
            missed[row["name"]] = lines
    return {
        "speed": ratios,
        "misses": missed,
        "deferred rows": run["deferred"] | run.get("failed", {}),
    }


def _claims(records: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(records.glob("*/claims.json")):
        rows = (_read(path) or {"records": []})["records"]
        if rows:
            counts = Counter(row["verdict"] for row in rows)
            found[path.parent.name] = {
                "verdicts": ", ".join(f"{n} {verdict}" for verdict, n in counts.items()),
                "failed": [row["failure"] for row in rows if row["failure"]],
            }
    return {"claims": found}


EMPTY: dict[str, Any] = {
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


def summary(records: Path, run_facts: dict[str, Any]) -> dict[str, Any]:
    """The summary of the records; `run_facts` has device, minutes, kit and steps of the run.

    A record of another form is named in `unreadable`; only its part of the summary is empty.
    """
    found: dict[str, Any] = {**EMPTY, **run_facts, "unreadable": [], "left out": []}
    for part in (_machine, _parity, _speed, _claims):
        try:
            found |= part(records)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found["unreadable"].append(f"{part.__name__.strip('_')}: {error!r}")
    return found


def text(found: Mapping[str, Any]) -> str:
    """The summary as text."""
    where = "{card} ({device}), torch {torch}, {date}, commit {commit}".format(**found)
    lines = [where, ""]
    parity = found["parity"]
    lines += [
        f"{step['name']:<14}{step['state']:<13}{step['seconds']:>7} s  {step['note']}"
        for step in found["steps"]
    ]
    lines += [
        "",
        "parity: {rows} rows, {n} beyond their limit".format(**parity, n=len(parity["beyond"])),
    ]
    lines += [f"  {line}" for line in parity["beyond"]]
    for name, columns in found["speed"].items():
        ratios = [f"{value:g} ({title})" for title, value in columns.items()]
        lines.append(f"{name}: {', '.join(ratios)}")
        lines += [f"  missed: {line}" for line in found["misses"].get(name, ())]
    lines += [f"{name}: {why}" for name, why in found["deferred rows"].items()]
    for name, run in found["claims"].items():
        lines += [
            "",
            f"claims of {name}: {run['verdicts']}",
            *(f"  {line}" for line in run["failed"]),
        ]
    kit = [f"{row['name']} ({row['changed'] or 'unchanged'})" for row in found["kit"]["unpacked"]]
    lines += ["", "kit: " + (", ".join(kit) or "none")]
    lines += [f"  {line}" for line in found["kit"]["problems"]]
    lines += [f"could not be read: {error}" for error in found["unreadable"]]
    lines += [f"left out of the archive: {name}" for name in found["left out"]]
    return "\n".join(lines) + "\n"


def save(records: Path, out: Path, run_facts: dict[str, Any], limit: int = LIMIT) -> None:
    """Writes archive, summary.json and summary.txt of the records so far into the folder `out`."""
    records.mkdir(parents=True, exist_ok=True)
    found = summary(records, run_facts)
    # before the archive is packed, which keeps a place for it so
    data_files.write_json(records / "summary.json", found)
    found["left out"] = pack(records, out / NAME, limit)
    if found["left out"]:
        data_files.write_json(records / "summary.json", found)
        pack(records, out / NAME, limit)
    data_files.write_json(out / "summary.json", found)
    data_files.write_atomic(out / "summary.txt", text(found).encode())


# --- receiving


def receive(path: Path, root: Path) -> Path:
    """Unpacks an archive below `root`/cuda; returns that folder.

    Earlier records of other steps and rows stay. ArgumentError: the file is not the archive of a
    run, its run was not on CUDA, or the earlier records are of another card, or their rows of
    other conditions.
    """
    with tempfile.TemporaryDirectory(prefix="rdfia-received-") as temporary:
        try:
            with tarfile.open(path) as tar:
                tar.extractall(temporary, filter="data")
            found = json.loads(Path(temporary, "summary.json").read_text())
            device = found["device"]
            card = found["card"]
        except (OSError, tarfile.TarError, ValueError, KeyError, EOFError, zlib.error) as error:
            raise ArgumentError(
                f"{path} is not the archive of a run ({error}); expected the {NAME} of `run`"
            ) from error
        if device != "cuda":
            raise ArgumentError(
                f"{path} is of a run on {device}, a rehearsal; expected a run on cuda"
            )
        target = root / "cuda"
        kept = _read(target / "summary.json")
        if kept and kept["card"] != card:
            raise ArgumentError(
                f"{target} has the records of {kept['card']}, these are of {card}: "
                "move that folder away first"
            )
        if not re.search(r"\w", card) or card in ("none", "unknown"):
            raise ArgumentError(
                f"{path} does not name its card: its step `environment` failed; "
                "see logs/environment.txt in it"
            )
        rows, now = _read(target / SPEED), _read(Path(temporary, SPEED))
        if rows and now:
            from benchmarks.record import merged

            now = merged(rows, now)
            names = [{row["name"] for row in run["rows"]} for run in (rows, now)]
            if lost := ", ".join(sorted(names[0] - names[1] - {*now.get("failed", ())})):
                raise ArgumentError(
                    f"{path} has speed rows of other code, versions or another machine than "
                    f"{target / SPEED}, whose rows would be lost: {lost}; move that folder away "
                    "first"
                )
        shutil.copytree(temporary, target, dirs_exist_ok=True)
    if now:
        data_files.write_json(target / SPEED, now)
    if kept:
        data_files.write_json(target / "summary.json", summary(target, _merged_runs(kept, found)))
    return target


def _merged_runs(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Device, minutes, kit and steps of two runs; steps that `now` did not begin are of `kept`."""
    steps = {step["name"]: step for step in kept["steps"]}
    for step in now["steps"]:
        if step["name"] not in steps or step["state"] not in ("deferred", "unavailable"):
            steps[step["name"]] = step
    kit = {}
    for name in ("unpacked", "problems"):
        rows = kept["kit"][name]
        kit[name] = [*rows, *(row for row in now["kit"][name] if row not in rows)]
    return {
        "device": now["device"],
        "minutes": kept["minutes"] + now["minutes"],
        "kit": kit,
        "steps": list(steps.values()),
    }
