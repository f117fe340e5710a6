"""What a notebook shows of results: the picture, and text that cannot act."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from rdfia.claims.record import Record
from rdfia.data.images import CENTRE_CROP_224
from rdfia.data.pictures import GAP, images_side_by_side
from rdfia.gans.config import GanConfig
from rdfia.gans.sampling import fixed_noise, sample, to_uint8
from rdfia.gans.training_loop import train
from rdfia.gradients.fooling import Fooled, fool, fool_closely
from rdfia.gradients.visualisation import visualise
from tests.support.tiny_networks import tiny_vgg
from tests.unit.data.test_pictures import Elements, shown_pixels

SIDE = 16


def photos(n: int) -> Tensor:
    pixels = torch.randint(256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return CENTRE_CROP_224.normalise(pixels.to(torch.uint8))


def fooled(n: int = 3) -> Fooled:
    return fool(tiny_vgg(), photos(n), 4, pixels="8 bits", steps=20)


def test_fooled_shows_each_photo_its_change_and_its_fooling_image() -> None:
    for result in (fooled(), fool_closely(tiny_vgg(), photos(3), 4, steps=5)):
        pixels = shown_pixels(result._repr_html_())
        assert (pixels == np.asarray(result.picture())).all()
        wide = SIDE + GAP
        for row in range(3):
            before, change, after = (
                pixels[row * wide : row * wide + SIDE, column : column + SIDE].astype(int)
                for column in (0, wide, 2 * wide)
            )
            for shown, x in ((before, result.start), (after, result.x)):
                exact = (
                    (CENTRE_CROP_224.denormalise(x[row]) * 255)
                    .round()
                    .permute(1, 2, 0)
                    .int()
                    .numpy()
                )
                assert (shown == exact).all()
            moved = after - before
            assert (np.sign(change - 127.5)[moved != 0] == np.sign(moved[moved != 0])).all()
            assert set(np.unique(change[moved == 0])) <= {127, 128}
        text = Elements(result._repr_html_()).text
        assert all(status in text for status in result.status)


def test_first_eight_of_many_are_shown_and_the_others_counted() -> None:
    result = fooled(10)
    assert result.picture().height == 8 * (SIDE + GAP) - GAP
    assert "and 2 more" in Elements(result._repr_html_()).text
    assert result.picture(most=10).height == 10 * (SIDE + GAP) - GAP


def test_visualised_shows_its_images_and_classes() -> None:
    result = visualise(tiny_vgg(), [1, 4], steps=2, size=SIDE)
    assert result.target.tolist() == [1, 4]
    wanted = np.asarray(images_side_by_side(result.space.denormalise(result.x), 4))
    assert (shown_pixels(result._repr_html_()) == wanted).all()
    assert "classes 1, 4" in Elements(result._repr_html_()).text


@pytest.mark.parametrize("grids", [(), (2,), (1,)])
def test_trained_shows_the_images_of_the_fixed_noise_after_the_last_step(
    grids: tuple[int, ...],
) -> None:
    config = GanConfig(steps=2, batch=4)
    images = torch.arange(4 * 3 * 32 * 32).remainder(251).reshape(4, 3, 32, 32).byte()
    result = train(config, images, grids_at=grids)
    z, y = fixed_noise(config)
    drawn = sample(result.trainer.image_generator, z, y, statistics="batch")
    wanted = np.asarray(images_side_by_side(to_uint8(drawn), 10, scale=2))
    html = result._repr_html_()
    assert (shown_pixels(html) == wanted).all()
    assert result.grid().step == 2
    assert "step 2 of 2" in Elements(html).text
    assert "Loss_D" in html


def test_record_shows_its_sentence_verdict_and_intervals() -> None:
    part = {"name": "a<b", "value": 0.5, "low": "-inf", "high": 1.0, "method": "exact"}
    sentence = "<i>A quail</i>"
    record = Record("tme8.q5.fooling", statement=sentence, outcome="supported", parts=[part])
    elements = Elements(record._repr_html_())
    assert sentence in elements.text
    assert "a<b 0.5 (exact), bound: none" in elements.text
    assert record.verdict in elements.text
    assert shown_pixels(record._repr_html_()).shape[2] == 3
    bare = Elements(dataclasses.replace(record, parts=[])._repr_html_())
    assert "img" not in {tag for tag, _ in bare.elements}
