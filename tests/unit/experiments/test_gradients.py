"""What a fooling image is treated with before the network sees it once more."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rdfia.experiments.gradients import DEFENDED, TREATMENTS, shrink


@pytest.mark.parametrize("name", TREATMENTS)
def test_treated_image_has_its_size_and_the_colours_of_flat_areas(name: str) -> None:
    flat = torch.tensor([64, 128, 192], dtype=torch.uint8)[:, None, None].expand(3, 48, 64) / 255
    noise = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    treated = TREATMENTS[name](torch.stack([flat, noise]))
    assert treated.shape == (2, 3, 48, 64)
    assert treated.dtype == torch.float32
    assert (treated[0] - flat).abs().max() < (1.5 / 255 if name == DEFENDED else 1e-6)
    # Fine detail, as of a fooling image, is what a treatment takes away.
    assert 0.02 < (treated[1] - noise).abs().mean() < 0.5
    assert treated[1].std() < noise.std()


def test_image_is_resized_to_nine_tenths_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    small = image.resize((54, 36), Image.Resampling.BILINEAR)
    again = small.resize((60, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(shrink(image)), np.asarray(again))


def test_defended_images_are_jpeg_files_of_quality_75() -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    array = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=75)
    read = np.asarray(Image.open(buffer))
    treated = (TREATMENTS[DEFENDED](pixels)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(treated, read)
