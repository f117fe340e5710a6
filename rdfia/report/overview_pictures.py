"""The pictures of the page of all runs: which are published, and their bytes.

Photos of data sets are not published: the folder `public-photos` of reports/verified has the same
figures on photos in the public domain.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from rdfia.claims.judge import OUTCOMES
from rdfia.data import files
from rdfia.report import page
from rdfia.report.blocks import Json, Picture

# The figures of a run that show photos of its data sets; .gitignore has the same names.
PHOTOS = re.compile(
    r"figure([1245]|10)(?!\d)|mistakes|saliency-by-photo|.*-nearest|figure[6-9]-efficientnet"
    r"|figure7-readings"
)
# Pictures of these sections are shown at once, those of others on request.
MAIN = re.compile(r"figure\d+|table1|depth")
DRAWN = {section for section, *_ in page.DRAWN}
PUBLIC = "cpu/public-photos"
SMALL = 65_536  # bytes of a picture that is copied
QUALITY = 82  # of a WebP picture with losses


@dataclass(frozen=True)
class Shown:
    """A picture of the page: its file below docs, its size in pixels, and the file it is made of.

    `section`: a key of `page.TITLES`, or the key of a record.
    """

    picture: Picture
    section: str
    source: Path
    width: int
    height: int

    @property
    def main(self) -> bool:
        """Whether the picture is shown at once."""
        return bool(MAIN.match(self.section))

    @property
    def plot(self) -> bool:
        """Whether the picture has axes with small text, which needs a larger size."""
        return self.source.stem.endswith("-losses")

    @property
    def case(self) -> str:
        """The case of the picture's record; "" if the caption is its own or names it."""
        case = self.picture.key.partition("/")[2]
        named = case.rpartition(", ")[2] in self.picture.caption
        return case if self.section in DRAWN and not named else ""


def pictures(root: Path, runs: Sequence[tuple[str, Json]]) -> list[Shown]:
    """The committed pictures of the runs' records, without photos of data sets, and public ones."""
    verified = root / "reports" / "verified"
    found: dict[str, Shown] = {}

    def kept(folder: Path, name: str, *rest: Any) -> Picture:
        """The committed picture that `page` would draw: `_draw` without drawing."""
        *_, caption, record = rest
        row = {"file": f"figures/{name}.png", "caption": caption, "alt": caption}
        return page.kept_picture(folder, row, record)

    for folder, run in runs:
        parts = page.pictures(verified / folder, run["records"], kept)
        table1 = [r for r in run["records"] if r.id == "tme7.q11.table1" and r.outcome in OUTCOMES]
        if table1:
            parts["table1"] = [kept(verified / folder, "table1", page.TABLE1_CAPTION, table1[0])]
        for section, row in parts.items():
            for picture in row:
                if picture.file and not PHOTOS.match(Path(picture.file).stem):
                    shown = _shown(verified, folder, section, picture)
                    found.setdefault(shown.picture.file, shown)
    public = verified / PUBLIC / "figures.json"
    for row in files.read_json(public)["figures"] if public.exists() else ():
        key = f"{row['lab']}-{row['answer']}"
        picture = Picture(key, row["file"], row["alt"], row["caption"])
        shown = _shown(verified, PUBLIC, f"figure{row['number']}", picture)
        found.setdefault(shown.picture.file, shown)
    order = {name: i for i, name in enumerate(page.TITLES)}
    return sorted(found.values(), key=lambda shown: order.get(shown.section, len(order)))


def _shown(verified: Path, folder: str, section: str, picture: Picture) -> Shown:
    source = verified / folder / picture.file
    with Image.open(source) as image:
        width, height = image.size
    name = f"{folder.replace('/', '-')}-{source.stem}{_suffix(source)}"
    return Shown(
        replace(picture, file=f"pictures/{name}"),
        section,
        source,
        width,
        height,
    )


def _suffix(source: Path) -> str:
    with Image.open(source) as image:
        small = image.mode == "P" or source.stat().st_size < SMALL
    return source.suffix if small else ".webp"


def published(source: Path) -> bytes:
    """The bytes of a picture as the page shows it: large PNGs of photos as WebP, with small losses.

    A PNG with a palette, as `figures.png` writes it for lines and greys, is small as it is.
    """
    if _suffix(source) == source.suffix:
        return source.read_bytes()
    with Image.open(source) as image:
        pixels = image.convert("RGB")
    pixels.save(buffer := io.BytesIO(), "WEBP", quality=QUALITY)
    return buffer.getvalue()
