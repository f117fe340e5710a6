"""Altered files: bits, sizes in headers, tensors, and values of JSON documents."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rdfia.data import files

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
