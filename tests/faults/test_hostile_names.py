"""Hostile names of files, in archives and in records harm no folder, terminal or page."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rdfia.__main__ import main
from rdfia.claims import record as claim_records
from rdfia.data import downloads, images
from rdfia.data import files as data_files
from rdfia.errors import AssetCorrupt, ImageError, StoreError, printable
from rdfia.report import page as report_page
from tests.faults import readers, victims
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

Fault = Callable[..., None]


NAMES = (
    "two\nlines.png",
    "\x1b[31mred\x1b[0m.png",
    "\u202egnp.exe.png",
    "..png.png",
    "<b>bold<b>.png",
    "a\tb\r.png",
)


def test_hostile_names_are_escaped_in_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault
) -> None:
    """No name in a message may break a line, colour the terminal, or reverse the text."""
    withstood = 0
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no photo")
        with pytest.raises(ImageError) as caught:
            images.read_image(path)
        withstood += "\n" not in str(caught.value) and printable(str(caught.value)) == str(
            caught.value
        )
    assert main(["extract", str(tmp_path / "photos")]) == 1
    message = capsys.readouterr().err
    lines = message.splitlines()
    assert printable(message) == message
    assert [line for line in lines if not line.startswith(("rdfia: ", "  "))] == []
    fault(
        "names with line breaks, colours and turned text",
        tried=len(NAMES),
        withstood=withstood,
        means="escaped in every message",
        found={"said": lines},
    )


OUTSIDE = (
    "../{}",
    "./../{}",
    "/tmp/{}",
    "15-Scene/../../{}",
    "15-Scene/MITcoast/../../../{}",
    "..\\{}",
    "C:\\{}",
    "\\\\server\\{}",
)


def add(name: str | zipfile.ZipInfo, content: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda bundle: bundle.writestr(name, content)


def unpacked(folder: Path, more: Callable[[zipfile.ZipFile], None]) -> tuple[str, list[Path]]:
    """The message for 15-Scene's archive with a member added, and the files afterwards."""
    folder.mkdir()
    path = folder / "scene15.zip"
    path.write_bytes(readers.archive(readers.MEMBERS))
    with zipfile.ZipFile(path, "a") as bundle:
        more(bundle)
    message = "unpacked"
    try:
        downloads.write_folder(
            folder / "in" / "scene15", downloads.scene15_members(path, readers.SPLIT)
        )
    except AssetCorrupt as error:
        message = str(error)
    return message, sorted(
        found for found in folder.rglob("*") if found.is_file() and found != path
    )


def test_paths_in_an_archive_cannot_leave_its_folder(tmp_path: Path, fault: Fault) -> None:
    """Names like photos, which the reader unpacks, and other names, which it skips."""
    message, files = unpacked(tmp_path / "whole", lambda _: None)
    assert (message, len(files)) == ("unpacked", len(readers.MEMBERS)), (
        "the archive is right but for what is added"
    )
    refused = {}
    names = [
        path.format(name) for path in OUTSIDE for name in ("MITcoast/image_0004.jpg", "passwd")
    ]
    for number, name in enumerate(names):
        message, files = unpacked(tmp_path / str(number), add(name, "x"))
        if "leaves the folder" in message and not files:
            refused[name] = message
    fault(
        "paths in an archive that leave its folder",
        tried=len(names),
        withstood=len(refused),
        found=refused,
        means="an error names the member; no file was written, inside or outside",
    )


def test_links_in_an_archive_are_refused(tmp_path: Path, fault: Fault) -> None:
    refused = {}
    targets = ("/etc/passwd", "../../../secret", "image_0001.jpg")
    for number, target in enumerate(targets):
        link = zipfile.ZipInfo(readers.MEMBERS[0].replace("0001", "0004"))
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        message, files = unpacked(tmp_path / str(number), add(link, target))
        if "is a link" in message and not files:
            refused[target] = message
    fault(
        "links in an archive",
        tried=len(targets),
        withstood=len(refused),
        found=refused,
        means="an error names the member; no file was written",
    )


