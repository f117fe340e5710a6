"""The table of claims names the assets that the tests ask for: `rdfia assets status` promises
nothing else.
"""

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
    """The literals of `claim.need("...")` in a function."""
    calls = (
        n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "claim.need"
    )
    return set().union(*map(words, calls))


def named_assets(source: str) -> Iterator[tuple[str, set[str]]]:
    """Each test's claim, and the assets that it names: in itself, in a constant or a helper of its
    file that it uses.

    A network's name counts as its weights where `transfer.WEIGHTS` or a bench of TME 7 is used, a
    title as its set-up where a lens of TME 8 or the data of TME 9 and 10 are; photos are judged by
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
        used, said, found = names(test), words(test), set()
        for constant in sorted(used & set(constants)):
            used, said = used | names(constants[constant]), said | words(constants[constant])
        for helper in sorted(used & set(functions) - {name}):
            found |= needed(functions[helper])
        found |= said & set(ASSETS)
        if used & {"WEIGHTS", "scene_bench", "digit_bench"}:
            found |= {transfer.WEIGHTS[word] for word in said & set(transfer.WEIGHTS)}
        if "lens" in used:
            setups = [gradients.SETUPS[word] for word in said & set(gradients.SETUPS)]
            found |= {asset for setup in setups for asset in (setup.weights, setup.photos)}
        if "gans" in used:
            data = [gan_data.SETUPS[word] for word in said & set(gan_data.SETUPS)]
            found |= {setup.asset for setup in data} | {
                "squeezenet1_1" for setup in data if setup.channels == 3
            }
        for claim in sorted(said & set(CLAIMS)):
            yield claim, found


NAMED: dict[str, set[str]] = {}
for path in SOURCES:
    for claim, found in named_assets(path.read_text("utf-8")):
        NAMED[claim] = NAMED.get(claim, set()) | found


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_table_has_every_asset_that_a_test_of_the_claim_names(claim: str) -> None:
    declared = {*CLAIMS[claim].needs, *CLAIMS[claim].also}
    assert declared <= set(ASSETS)
    assert not set(CLAIMS[claim].needs) & set(CLAIMS[claim].also)
    assert NAMED[claim] - declared == set(), "missing in rdfia/claims/claims.json"
    # where the whole network is at hand, a bench takes it in the place of its features
    if claim.startswith("tme7."):
        whole = {asset.replace("-features", "-full") for asset in NAMED[claim]}
        assert declared - NAMED[claim] - whole == set(), "no test of it names them"


def test_a_planted_need_is_seen_wherever_it_stands() -> None:
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
