"""Resizing agrees with a peer and with itself: identity, transposition, symbolic sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops.resize import Resize, scaled_size
from tests.engine.ops.single_node import ours, theirs

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((1, 2, 5, 7)).astype(np.float32)
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def compare(name: str, inputs: list, opset: int, **attributes) -> None:
    (found,) = ours(name, inputs, opset, **attributes)
    (expected,) = theirs(name, inputs, opset, **attributes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(10, 14), (3, 4), (13, 5), (1, 1)])
def test_interpolations_agree_with_a_peer(coordinates: str, mode: str, size) -> None:
    inputs = [X, None, None, np.array([1, 2, *size])]
    compare("Resize", inputs, 13, mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("coordinates", COORDINATES[:2])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", [(2.0, 2.0), (0.6, 1.7), (0.5, 3.0)])
def test_nearest_elements_agree_with_a_peer(coordinates: str, rounding: str, scale) -> None:
    inputs = [X, None, np.array([1, 1, *scale], np.float32)]
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    compare("Resize", inputs, 13, mode="nearest", **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.5, 3.0), (0.6, 0.7)])
def test_older_versions_agree_with_a_peer(mode: str, scale) -> None:
    scales = np.array([1, 1, *scale], np.float32)
    compare("Resize", [X, scales], 10, mode=mode)
    if min(scale) >= 1:
        compare("Upsample", [X, scales], 9, mode=mode)
        compare("Upsample", [X], 7, mode=mode, scales=tuple(scales.tolist()))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_same_size_is_the_same_image(mode: str, coordinates: str) -> None:
    operator = Resize(mode=mode, coordinate_transformation_mode=coordinates)
    np.testing.assert_array_equal(operator.meaning(X, None, None, np.array(X.shape)), X)


def test_cropping_agrees_with_a_peer() -> None:
    region = np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.3], np.float32)
    attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    inputs = [X, region, None, np.array([1, 2, 8, 9])]
    compare("Resize", inputs, 13, extrapolation_value=5.0, **attributes)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_an_antialiased_constant_stays_constant(mode: str) -> None:
    operator = Resize(mode=mode, antialias=1, axes=(2, 3))
    found = operator.meaning(np.full((1, 1, 9, 8), 3.0), None, None, np.array([2, 3]))
    np.testing.assert_allclose(found, np.full((1, 1, 2, 3), 3.0))


@pytest.mark.parametrize(("policy", "size"), [("not_larger", (4, 6)), ("not_smaller", (6, 8))])
def test_policies_keep_the_aspect_ratio(policy: str, size: tuple[int, int]) -> None:
    operator = Resize(axes=(2, 3), keep_aspect_ratio_policy=policy)
    assert operator.meaning(X, None, None, np.array([6, 6])).shape[2:] == size


def test_integers_are_rounded_and_saturated() -> None:
    x = np.array([[0, 255, 0]], np.uint8)
    found = Resize(mode="cubic", axes=(1,)).meaning(x, None, None, np.array([6]))
    assert found.dtype == np.uint8
    assert found.max() == 255 or found.min() == 0


@given(st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]), st.integers(0, 400))
def test_exact_scales_keep_symbolic_sizes(scale: float, size: int) -> None:
    symbolic = scaled_size(symbol("n"), scale)
    assert evaluate(symbolic, {"n": size}) == scaled_size(size, scale) == int(size * scale)


def test_inexact_scales_leave_symbolic_sizes_open() -> None:
    assert isinstance(scaled_size(symbol("n"), 0.6), UnknownSize)
    assert scaled_size(10, 0.7) == 7


def test_symbolic_sizes_pass_through() -> None:
    n, h = symbol("n"), symbol("h")
    x = Operand(TensorType(DType.FLOAT32, (n, 3, h, h)))
    kind = TensorType(DType.INT64, (4,))
    sizes = Operand(kind, content=np.array([n, 3, 2 * h, 7], object))
    (found,) = Resize().infer(x, None, None, sizes)
    assert found.shape == (n, 3, 2 * h, 7)


def test_neither_scales_nor_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        Resize().meaning(X)
    with pytest.raises(ValueError, match="coordinate_transformation_mode"):
        Resize(coordinate_transformation_mode="x").meaning(X, None, None, np.array([1, 2, 3, 4]))
