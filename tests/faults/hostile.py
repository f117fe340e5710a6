"""Thousands of hostile or damaged files for every reader, which may only raise our errors.

    python -m tests.faults.hostile FOLDER INPUTS SEED

prints one JSON object: the number of refused and accepted files for each reader, every other
outcome with the number that makes it again (`one(FOLDER, reader, SEED, number)`), the longest
reading and the peak memory of the process.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
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

MOST_SECONDS = 2.0
MOST_BYTES = 10**9
DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    "",
    "x" * 5000,
    "../../../etc/passwd",
    "a\nb\x1b[31m\u202e",
    [],
    {},
    [[]],
    {"": 0},
    DEEP,
)


def altered(data: bytes, chance: random.Random) -> bytes:
    """One to four changes of a file: of bits, sizes in headers, length, or the order of parts."""
    most = max(2 * 10**6, 2 * len(data))
    for _ in range(chance.choice((1, 1, 2, 4))):
        n = len(data)
        at, to = sorted((chance.randrange(n + 1), chance.randrange(n + 1)))
        kind = chance.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + chance.randbytes(chance.randrange(1, 40)) + data[at:]
        elif kind == 2:
            data = data[:at] + data[to:]
        elif kind == 3:
            data = data[:to] + data[at:]
        elif kind == 4:
            width, order = chance.choice((2, 4, 8)), chance.choice(("<", ">"))
            value = chance.choice(
                (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
            ) % 2 ** (8 * width)
            # Sizes are usually at the beginning.
            place = chance.choice((at, chance.randrange(min(n, 64) + 1)))
            data = (
                data[:place]
                + struct.pack(order + {2: "H", 4: "I", 8: "Q"}[width], value)
                + data[place + width :]
            )
        elif kind == 5:
            data = chance.randbytes(chance.randrange(200))
        elif n:
            many = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                many[chance.randrange(n)] ^= chance.randrange(1, 256)
            data = bytes(many)
        data = data[:most]
    return data


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


# --- valid files


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
    part = {
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
    record = claim_records.Record(
        "tme7.q1.total",
        case="x",
        measured=curve,
        outcome="undecided",
        parts=[part],
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


# --- alterations


def with_checksums(data: bytes) -> bytes:
    """A PNG with the right checksum for each chunk, as far as the lengths allow."""
    made = bytearray(data)
    at = 8
    while (end := at + 8 + int.from_bytes(made[at : at + 4], "big")) + 4 <= len(made):
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


def altered_png(data: bytes, chance: random.Random) -> bytes:
    """An altered PNG with right checksums, or another image of some size and mode."""
    if chance.random() < 0.7:
        return with_checksums(altered(data, chance))
    size = (chance.randrange(1, 200), chance.randrange(1, 200))
    buffer = io.BytesIO()
    Image.new(chance.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16")), size).save(buffer, "PNG")
    return buffer.getvalue()


def altered_gzip(data: bytes, chance: random.Random) -> bytes:
    """The content is altered and compressed again."""
    return gzip.compress(altered(gzip.decompress(data), chance), 1)


def altered_tensors(data: bytes, chance: random.Random) -> bytes:
    """A file with a checksum in which one to three tensors, or metadata, are replaced."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        found, metadata = files.load_tensors(path)
        for _ in range(chance.choice((1, 1, 2, 3))):
            name = chance.choice(sorted(found) or [""])
            kind = chance.randrange(8)
            value = found.pop(name, torch.zeros(3))
            if kind == 0:
                continue
            if kind == 1:
                name = chance.choice(
                    (name + "x", name[:-1], "x" * 5000, "\x1b[31m\n", *found, *metadata)
                )
            elif kind == 2:
                value = value.to(
                    chance.choice(
                        (torch.float64, torch.int32, torch.uint8, torch.bool, torch.bfloat16)
                    )
                )
            elif kind == 3:
                value = value.float() * chance.choice((math.nan, math.inf, 1e38, 0.0))
            elif kind == 4:
                value = value.flatten()[: chance.randrange(3)]
            elif kind == 5:
                value = value.reshape(*reversed(value.shape)) if value.ndim > 1 else value[None]
            elif kind == 6:
                value = torch.cat([value.flatten()] * 2)
            elif metadata:
                metadata[chance.choice(sorted(metadata))] = chance.choice(
                    ("", "0", "x" * 5000, "\x1b[31m\n")
                )
            found[name] = value
        files.save_tensors(path, {name: value.clone() for name, value in found.items()}, metadata)
        return path.read_bytes()


