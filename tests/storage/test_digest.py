"""Canonical JSON: one text for equal data, pinned by golden texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import (
    canonical_json,
    digest_of_bytes,
    digest_of_file,
    digest_of_json,
    is_digest,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"b": 1, "a": [True, False, None]}, '{"a":[true,false,null],"b":1}'),
        (
            {"batch": 1.0, "scale": 0.5, "big": 1e300},
            f'{{"batch":1,"big":{int(1e300)},"scale":0.5}}',
        ),
        ((1, 2), "[1,2]"),
        ("Größe\n\u2028", '"Größe\\n\u2028"'),
        ({"é": 1, "e": 2, "E": 3, "": 4}, '{"":4,"E":3,"e":2,"é":1}'),
        (-0.0, "0"),
    ],
)
def test_golden_texts(value: object, text: str) -> None:
    assert canonical_json(value) == text.encode()


def test_a_golden_digest() -> None:
    assert digest_of_json({"key_schema": 1}) == digest_of_bytes(b'{"key_schema":1}')
    assert digest_of_bytes(b"") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


@given(PLAIN)
def test_the_text_means_the_value_and_is_its_own_canonical_text(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        canonical_json({"x": value})


@pytest.mark.parametrize("value", [{1: 2}, b"bytes", {1, 2}, object()])
def test_what_is_no_plain_data_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert digest_of_file(tmp_path / "f") == (digest_of_bytes(data), len(data))
    assert is_digest(digest_of_bytes(data))
    assert not is_digest("x" * 64)
