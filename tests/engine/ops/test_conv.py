"""Convolutions equal the sums that define them."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import conv
from engine.ops.conv import Conv, ConvInteger, QLinearConv


def by_definition(x, weight, strides, dilations, pads, group):
    rank = x.ndim - 2
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    kernel = weight.shape[2:]
    sizes = [
        (padded.shape[2 + a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in range(rank)
    ]
    result = np.zeros((x.shape[0], weight.shape[0], *sizes))
    per_group, filters = weight.shape[1], weight.shape[0] // group
    for m, place in product(range(weight.shape[0]), np.ndindex(*sizes)):
        first = m // filters * per_group
        for tap in np.ndindex(*kernel):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations))
            piece = padded[(slice(None), slice(first, first + per_group), *at)]
            result[(slice(None), m, *place)] += piece @ weight[(m, slice(None), *tap)]
    return result


@st.composite
def problems(draw):
    rank = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 2, 3]))
    per_group = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(2 * rank))
    sizes = [draw(st.integers(5, 6)) for _ in range(rank)]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = random.standard_normal((draw(st.integers(0, 2)), per_group * group, *sizes))
    weight = random.standard_normal((group * draw(st.integers(1, 2)), per_group, *kernel))
    return x, weight, strides, dilations, pads, group


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_convolution_is_the_sum_of_its_definition(problem) -> None:
    x, weight, strides, dilations, pads, group = problem
    operator = Conv(strides=strides, dilations=dilations, pads=pads, group=group)
    bias = np.arange(weight.shape[0], dtype=float)
    expected = by_definition(*problem) + bias.reshape(-1, *(1,) * (x.ndim - 2))
    found = operator.meaning(x, weight, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    shape = (symbol("n"), x.shape[1], *(symbol(f"d{i}") for i in range(x.ndim - 2)))
    (kind,) = operator.infer(
        Operand(TensorType(DType.FLOAT64, shape)),
        Operand(TensorType(DType.FLOAT64, weight.shape)),
    )
    names = {"n": x.shape[0], **{f"d{i}": n for i, n in enumerate(x.shape[2:])}}
    assert tuple(evaluate(dim, names) for dim in kind.dims) == found.shape


def test_long_outputs_are_made_in_pieces_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 3, 11, 7)), random.standard_normal((4, 3, 3, 3))
    whole = Conv(pads=(1, 1, 1, 1)).meaning(x, weight)
    monkeypatch.setattr(conv, "_CHUNK", 400)
    np.testing.assert_allclose(Conv(pads=(1, 1, 1, 1)).meaning(x, weight), whole)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_summed_in_float32(dtype: type) -> None:
    x = np.ones((1, 4096, 3), dtype)
    found = Conv().meaning(x, np.ones((1, 4096, 1), dtype))
    assert found.dtype == dtype
    assert (found.astype(np.float32) == 4096).all()


def test_integer_convolutions_are_exact_beyond_the_range_of_float32() -> None:
    x = np.full((1, 600, 5), 255, np.uint8)
    weight = np.full((1, 600, 3), 127, np.int8)
    weight[0, 0, 0] = 126
    found = ConvInteger().meaning(x, weight)
    assert found.dtype == np.int32
    assert (found == 600 * 3 * 255 * 127 - 255).all()


def test_padding_of_a_quantised_input_is_its_zero_point() -> None:
    x = np.full((1, 1, 3), 7, np.uint8)
    weight = np.ones((1, 1, 3), np.int8)
    one = np.float32(1)[...]
    found = QLinearConv(pads=(1, 1)).meaning(
        x, one, np.uint8(7)[...], weight, one, np.int8(0)[...], one, np.uint8(9)[...]
    )
    np.testing.assert_array_equal(found, np.full((1, 1, 3), 9, np.uint8))


@pytest.mark.parametrize(
    ("x", "weight", "operator"),
    [
        ((1, 3, 5), (2, 2, 3), Conv()),
        ((1, 4, 5), (3, 2, 3), Conv(group=2)),
        ((1, 3, 5), (2, 3, 3), Conv(kernel_shape=(2,))),
    ],
)
def test_contradictory_shapes_are_refused(x, weight, operator: Conv) -> None:
    with pytest.raises(ValueError, match=r"channels|kernel"):
        operator.meaning(np.zeros(x, np.float32), np.zeros(weight, np.float32))
