"""N-gram counts agree with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.types import DType
from engine.ops import find
from engine.ops.strings import string_array
from tests.engine.ops.peer import agrees_with_peer

# Three 1-grams, two 2-grams, one 3-gram.
POOL = [1, 2, 3, 1, 2, 3, 1, 1, 2, 3]
LAYOUT = {"ngram_counts": [0, 3, 7], "ngram_indexes": [2, 0, 4, 1, 5, 3]}
WEIGHTS = [0.5, 2.0, 3.0, 0.25, 1.5, 4.0]


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)])
@pytest.mark.parametrize("skips", [0, 1, 3])
def test_counts_agree_with_onnx_runtime(mode: str, shortest: int, longest: int, skips: int) -> None:
    x = np.random.default_rng(0).integers(1, 5, (4, 9))
    for rows in (x, x[0], x.astype(np.int32)):
        agrees_with_peer(
            "TfIdfVectorizer",
            [rows],
            [DType.FLOAT32],
            domain="",
            mode=mode,
            min_gram_length=shortest,
            max_gram_length=longest,
            max_skip_count=skips,
            pool_int64s=POOL,
            weights=WEIGHTS,
            **LAYOUT,
        )


def test_strings_are_counted_as_integers_are() -> None:
    words = [str(number) for number in POOL]
    x = string_array(["1", "2", "3", "1", "9"], (5,))
    agrees_with_peer(
        "TfIdfVectorizer",
        [x],
        [DType.FLOAT32],
        domain="",
        mode="TF",
        min_gram_length=1,
        max_gram_length=3,
        max_skip_count=0,
        pool_strings=words,
        **LAYOUT,
    )


def operator(**attributes: Any) -> Any:
    usual = {
        "mode": "TF",
        "min_gram_length": 1,
        "max_gram_length": 1,
        "max_skip_count": 0,
        "ngram_counts": (0,),
        "ngram_indexes": (0, 1),
        "pool_int64s": (7, 8),
    }
    return find("", "TfIdfVectorizer", 9).from_attributes(usual | attributes)


def test_an_empty_row_counts_nothing() -> None:
    assert operator().meaning(np.zeros((2, 0), np.int64)).tolist() == [[0.0, 0.0]] * 2


def test_a_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="3 weights"):
        operator(weights=(1.0, 2.0, 3.0)).meaning(np.array([7]))
