"""Every reader of files, with valid files for it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, features

from rdfia.claims import judge
from rdfia.claims import record as claim_records
from rdfia.data import assets, datasets, downloads, feature_store, files, images, photo_files
from rdfia.errors import RdfiaError
from rdfia.gans import runs
from rdfia.gans.training import Trainer
from rdfia.models import networks, weights
from rdfia.report import comparison, page
from tests.faults import victims
from tests.faults.alterations import altered, altered_gzip, altered_png, altered_tensors

RECORD_PART = {  # of an invented record
    "name": "p",
    "bound": "above 0.5",
    "outcome": "undecided",
    "value": 0.6,
    "low": 0.4,
    "high": 0.8,
    "n": 9,
    "method": "m",
    "level": 0.99,
}


class Reader(NamedTuple):
    """A reader of files, and valid files for it.

    `corpus` are the valid files. `read` gets a folder with one altered file, called `file` or
    `name`. Where a checksum would refuse every change, `alter` updates the checksum, so that the
    code behind it is reached.
    """

    name: str
    corpus: list[bytes]
    read: Callable[[Path], object]
    share: float = 1.0  # of the inputs; slow readers get fewer
    alter: Callable[[bytes, random.Random], bytes] = altered
    file: str = ""


def saved(write: Callable[[Path], object], folder: Path, name: str) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def photos(kind: str) -> list[bytes]:
    chance = np.random.default_rng(0)
    found = []
    modes = {
        "PPM": ("L", "RGB"),
        "JPEG": ("L", "RGB", "CMYK"),
        "BMP": ("1", "P", "RGB"),
        "GIF": ("P",),
        "WEBP": ("L", "RGB", "RGBA"),
        "JPEG2000": ("L", "RGB", "RGBA", "I;16"),
        "AVIF": ("L", "RGB", "RGBA"),
    }
    for mode in modes.get(kind, ("L", "RGB", "RGBA", "P", "I;16")):
        size = (24, 40)
        buffer = io.BytesIO()
        if mode == "I;16":
            image = Image.fromarray(chance.integers(0, 2**16, size, dtype=np.uint16))
        else:
            image = Image.fromarray(chance.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(
                mode
            )
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def undecoded() -> list[str]:
    """The formats of photos that this Pillow lacks: AVIF before 11.3, others by its build."""
    Image.init()
    lacks = [
        kind for kind in photo_files.FORMATS if kind not in Image.OPEN or kind not in Image.SAVE
    ]
    # Pillow registers it without its library.
    return lacks if features.check_codec("jpg_2000") else [*lacks, "JPEG2000"]


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "features.0.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "features.0.bias": torch.zeros(4),
        "classifier.6.bias": torch.ones(2).bfloat16(),
    }


NETWORK, PART = "squeezenet1_1", "features.0."  # 7 kB; 90 kB for AlexNet


def network_weights() -> dict[str, torch.Tensor]:
    """The first layer of a real network, which is a valid file on its own."""
    state = networks.build(NETWORK, seed=0).state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith(PART)}


def torch_files() -> list[bytes]:
    found = []
    for old in (False, True):
        buffer = io.BytesIO()
        torch.save(network_weights(), buffer, _use_new_zipfile_serialization=not old)
        found.append(buffer.getvalue())
    return found


def flax_file() -> bytes:
    kernel, bias = (value.numpy() for value in network_weights().values())
    layer = {"kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), "bias": bias}
    tree = {
        "SqueezeNet_0": {"Conv_0": layer},
        "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 2, 1), "f4")}},
    }
    return pickle.dumps(tree, protocol=3).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )


def idx(*shape: int) -> bytes:
    header = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    return header + bytes(i % 10 for i in range(int(np.prod(shape))))


def archive(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in names:
            bundle.writestr(name, b"\xff\xd8 a photo" * 20)
    return buffer.getvalue()


SPLIT = {
    "Coast": {"archive": "MITcoast", "images": 3, "train": "1 2"},
    "Office": {"archive": "PARoffice", "images": 2, "train": "1"},
}
MEMBERS = [
    f"15-Scene/{folder}/image_{i:04d}.jpg"
    for folder, n in (("MITcoast", 3), ("PARoffice", 2))
    for i in range(1, n + 1)
]


def run_json() -> bytes:
    curve = {"C": [1, 2], "test": [0.5, 0.6], "converged": [True, False]}
    evidence = {
        "network": "vgg16",
        "accuracy": {"relu1_1": 0.5},
        "classes": ["a", "b"],
        "matrix": [[1, 2], [0, 3]],
        "rows": [{"recipe": "a", "validation": 0.5, "test": 0.6, "n": 10}],
    }
    figures = [{"file": "figures/figure1-x.png", "caption": "c", "alt": "a"}]
    record = claim_records.Record(
        "tme7.q1.total",
        case="x",
        measured=curve,
        outcome="undecided",
        parts=[RECORD_PART],
        right={"p": judge.pack_bits([True, False] * 5)},
        images="i",
        evidence=evidence | curve,
        figures=figures,
    )
    environment = {
        "date": "2026",
        "device": "cpu",
        "cpu": "x",
        "profile": "short",
        "assets": [{"name": "digits"}],
    }
    thresholds = {"a": {"accuracy": 0.5, "n": 10, "images": "i", "bits": "AAA="}}
    run = {"environment": environment, "thresholds": thresholds, "records": [record.as_json()]}
    return json.dumps(claim_records.as_plain(run)).encode()


def benchmarks_json() -> bytes:
    column = {"ours": "ours", "peer": "usual", "dtype": "float32", "rate": 10.0}
    samples = [{"ours": [0.1, 0.2], "usual": [0.3]}, {"ours": [0.1], "usual": [0.3, 0.2]}]
    row = {"name": "a step", "unit": "steps", "columns": {"best": column}, "samples": samples}
    return json.dumps({"rows": [row], "environment": {"date": "2026", "assets": []}}).encode()


def readers(folder: Path) -> list[Reader]:
    """Every reader with its corpus; `folder` gets the other files that they need."""

    def photo(here: Path) -> None:
        (path,) = here.iterdir()
        images.STRETCH_224.pixels(path)

    absent = undecoded()
    kinds = [kind for kind in photo_files.FORMATS if kind not in absent]
    found = [Reader(f"photo.{kind.lower()}", photos(kind), photo) for kind in kinds]

    found.append(
        Reader(
            "photo.png, its checksums right", photos("PNG"), photo, 1.0, altered_png, "photo.png"
        )
    )

    def both(here: Path, name: str) -> None:
        weights.read(here / name, NETWORK)
        weights.load(here / name, NETWORK, part=PART)

    def stamp(tensors: dict[str, torch.Tensor]) -> bytes:
        return saved(
            lambda path: files.save_tensors(path, tensors, {"made": "today"}),
            folder,
            "stamped.safetensors",
        )

    stamped, layer = stamp(tensors()), stamp(network_weights())
    victims.train(folder / "gan")
    (checkpoint,) = (folder / "gan" / "tiny").glob("step-*.safetensors")
    index = (folder / "gan" / "tiny" / "training.json").read_bytes()
    x = torch.randint(
        0, 256, (30, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )

    def resume(here: Path) -> None:
        for name, data in (("training.json", index), (checkpoint.name, checkpoint.read_bytes())):
            if not (here / name).exists():
                (here / name).write_bytes(data)
        Trainer(victims.GAN, x, torch.arange(30) % 3).load(here)

    def compared(here: Path) -> None:
        for name, data in (("claims.json", run_json()), ("benchmarks.json", benchmarks_json())):
            (here / name).write_bytes(data)
        found = comparison.compare(here, here / "b.json")
        _ = [*comparison.as_text(found), *comparison.as_markdown(found)]
        comparison.as_page(found)

    run = replace(victims.RUN, grids=(25,))

    def scored(work: Path, evidence: Path) -> dict[str, Any]:
        return runs.scored_run(
            run,
            x,
            torch.arange(30) % 3,
            lambda _: {"score": 1.0},
            scores_version="one",
            checkpoint_every=25,
            work=work,
            evidence=evidence,
        )

    made = scored(folder / "gan", folder / "kept")

    def memo(here: Path) -> None:
        with set_environment(RDFIA_CACHE=str(here)):
            assets.find("digits")

    def mnist(here: Path) -> None:
        for part in ("train", "t10k"):
            for kind, shape in (("images-idx3", (20, 28, 28)), ("labels-idx1", (20,))):
                path = here / f"{part}-{kind}-ubyte"
                if not path.exists():
                    path.write_bytes(idx(*shape))
        datasets.mnist(here)

    filled = feature_store.FeatureStore(
        folder / "features", 4, {"tap": 3, "other": 1}, torch.float32
    )
    filled.write(0, {"tap": torch.arange(12.0).view(4, 3), "other": torch.ones(4, 1)})

    def shard(here: Path) -> None:
        made = feature_store.FeatureStore(here, 4, filled.widths, torch.float32)
        # Reading relies on the header, so that a damaged one is reached here.
        with contextlib.suppress(RdfiaError):
            _ = made["tap"]
        made.is_complete(0)  # removes a damaged shard
        _ = made["other"]

    losses = folder / "kept" / f"{run.name}.safetensors"
    grid = folder / "kept" / f"{run.name}-25.png"
    # This name ends in a label.
    table = gzip.compress(b"\n".join(b",".join([b"%d" % (i % 10)] * 785) for i in range(5000)), 1)
    found += [
        Reader("weights.pth", torch_files(), lambda here: both(here, "weights.pth")),
        Reader("weights.ckpt", [flax_file()], lambda here: both(here, "weights.ckpt")),
        Reader("weights.safetensors", [layer], lambda here: both(here, "weights.safetensors")),
        Reader(
            "weights.safetensors, well formed",
            [layer],
            lambda here: both(here, "weights.safetensors"),
            1.0,
            altered_tensors,
            "weights.safetensors",
        ),
        Reader(
            "tensors.safetensors",
            [stamped],
            lambda here: files.load_tensors(here / "tensors.safetensors"),
        ),
        Reader("shard-00000.safetensors", [filled.path(0).read_bytes()], shard),
        Reader(
            "shard-00000.safetensors, its checksum right",
            [filled.path(0).read_bytes()],
            shard,
            0.5,
            altered_tensors,
            "shard-00000.safetensors",
        ),
        Reader("value.json", [run_json()], lambda here: files.read_json(here / "value.json")),
        Reader(
            "claims.json", [run_json()], lambda here: claim_records.read_run(here / "claims.json")
        ),
        Reader("b.json", [run_json(), benchmarks_json()], compared, 0.3),
        Reader("training.json", [index], resume, 0.5),
        Reader(checkpoint.name, [checkpoint.read_bytes()], resume, 0.5),
        Reader(
            f"{checkpoint.name}, its checksum right",
            [checkpoint.read_bytes()],
            resume,
            0.5,
            altered_tensors,
            checkpoint.name,
        ),
        Reader(
            f"{run.name}.json",
            [json.dumps(made).encode()],
            lambda here: scored(here / "nowhere", here),
            0.3,
        ),
        Reader(losses.name, [losses.read_bytes()], lambda here: runs.losses_of(run, here)),
        Reader(
            f"{losses.name}, its checksum right",
            [losses.read_bytes()],
            lambda here: runs.losses_of(run, here),
            0.5,
            altered_tensors,
            losses.name,
        ),
        Reader(grid.name, [grid.read_bytes()], lambda here: runs.grid_of(run, 25, here)),
        Reader(
            f"{grid.name}, its checksums right",
            [grid.read_bytes()],
            lambda here: runs.grid_of(run, 25, here),
            1.0,
            altered_png,
            grid.name,
        ),
        Reader(
            assets.MANIFEST,
            [b'{"digits": {"path": "x", "sha256": "y", "source": "z"}}'],
            assets._manifest,
            0.3,
        ),
        Reader("digests.json", [b'{"a": "b"}'], memo, 0.3),
        Reader("train-images-idx3-ubyte", [idx(20, 28, 28)], mnist),
        Reader("train-labels-idx1-ubyte", [idx(20)], mnist),
        Reader("digits.csv.gz", [table], lambda here: datasets.digits(here / "digits.csv.gz"), 0.3),
        Reader(
            "digits.csv, packed anew",
            [table],
            lambda here: datasets.digits(here / "digits.csv.gz"),
            0.1,
            altered_gzip,
            "digits.csv.gz",
        ),
        Reader(
            "scene15.zip",
            [archive(MEMBERS)],
            lambda here: list(downloads.scene15_members(here / "scene15.zip", SPLIT)),
        ),
        Reader(
            "packed.gz",
            [gzip.compress(bytes(5000)), gzip.compress(bytes(range(256)) * 20)],
            lambda here: downloads.decompress_gzip(
                here / "packed.gz", here / "unpacked", limit=10**6
            ),
        ),
        Reader(
            "page.json",
            [run_json()],
            lambda here: page.rebuild(rename(here, "page.json", "claims.json")),
            0.1,
        ),
    ]
    return found


@contextlib.contextmanager
def set_environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def rename(folder: Path, old: str, new: str) -> Path:
    (folder / old).replace(folder / new)
    return folder
