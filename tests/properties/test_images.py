"""For every image: pixels equal torchvision's, and `denormalise` inverts `normalise`."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T

from rdfia.data.images import CENTRE_CROP_224, EFFICIENTNET_LITE0, STRETCH_224, Preprocess
from tests.support.strategies import images

PRESETS = st.sampled_from([STRETCH_224, CENTRE_CROP_224, EFFICIENTNET_LITE0])


@settings(deadline=None)  # the first call imports modules
@given(images(8, 60), PRESETS)
def test_pixels_equal_torchvisions(array: np.ndarray, preset: Preprocess) -> None:
    small = Preprocess(48, preset.mode, 56, preset.interpolation)
    how = T.InterpolationMode(small.interpolation)
    steps = (
        [T.Resize((48, 48), how)]
        if small.mode == "stretch"
        else [T.Resize(56, how), T.CenterCrop(48)]
    )
    expected = np.asarray(T.Compose(steps)(Image.fromarray(array).convert("RGB")))
    np.testing.assert_array_equal(
        small.pixels(Image.fromarray(array)).permute(1, 2, 0).numpy(), expected
    )


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), PRESETS)
def test_denormalise_inverts_normalise(seed: int, preset: Preprocess) -> None:
    pixels = torch.randint(
        0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    back = preset.denormalise(preset.normalise(pixels))
    assert torch.equal((back * 255).round().to(torch.uint8), pixels)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(preset.normalise(preset.denormalise(x)), x, rtol=1e-12, atol=1e-12)
    assert torch.equal(preset.normalise(pixels.flip(-1)), preset.normalise(pixels).flip(-1))
