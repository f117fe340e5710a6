"""Which arguments of an extraction make another store, for every argument that it has."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rdfia.data.feature_store import FeatureStore
from rdfia.data.images import Preprocess
from rdfia.transfer import extraction, features, inference
from rdfia.transfer.extraction import Team
from tests.support.tapped_network import SMALL, TAPS, TinyNet

Arguments = dict[str, Any]


def with_bias(network: TinyNet, name: str) -> TinyNet:
    """The network with another bias in one layer."""
    with torch.no_grad():
        network.get_parameter(name).add_(1)
    return network


def with_average_pooling(network: TinyNet) -> TinyNet:
    network.features[2] = nn.AvgPool2d(2)
    return network


# argument -> what is changed -> its new value
OTHER_STORE: dict[str, dict[str, Callable[[Arguments], Any]]] = {
    "module": {
        "a weight": lambda a: with_bias(a["module"], "features.0.bias"),
        "the kind of a layer": lambda a: with_average_pooling(a["module"]),
    },
    "images": {
        "pixels": lambda a: [a["images"][0] // 2, *a["images"][1:]],
        "number": lambda a: a["images"][:-1],
        "order": lambda a: a["images"][::-1],
    },
    "taps": {
        "one fewer": lambda a: {name: a["taps"][name] for name in ("conv1", "relu2")},
        "another name": lambda a: {**a["taps"], "more": "features.0"},
        "two layers swapped": lambda a: {
            **a["taps"],
            "conv1": a["taps"]["relu1"],
            "relu1": a["taps"]["conv1"],
        },
        "another call": lambda a: {**a["taps"], "conv1": ("features.0", {"call": -1})},
    },
    "content": {"a digest": lambda _: "another"},
    "preprocess": {
        field.name: lambda a, name=field.name, value=value: dataclasses.replace(  # type: ignore[misc]
            a["preprocess"], **{name: value}
        )
        for field, value in zip(
            dataclasses.fields(Preprocess),
            (24, "crop", 64, "bicubic", (0.5,) * 3, (0.5,) * 3, True, "torchvision"),
            strict=True,
        )
        if field.name != "resize"  # of a crop only
    },
    "dtype": {"bfloat16": lambda _: torch.bfloat16},
    "device": {"a GPU": lambda _: "cuda"},
    "batch_size": {"two": lambda _: 2},
    "pool": {"pyramid": lambda _: features.pyramid},
}
SAME_STORE: dict[str, dict[str, Callable[[Arguments], Any]]] = {
    "module": {"a weight behind the taps": lambda a: with_bias(a["module"], "classifier.0.bias")},
    "root": {"another folder": lambda a: a["root"] / "elsewhere"},
    "cap_bytes": {"a lower cap": lambda _: 10**8},
    "team": {"two processes": lambda _: Team(1, 2)},
    "progress": {"a bar": lambda _: lambda batches, *_: batches},
    "preprocess": {
        "resize, without a crop": lambda a: dataclasses.replace(a["preprocess"], resize=64)
    },
}


def cases(table: dict[str, dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(argument, change, id=f"{argument}: {what}")
        for argument, changes in table.items()
        for what, change in changes.items()
    ]


@pytest.fixture
def given(network: TinyNet, photos: list[np.ndarray], tmp_path: Path) -> Arguments:
    return {
        "module": network,
        "images": photos,
        "taps": TAPS,
        "root": tmp_path,
        "content": None,
        "preprocess": dataclasses.replace(SMALL, resize=48),
        "dtype": torch.float32,
        "device": "cpu",
        "batch_size": 1,
        "pool": features.flatten,
        "cap_bytes": 10**9,
        "team": Team(),
        "progress": None,
    }


class Named(Exception):
    """Ends an extraction when the name of its store is known."""


@pytest.fixture
def store_name(monkeypatch: pytest.MonkeyPatch) -> Callable[[Arguments], str]:
    """The name of an extraction's store, before anything is computed."""

    def stop(folder: Path, *_: Any) -> FeatureStore:
        raise Named(folder.name)

    def name(arguments: Arguments) -> str:
        with pytest.raises(Named) as caught:
            extraction.extract(**arguments)
        return str(caught.value)

    monkeypatch.setattr(extraction, "FeatureStore", stop)
    monkeypatch.setattr(inference, "usable_device", torch.device)  # without a GPU too
    return name


def test_every_argument_of_an_extraction_has_a_case(given: Arguments) -> None:
    arguments = list(inspect.signature(extraction.extract).parameters)
    assert list(given) == arguments
    assert {*OTHER_STORE, *SAME_STORE} == set(arguments)


@pytest.mark.parametrize(("argument", "change"), cases(OTHER_STORE))
def test_changed_argument_makes_another_store(
    given: Arguments, store_name: Callable[[Arguments], str], argument: str, change: Any
) -> None:
    first = store_name(given)
    assert store_name(given) == first
    assert store_name({**given, argument: change(given)}) != first


@pytest.mark.parametrize(("argument", "change"), cases(SAME_STORE))
def test_argument_without_effect_on_features_keeps_the_store(
    given: Arguments, store_name: Callable[[Arguments], str], argument: str, change: Any
) -> None:
    given["content"] = "a digest"  # of which a process of a team would compute a part
    first = store_name(given)
    assert store_name({**given, argument: change(given)}) == first


def test_type_of_float32_products_makes_another_store(
    given: Arguments, store_name: Callable[[Arguments], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for setting in ("float32", "tf32"):
        monkeypatch.setenv("RDFIA_DTYPE", setting)
        names.append([store_name({**given, "device": device}) for device in ("cuda", "cpu")])
    assert names[0][0] != names[1][0]
    assert names[0][1] == names[1][1]  # a CPU has no TF32


def test_store_of_another_preprocess_or_pool_is_not_served(given: Arguments) -> None:
    """The features in the second store are those of its own arguments."""
    for change in (
        {"preprocess": dataclasses.replace(SMALL, flip=True)},
        {"pool": features.pyramid, "taps": {"relu2": TAPS["relu2"]}},
        {"content": "chosen by the caller", "images": given["images"][::-1]},
    ):
        arguments = {**given, **change}
        extraction.extract(**given)
        store = extraction.extract(**arguments)
        names = ("module", "images", "taps")
        options = ("preprocess", "dtype", "batch_size", "pool")
        batches = list(
            features.feature_batches(
                *(arguments[name] for name in names),
                **{name: arguments[name] for name in options},
            )
        )
        for tap in arguments["taps"]:
            assert torch.equal(store[tap], torch.cat([batch[tap] for batch in batches]))
