"""The faces of TME 9: images of CelebA's aligned photos, made once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from PIL import Image

from rdfia.data import assets
from rdfia.data import files as data_files
from rdfia.data.datasets import listed_problems, photos_in
from rdfia.data.images import Preprocess
from rdfia.errors import ArgumentError, DatasetError, ImageError


def prepare_celeba(
    source: Path,
    sizes: Sequence[int] = (32,),
    to: Path | None = None,
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None,
) -> list[str]:
    """Makes assets `celeba-S` from CelebA's aligned photos (178 x 218), and returns their names.

    The short side is resized to S, then the centre S x S is kept, in RGB: Resize(S), CenterCrop(S)
    of pytorch/examples' DCGAN. The files are PNG, because a GAN would learn JPEG's blocks of 8 x 8
    pixels (0.5 GB at 32 pixels, 1.6 GB at 64). `progress` wraps the iterator over photos. A killed
    run resumes; a folder gets its name when it is complete. Raises ArgumentError (no photos),
    DatasetError (unusable photos), StoreError, TooLarge.
    """
    paths = _celeba_photos(source)
    folders = {size: assets.folder_to_fill(to) / "data" / f"celeba-{size}" for size in sizes}
    parts = {
        size: folder.with_name(f"{folder.name}.part")
        for size, folder in folders.items()
        if not folder.is_dir()
    }

    def make(path: Path) -> str:
        try:
            for size, part in parts.items():
                if not (target := part / "faces" / f"{path.stem}.png").exists():
                    pixels = Preprocess(size, "crop", size).pixels(path).permute(1, 2, 0)
                    Image.fromarray(pixels.numpy()).save(buffer := io.BytesIO(), "PNG")
                    data_files.write_atomic(target, buffer.getvalue())
        except ImageError as error:
            return str(error)
        return ""

    # Threads, because each file waits for the disk to sync it.
    with ThreadPool(8) as pool:
        done = pool.imap(make, paths)
        bad = list(filter(None, progress(done, len(paths), "celeba") if progress else done))
    if bad:
        raise DatasetError(
            f"celeba: {len(bad)} of {len(paths)} photos cannot be used, the results of the others "
            "are kept; replace or remove these, then run the same command again:"
            f"{listed_problems(bad, 50)}"
        )
    for size, part in parts.items():
        n = len(photos_in(part / "faces"))
        if n != len(paths):
            raise DatasetError(
                f"celeba: {part} has {n} photos, expected the {len(paths)} of {paths[0].parent}: "
                f"it was started from another folder; remove {part} and run the same command again"
            )
        try:
            part.replace(folders[size])
        except OSError as error:
            raise data_files.write_error(folders[size], error) from error
    return [folder.name for folder in folders.values()]


def _celeba_photos(source: Path) -> list[Path]:
    """CelebA's aligned photos in `source` or where its archive puts them; ArgumentError: none."""
    for place in ("", "img_align_celeba", "celeba/img_align_celeba"):
        if (folder := source / place).is_dir() and (paths := photos_in(folder)):
            return paths
    raise ArgumentError(
        f"--from {source}: no photos there, nor in img_align_celeba/ or "
        "celeba/img_align_celeba/ below; expected CelebA's 000001.jpg to 202599.jpg "
        "(img_align_celeba.zip, unpacked)"
    )