def altered_json(data: bytes, chance: random.Random) -> bytes:
    """The document with one to three values replaced, and keys removed or added."""
    value = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        part: Any = value
        for _ in range(chance.randrange(8)):
            below = [
                v
                for v in (part.values() if isinstance(part, dict) else part)
                if isinstance(v, dict | list) and v
            ]
            if not below:
                break
            part = chance.choice(below)
        if isinstance(part, dict | list) and part:
            key = (
                chance.choice(list(part)) if isinstance(part, dict) else chance.randrange(len(part))
            )
            if chance.random() < 0.2:
                del part[key]
            else:
                # A copy: later changes may reach into it, and it must not change for other numbers.
                part[key] = json.loads(json.dumps(chance.choice(ODD)))
        if chance.random() < 0.05:
            return json.dumps(chance.choice(ODD)).encode()
    return json.dumps(value).encode()


def hostile(reader: Reader, seed: int, number: int) -> bytes:
    if number < len(reader.corpus):
        return reader.corpus[number]
    chance = random.Random(f"{seed} {reader.name} {number}")
    data = chance.choice(reader.corpus)
    if ".json" in reader.name and chance.random() < 0.7:
        return altered_json(data, chance)
    return reader.alter(data, chance)


def one(folder: Path, reader: Reader, seed: int, number: int) -> str:
    """Reads one altered file: "accepted", the name of our error, or what went wrong.

    The first numbers are the unaltered corpus: a reader that refuses it would hide the code behind
    its first check.
    """
    here = folder / "here"
    here.mkdir()
    (here / (reader.file or reader.name)).write_bytes(hostile(reader, seed, number))
    start = time.process_time()  # not affected by other work on the machine
    try:
        reader.read(here)
        found = "accepted"
    except RdfiaError as error:
        found = type(error).__name__
        if number < len(reader.corpus):
            found = f"WRONG: refused although unaltered: {error}"
        if any(ord(c) < 32 and c != "\n" for c in str(error)):
            found = f"WRONG: a message with control characters: {str(error)!r}"[:300]
    except BaseException as error:
        found = f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - start
    if seconds > MOST_SECONDS:
        found = f"WRONG: {seconds:.1f} s"
    for path in sorted(here.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    here.rmdir()
    one.longest = max(getattr(one, "longest", 0.0), seconds)  # type: ignore[attr-defined]
    return found


def peak() -> int:
    """The peak memory of this process in bytes.

    getrusage would return the parent's where that is larger.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def main(folder: Path, inputs: int, seed: int) -> dict[str, Any]:
    # Only errors count here, not warnings.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def too_long(*_: object) -> None:
        raise TimeoutError("over 20 s")

    signal.signal(signal.SIGALRM, too_long)
    folder.mkdir(parents=True, exist_ok=True)
    every = readers(folder)
    base = peak()
    total = sum(reader.share for reader in every)
    counts: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for reader in every:
        count = counts[reader.name] = Counter[str]()
        before = peak()
        for number in range(len(reader.corpus) + math.ceil(inputs * reader.share / total)):
            signal.alarm(20)
            found = one(folder, reader, seed, number)
            signal.alarm(0)
            count[found.partition(":")[0]] += 1
            if found.startswith("WRONG"):
                wrong.append(f"{reader.name} {number}: {found}")
        if peak() - before > 10**8:
            print(f"{reader.name}: {(peak() - before) / 1e6:.0f} MB more", file=sys.stderr)
    return {
        "inputs": sum(sum(count.values()) for count in counts.values()),
        "wrong": wrong,
        "seed": seed,
        "readers": {name: dict(count) for name, count in counts.items()},
        "formats that this Pillow lacks": undecoded(),
        "longest, s": round(one.longest, 2),  # type: ignore[attr-defined]
        "memory before, MB": base // 10**6,
        "most memory, MB": peak() // 10**6,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
