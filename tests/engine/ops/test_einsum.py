"""Einsum reads equations as the standard does and agrees with onnxruntime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from engine.ops.einsum import parse_equation
from tests.engine.ops.single_node import assert_agree, ours

SIZES = {"a": 2, "b": 3, "c": 4, "i": 2, "j": 3, "k": 4, "h": 2}


@pytest.mark.parametrize(
    "equation",
    [
        "bihc,bjhc->bhij",
        "ai,bi->b",
        "abk,k->ba",
        "ij,jk->ik",
        "ij,jk",
        "bij,bjk->bik",
        "ii->i",
        "ii",
        "ij->ji",
        "i,j->ij",
        "ij->",
        "ab,cb,ac->",
    ],
)
def test_equations_agree_with_onnxruntime(equation: str) -> None:
    random = np.random.default_rng(0)
    terms = equation.split("->")[0].split(",")
    arrays = [random.normal(size=[SIZES[x] for x in term]).astype(np.float32) for term in terms]
    assert_agree("Einsum", arrays, equation=equation)


@pytest.mark.parametrize("equation", ["...ij,...jk->...ik", "... i j , ... j k", "...ij,jk->i...k"])
def test_ellipses_agree_with_numpy(equation: str) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 2, 3)), np.ones((3, 4))
    if equation.count("...") > 1 and "jk->" not in equation.replace("...jk", ""):
        b = np.ones((5, 3, 4))
    (found,) = ours("Einsum", [a, b], equation=equation)
    np.testing.assert_allclose(found, np.einsum(equation.replace(" ", ""), a, b))


def test_an_ellipsis_missing_from_the_output_is_summed() -> None:
    data = np.arange(12.0).reshape(2, 2, 3)
    (found,) = ours("Einsum", [data], equation="...i->i")
    assert found.tolist() == data.sum((0, 1)).tolist()


def test_implicit_output_is_in_ascii_order() -> None:
    assert parse_equation("ba,aC") == ([("b", "a"), ("a", "C")], ("C", "b"))
    assert parse_equation("j...i")[1] == ("...", "i", "j")


def test_symbols_stay_in_their_places() -> None:
    n, m = symbol("n"), symbol("m")
    a = Operand(TensorType(DType.FLOAT32, (n, m, 12, 64)))
    einsum = find("", "Einsum", 12)(equation="bqhd,bkhd->bhqk")
    assert einsum.infer(a, a)[0].shape == (n, 12, m, m)


def test_bfloat16_keeps_its_type() -> None:
    ones = np.ones((1, 600), ml_dtypes.bfloat16)
    assert ours("Einsum", [ones, ones], 28, equation="ij,kj->ik")[0].astype(float).item() == 600


@pytest.mark.parametrize(
    ("equation", "word"),
    [
        ("i1->i", "letters"),
        ("ij->k", "output"),
        ("ij->ii", "output"),
        ("i->i", "rank"),
        ("ij,j", "terms"),
    ],
)
def test_wrong_equations_are_refused(equation: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ours("Einsum", [np.zeros((2, 2))], equation=equation)


@settings(max_examples=60, deadline=None)
@given(
    left=st.permutations("abcd").flatmap(lambda p: st.integers(0, 4).map(lambda n: p[:n])),
    right=st.permutations("abcd").flatmap(lambda p: st.integers(0, 4).map(lambda n: p[:n])),
    data=st.data(),
)
def test_any_two_terms_agree_with_numpy(
    left: list[str], right: list[str], data: st.DataObject
) -> None:
    every = sorted({*left, *right})
    output = data.draw(st.permutations(every))[: data.draw(st.integers(0, len(every)))]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(output)}"
    sizes = {"a": 2, "b": 3, "c": 1, "d": 0 if data.draw(st.booleans()) else 4}
    random = np.random.default_rng(0)
    arrays = [random.normal(size=[sizes[label] for label in term]) for term in (left, right)]
    (found,) = ours("Einsum", [np.asarray(item) for item in arrays], equation=equation)
    np.testing.assert_allclose(found, np.einsum(equation, *arrays), rtol=1e-9, atol=1e-12)
