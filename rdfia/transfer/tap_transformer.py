"""TME 7: photos to features as a step of a scikit-learn pipeline, and the pretrained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from rdfia.data import assets
from rdfia.data.arrays import as_tensor, on_host
from rdfia.data.images import STRETCH_224, Preprocess
from rdfia.data.photo_files import photo_sequence
from rdfia.device.memory import require_memory
from rdfia.errors import ArgumentError, DatasetError, ImageError, nearest_first
from rdfia.models import networks
from rdfia.models.networks import Loaded
from rdfia.transfer.dry_run import tap_shapes
from rdfia.transfer.extraction import pooled_width
from rdfia.transfer.features import feature_batches, flatten
from rdfia.transfer.inference import checked_options
from rdfia.transfer.layer_outputs import tap_modules

WEIGHTS = {
    "vgg16": "vgg16-features",
    "alexnet": "alexnet-features",
    "squeezenet1_1": "squeezenet1_1",
}


def load_pretrained(name: str) -> Loaded:
    """The pretrained network `name`, with its dense layers where their weights are available.

    Raises ArgumentError for a name that `WEIGHTS` does not have, AssetUnavailable without weights.
    """
    if name not in WEIGHTS:
        raise ArgumentError(f"network {name!r}: expected one of {nearest_first(name, WEIGHTS)}")
    full = f"{name}-full"
    asset = full if full in assets.ASSETS and assets.find(full) else WEIGHTS[name]
    return networks.load(name, assets.load_weights(asset))


def module_and_path(network: Loaded | nn.Module, tap: str) -> tuple[nn.Module, str]:
    """The module of a network, and the module path of a tap: of a layer's name or a path.

    ArgumentError for a tap that a network of `models.load` does not have.
    """
    if not isinstance(tap, str | tuple):
        raise ArgumentError(
            f"tap: got {tap!r}, expected the name of a layer, such as 'pool5', or a module path"
        )
    if isinstance(network, Loaded):
        known = networks.tap_paths(network.name) | {
            path: path for path in tap_modules(network.module) if path
        }
        if tap not in known:
            raise ArgumentError(
                f"tap {tap!r}: {network.name} does not have it; the nearest of its layers first: "
                f"{nearest_first(tap, known)}"
            )
        return network.module, known[tap]
    return network, tap


class TapTransformer(TransformerMixin, BaseEstimator):
    """Photos in, the features of one layer of a network out, as the lab's classifier reads them.

    `network` is "vgg16", "alexnet" or "squeezenet1_1" (with pretrained weights, loaded by `fit`), a
    network of `models.load`, or any module; `tap` a layer's name (`models.tap_paths`), for other
    modules a module path. Photos are paths, PIL images, uint8 arrays H x W, H x W x 3 or H x W x 4
    (on white), or decoded pixels, N x 3 x S x S uint8 of the size S of `preprocess`. `normalise`
    divides each row by its L2 norm, as the lab does. `pool`, `preprocess`, `dtype`, `device` and
    `batch_size` are those of `feature_batches`. The pickle of a network by name has no weights:
    they are loaded again, and verified, when they are needed. Source: report 1, answer 11.
    """

    def __init__(
        self,
        network: str | Loaded | nn.Module = "vgg16",
        tap: str = "pool5",
        *,
        normalise: bool = True,
        pool: Callable[[Tensor], Tensor] = flatten,
        preprocess: Preprocess = STRETCH_224,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ) -> None:
        self.network = network
        self.tap = tap
        self.normalise = normalise
        self.pool = pool
        self.preprocess = preprocess
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True  # photos are no matrix
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if isinstance(self.network, str):
            state.pop("_loaded", None)
        return state

    def _module_and_path(self) -> tuple[nn.Module, str]:
        """The module and the path that `fit` chose; loaded again after unpickling."""
        if not hasattr(self, "_loaded"):
            network = self.network
            found = load_pretrained(network) if isinstance(network, str) else network
            self._loaded: tuple[nn.Module, str] = module_and_path(found, self.tap)
        return self._loaded

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """This transformer with its network loaded and its number of columns known.

        Photos and labels are not looked at. Raises as `load_pretrained`, `tap_shapes` and
        `pooled_width`.
        """
        if hasattr(self, "_loaded"):
            del self._loaded  # of other parameters
        module, path = self._module_and_path()
        checked_options(self.preprocess, self.dtype, self.device, self.batch_size)
        shape = tap_shapes(module, {self.tap: path}, self.preprocess.size)[self.tap]
        self.n_columns_ = pooled_width(self.pool, self.tap, shape)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of the photos, N x D float32, in their order.

        Raises ArgumentError for something else than photos, ImageError for a file that is none and
        a PIL image that is damaged, DatasetError for rows of zeros, NaN or infinity, which have no
        direction, TooLarge; else as `feature_batches`.
        """
        check_is_fitted(self, "n_columns_")
        photos = _photos(X, self.preprocess.size)
        require_memory(
            4 * len(photos) * self.n_columns_,
            f"features of {len(photos)} photos, {self.n_columns_} columns each,",
            "take fewer photos at a time, a later tap or a pool, or use `column_tiles.accumulate`",
        )
        module, path = self._module_and_path()
        batches = feature_batches(
            module,
            photos,
            {self.tap: path},
            preprocess=self.preprocess,
            dtype=self.dtype,
            device=self.device,
            batch_size=self.batch_size,
            pool=self.pool,
            reserved_bytes=4 * len(photos) * self.n_columns_,
        )
        try:
            return self._rows(batches, len(photos))
        except MemoryError:
            raise
        except Exception:
            if not isinstance(photos, Tensor):
                _refuse_damaged(photos)
            raise

    def _rows(self, batches: Iterable[dict[str, Tensor]], n: int) -> np.ndarray:
        """The matrix of all batches, n x D float32; DatasetError for rows without a norm."""
        matrix = np.empty((n, self.n_columns_), np.float32)
        done = 0
        for batch in batches:
            rows = batch[self.tap].float()
            if self.normalise:
                norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
                good = (norms[:, 0] > 0) & norms[:, 0].isfinite()
                if len(bad := good.logical_not().nonzero()):
                    raise DatasetError(
                        f"photo {done + int(bad[0])}: its features at {self.tap} are zero, NaN or "
                        "infinite and have no norm; remove it, or set normalise=False"
                    )
                rows = rows / norms
            matrix[done : done + len(rows)] = on_host(rows)
            done += len(rows)
        return matrix

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, (D,): the tap and the number of the column."""
        check_is_fitted(self, "n_columns_")
        return np.array([f"{self.tap}_{column}" for column in range(self.n_columns_)], dtype=object)


def _refuse_damaged(photos: Sequence[Any]) -> None:
    """Raises ImageError that names the first PIL image that cannot be decoded."""
    for row, photo in enumerate(photos):
        if isinstance(photo, Image.Image):
            try:
                photo.load()
            except Exception as error:  # Pillow raises many kinds of errors for damaged data
                raise ImageError(
                    f"X: photo {row} is truncated or damaged ({error}); replace it or remove it"
                ) from error


def _photos(X: Any, side: int) -> Any:
    """Photos as a list, or decoded pixels as a tensor. Raises ArgumentError for something else."""
    arrays = isinstance(X, np.ndarray | Tensor)
    if arrays and X.ndim == 4 and X.shape[1] == 3 and X.shape[3] not in (3, 4):
        return _pixels(as_tensor(X, "X"), side)
    # One photo would be taken for its rows: three grey ones, if it is a tensor of decoded pixels.
    one = (
        arrays
        and X.ndim == 3
        and (X.shape[2] in (3, 4) or (isinstance(X, Tensor) and X.shape == (3, side, side)))
    )
    if one:
        raise ArgumentError(
            f"X: got one photo, {X.dtype} {tuple(X.shape)}, expected a list of photos; pass "
            "photo[None], or the list of a folder's files"
        )
    photos = list(photo_sequence(on_host(X, "X") if isinstance(X, Tensor) else X, "X"))
    if not photos:
        raise ArgumentError("X: got no photo, expected one or more")
    for row, photo in enumerate(photos):
        kind = getattr(photo, "dtype", type(photo).__name__)
        if isinstance(photo, np.ndarray):
            colour = photo.ndim == 3 and photo.shape[2] in (3, 4)
            good = photo.dtype == np.uint8 and (photo.ndim == 2 or colour) and photo.size > 0
            kind = f"{photo.dtype} {photo.shape}"
        else:
            good = isinstance(photo, str | Path | Image.Image)
        if not good:
            raise ArgumentError(
                f"X: photo {row} is {kind}, expected a path, a PIL image, or a uint8 array H x W "
                "or H x W x 3 or 4"
            )
    return photos


def _pixels(X: Tensor, side: int) -> Tensor:
    """Decoded pixels, N x 3 x S x S uint8, checked. Raises ArgumentError."""
    if X.dtype != torch.uint8:
        raise ArgumentError(f"X: got {X.dtype} pixels, expected uint8, 0 .. 255")
    if X.shape[1:] != (3, side, side) or not len(X):
        raise ArgumentError(
            f"X: got decoded pixels {tuple(X.shape)}, expected N x 3 x {side} x {side}, one photo "
            "or more; give photos H x W x 3, or a Preprocess of that size"
        )
    return X.detach()
