from __future__ import annotations

import pytest

from rdfia.claims.registry import Claim
from rdfia.errors import ArgumentError

ROW = {"id": "tme7.new", "lab": "tme7", "answer": "", "statement": "A sentence."}


@pytest.mark.parametrize("name", ["id", "lab", "answer", "statement"])
def test_row_without_a_field_is_refused_by_name(name: str) -> None:
    assert Claim.of(ROW).statement == "A sentence."
    row = {key: value for key, value in ROW.items() if key != name}
    with pytest.raises(ArgumentError, match=rf"row '{row.get('id', '')}': got no {name}, expected"):
        Claim.of(row)


def test_unknown_field_of_a_row_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"row 'tme7.new': got an unknown sentence, expected"):
        Claim.of({**ROW, "sentence": "A sentence."})