def test_a_name_in_an_index_cannot_leave_its_folder(tmp_path: Path, fault: Fault) -> None:
    victims.train(tmp_path / "work")
    index = tmp_path / "work" / "tiny" / "training.json"
    state = data_files.read_json(index)
    (tmp_path / "work" / state["file"]).write_bytes((index.parent / state["file"]).read_bytes())
    names = (
        f"../{state['file']}",
        f"/{state['file']}",
        str(tmp_path / "work" / state["file"]),
        f"./../{state['file']}",
        "..",
        "",
    )
    found = dict[str, str]()
    for name in names:
        data_files.write_json(index, {**state, "file": name})
        try:
            victims.train(tmp_path / "work")
        except StoreError as error:
            found[name] = str(error)
    named = [name for name, message in found.items() if "training.json" in message]
    fault(
        "a name in a checkpoint's index that leaves its folder",
        tried=len(names),
        withstood=len(named),
        found=found,
        means="an error names the index, although a valid file is there",
    )


# Attributes whose value is an address.
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "data", "poster", "xlink:href")


class Elements(HTMLParser):
    """The tags, and the attributes that could run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [
            f"{name}={value}"
            for name, value in attrs
            if name.startswith("on")
            or (name in ADDRESSES and (value or "").lower().startswith(("javascript:", "data:")))
        ]


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ("<a href='JavaScript:x'>", 1),
        ("<form action='javascript:x'>", 1),
        ("<img src='data:x' onerror=x>", 2),
        ("<svg aria-label='javascript:x'>", 0),
        ("<a href='#x' title='data:x'>", 0),
    ],
)
def test_attributes_that_run_or_load_something_are_found(text: str, active: int) -> None:
    found = Elements()
    found.feed(text)
    assert len(found.active) == active


HARM = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre><iframe>",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "a\nb",
    "../../x",
)


def test_the_page_escapes_all_texts_of_records(tmp_path: Path, fault: Fault) -> None:
    """Each text of a record in turn is hostile, then all of them.

    The page has the same tags as without them.
    """
    record = claim_records.Record(
        "tme7.q1.total",
        case="x",
        expected="e",
        measured="m",
        outcome="supported",
        note="n",
        parts=[readers.RECORD_PART],
        failure="f",
        data="d",
        weights="w",
        unit="u",
        code="c",
        bounds="b",
        evidence={"classes": ["a", "b"], "matrix": [[1, 2], [0, 3]], "label": "l"},
        figures=[{"file": "figures/figure1-x.png", "caption": "c", "alt": "a"}],
    )
    environment = {
        "date": "2026",
        "device": "cpu",
        "cpu": "x",
        "profile": "short",
        "torch": "t",
        "python": "p",
        "assets": [{"name": "n", "source": "s"}],
    }
    faults = {
        "a name": {
            "tried": 1,
            "withstood": 1,
            "means": "m",
            "found": {"k": "v"},
            "date": "d",
            "profile": "p",
        }
    }

    def page(harm: str) -> Elements:
        def put(value: Any, keys: tuple[str, ...] = ()) -> Any:
            if isinstance(value, dict):
                names = {k: (harm or k) if k in ("label", "a name", "k") else k for k in value}
                return {names[k]: put(v, (*keys, k)) for k, v in value.items()}
            if isinstance(value, list):
                return [put(item, keys) for item in value]
            fixed = keys[-1:] in (
                ("id",),
                ("key",),
                ("outcome",),
                ("verdict",),
                ("device",),
                ("lab",),
                ("scope",),
            )
            return harm if harm and isinstance(value, str) and not fixed else value

        run = put({"environment": environment, "thresholds": {}, "records": [record.as_json()]})
        (tmp_path / "claims.json").write_text(json.dumps(run))
        (tmp_path / "faults.json").write_text(
            json.dumps(put({"environment": environment, "rows": faults}))
        )
        found = Elements()
        found.feed(report_page.rebuild(tmp_path).read_text("utf-8"))
        return found

    usual = page("")
    wrong: dict[str, object] = {}
    for harm in HARM:
        made = page(harm)
        if (tags := sorted(set(made.tags) - set(usual.tags))) or len(made.active) > len(
            usual.active
        ):
            wrong[harm] = [tags, made.active]
    fault(
        "texts that would be markup, on the page",
        tried=len(HARM),
        withstood=len(HARM) - len(wrong),
        found=wrong,
        means="no element or script that does not belong to the page",
    )
