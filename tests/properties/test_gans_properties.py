"""Properties of every architecture of the three GANs and of every line of the log."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdfia.gans import architecture
from rdfia.gans.architecture import GanArchitecture
from rdfia.gans.training import log_line
from tests.support.threads import one_thread  # noqa: F401 - a fixture for the whole file

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


@st.composite
def architectures(draw: st.DrawFn, largest: int = 128) -> GanArchitecture:
    """Any of the labs' networks, narrow enough for hundreds of builds."""
    kind: Any = draw(st.sampled_from(architecture.KINDS))
    return GanArchitecture(
        kind,
        image_size=draw(st.sampled_from([size for size in architecture.SIZES if size <= largest])),
        channels=draw(st.sampled_from([1, 3])),
        classes=0 if kind == "dcgan" else draw(st.integers(2, 12)),
        nz=draw(st.integers(1, 9)),
        ngf=draw(st.integers(1, 3)),
        ndf=draw(st.integers(1, 3)),
        label_in_D=draw(st.booleans()),
        norm_D=draw(st.sampled_from(["batch", "spectral"])),
    )


@settings(max_examples=60)
@given(architectures(largest=64), st.integers(0, 2**32 - 1))
def test_parameter_counts_match_tensors(a: GanArchitecture, seed: int) -> None:
    nets = architecture.build(a, seed)
    assert architecture.parameter_counts(a) == tuple(
        sum(p.numel() for p in net.parameters()) for net in nets
    )
    for net, rows in zip(
        nets, (architecture.discriminator_rows(a), architecture.generator_rows(a)), strict=True
    ):
        layers = [
            m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        ]
        assert len(layers) == len(rows)
        assert not any(isinstance(m.bias, torch.Tensor) for m in layers)


@settings(max_examples=60)
@given(architectures(largest=64))
def test_bytes_of_a_step_count_what_the_layers_return(a: GanArchitecture) -> None:
    images = 2  # BatchNorm needs two
    nets = architecture.build(a, 0)
    values = []
    for net in nets:
        outputs: list[int] = []
        for module in net.modules():
            if isinstance(module, LAYERS):
                module.register_forward_hook(lambda _m, _x, y, kept=outputs: kept.append(y.numel()))
        values.append(outputs)
    y = torch.zeros(images, dtype=torch.int64) if a.classes else None
    nets[0](nets[1](torch.zeros(images, a.nz), y), y)
    of_D, of_G = map(sum, values)
    weights = architecture.step_bytes(a, 0)
    for penalised, times in ((False, 2), (True, 4)):
        activations = architecture.step_bytes(a, images, 4, penalised) - weights
        assert activations == 4 * (of_G + times * of_D) * 3 // 2


@given(architectures())
def test_layer_widths_match(a: GanArchitecture) -> None:
    for rows in (architecture.discriminator_rows(a), architecture.generator_rows(a)):
        embeddings = [row for row in rows if row.part != "trunk"]
        trunk = [row for row in rows if row.part == "trunk"]
        assert [row.after for row in trunk[:-1]] == [row.before for row in trunk[1:]]
        assert not embeddings or sum(row.after for row in embeddings) == trunk[0].before
        assert not rows[-1].norm
        assert min(row.before for row in rows) >= 1
    seen, blind = (
        architecture.discriminator_rows(replace(a, label_in_D=label)) for label in (True, False)
    )
    assert [row for row in seen if row.part == "trunk"] == [
        row for row in blind if row.part == "trunk"
    ]
    assert [row.part for row in blind].count("y") == 0
    assert [row.part for row in seen].count("y") == (a.kind != "dcgan")


@settings(max_examples=40)
@given(architectures(largest=64), st.integers(2, 4), st.booleans())
def test_networks_map_noise_to_images_to_logits(a: GanArchitecture, n: int, training: bool) -> None:
    D, G = (net.train(training) for net in architecture.build(a, 0))
    stream = torch.Generator().manual_seed(n)
    z = torch.randn(n, a.nz, generator=stream)
    y = torch.randint(0, a.classes, (n,), generator=stream) if a.classes else None
    with torch.no_grad():
        images = G(z, y)
        logits = D(images, y)
    assert images.shape == (n, a.channels, a.image_size, a.image_size)
    assert images.abs().max() <= 1
    assert logits.shape == (n,)
    assert logits.isfinite().all()


NUMBER = r"(-?\d+\.\d{4}|nan|-?inf)"
VALUES = " ".join(
    f"{re.escape(name)}: {NUMBER}" for name in ("Loss_D", "Loss_G", "D(x)", "D(G(z))")
)
LINE = re.compile(rf"\[([ \d]{{4}}\d)/([ \d]{{4}}\d)\] {VALUES}")


@given(
    st.integers(0, 99_999),
    st.integers(1, 99_999),
    st.lists(st.floats(width=32), min_size=4, max_size=4),
)
def test_log_line_can_be_parsed(step: int, steps: int, row: list[float]) -> None:
    line = log_line(step, steps, row)
    found = LINE.fullmatch(line)
    assert found, line
    assert (int(found[1]), int(found[2])) == (step, steps)
    for text, value in zip(found.groups()[2:], row, strict=True):
        assert math.isclose(float(text), value, rel_tol=1e-15, abs_tol=0.5001e-4) or math.isnan(
            value
        )
        assert math.isnan(float(text)) == math.isnan(value)
