"""Each claim lists the assets that its tests ask for, so that `rdfia assets status` is right."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdfia.claims.registry import CLAIMS
from rdfia.data.assets import ASSETS
from rdfia.experiments import gan_data, gradients, transfer

SOURCES = sorted((Path(__file__).parents[1] / "accuracy").glob("test_tme*.py"))


def words(node: ast.AST) -> set[str]:
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def names(node: ast.AST) -> set[str]:
    every = list(ast.walk(node))
    return {n.id for n in every if isinstance(n, ast.Name)} | {
        n.attr for n in every if isinstance(n, ast.Attribute)
    }


def needed(node: ast.AST) -> set[str]:
    """The arguments of `claim.need("...")` in a function."""
    calls = (
        n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "claim.need"
    )
    return set().union(*map(words, calls))


def named_assets(source: str) -> Iterator[tuple[str, set[str]]]:
    """(claim, assets) of each test: those that it names, or a constant or function that it uses.

    With `transfer.WEIGHTS` or a bench of TME 7, a network's name counts as its weights. With the
    fixtures `lens` and `gans`, a title counts as the assets of its set-up; GANs of photos also need
    SqueezeNet.
    """
    tree = ast.parse(source)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    constants = {
        ast.unparse(t): n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets
    }
    constants |= {
        ast.unparse(n.target): n.value
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and n.value
    }
    for name, test in functions.items():
        if not name.startswith("test_"):
            continue
        used = names(test)
        texts = words(test)
        found = set()
        for constant in sorted(used & set(constants)):
            used |= names(constants[constant])
            texts |= words(constants[constant])
        for helper in sorted(used & set(functions) - {name}):
            found |= needed(functions[helper])
        found |= texts & set(ASSETS)
        if used & {"WEIGHTS", "scene_bench", "digit_bench"}:
            found |= {transfer.WEIGHTS[word] for word in texts & set(transfer.WEIGHTS)}
        if "lens" in used:
            setups = [gradients.SETUPS[word] for word in texts & set(gradients.SETUPS)]
            found |= {asset for setup in setups for asset in (setup.weights, setup.photos)}
        if "gans" in used:
            data = [gan_data.DATA_SETS[word] for word in texts & set(gan_data.DATA_SETS)]
            found |= {setup.asset for setup in data} | {
                "squeezenet1_1" for setup in data if setup.channels == 3
            }
        for claim in sorted(texts & set(CLAIMS)):
            yield claim, found


NAMED: dict[str, set[str]] = {}
for path in SOURCES:
    for claim, found in named_assets(path.read_text("utf-8")):
        NAMED[claim] = NAMED.get(claim, set()) | found


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_lists_the_assets_of_its_tests(claim: str) -> None:
    declared = {*CLAIMS[claim].needs, *CLAIMS[claim].also}
    assert declared <= set(ASSETS)
    assert not set(CLAIMS[claim].needs) & set(CLAIMS[claim].also)
    assert NAMED[claim] - declared == set(), "missing in rdfia/claims/claims.json"
    # a bench takes the full network, if it is available, in place of its features
    if claim.startswith("tme7."):
        whole = {asset.replace("-features", "-full") for asset in NAMED[claim]}
        assert declared - NAMED[claim] - whole == set(), "no test of the claim names them"


def test_planted_needs_are_found() -> None:
    source = """
CASES = {"a": ("squeezenet1_1", 1)}
def bench(claim): claim.need("scene15"); print("digits")
BENCHES = {"15-Scene": bench}
@claim_of("tme7.best")
def test_a(claim):
    BENCHES["15-Scene"](claim)
    claim.need(CASES["a"][0])
    claim.need("vgg16-full")
    claim.need(transfer.WEIGHTS["alexnet"])
"""
    assert dict(named_assets(source)) == {
        "tme7.best": {"scene15", "squeezenet1_1", "vgg16-full", "alexnet-features"},
    }
