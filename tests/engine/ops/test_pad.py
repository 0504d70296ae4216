"""Pad and CenterCropPad add and cut elements as onnxruntime or NumPy does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)
FOUR = st.tuples(*[st.integers(0, 2)] * 4)


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]), pads=FOUR)
def test_pad_agrees_with_onnxruntime(mode: str, pads: tuple[int, ...]) -> None:
    assert_agree("Pad", [DATA, np.array(pads)], mode=mode)


@settings(max_examples=40, deadline=None)
@given(pads=st.tuples(*[st.integers(-1, 3)] * 4))
def test_negative_pads_cut_as_onnxruntime_does(pads: tuple[int, ...]) -> None:
    assert_agree("Pad", [DATA, np.array(pads), np.array(7, np.float32)])


@settings(max_examples=60, deadline=None)
@given(mode=st.sampled_from(["reflect", "edge", "wrap"]), pads=st.tuples(*[st.integers(0, 9)] * 4))
def test_pads_wider_than_the_data_are_those_of_numpy(mode: str, pads: tuple[int, ...]) -> None:
    (found,) = ours("Pad", [DATA, np.array(pads)], mode=mode)
    expected = np.pad(DATA, [(pads[0], pads[2]), (pads[1], pads[3])], mode=mode)
    assert found.tolist() == expected.tolist()


def test_pad_takes_axes_and_every_type() -> None:
    text = np.array(["a", "b"], object)
    (found,) = ours("Pad", [text, np.array([1, 0]), None, np.array([-1])])
    assert found.tolist() == ["", "a", "b"]
    (found,) = ours("Pad", [np.array([True]), np.array([0, 1])])
    assert found.tolist() == [True, False]


def test_the_attribute_form_does_the_same() -> None:
    (found,) = ours("Pad", [DATA], 10, pads=(1, 0, 0, 2), value=2.0)
    assert found.tolist() == np.pad(DATA, [(1, 0), (0, 2)], constant_values=2).tolist()


def test_pads_add_to_symbols() -> None:
    n = symbol("n")
    data = Operand(TensorType(DType.FLOAT32, (n, 4)))
    pads = Operand(TensorType(DType.INT64, (4,)), np.array([1, 0, 1, -2]))
    assert find("", "Pad", 13)().infer(data, pads)[0].shape == (n + 2, 2)


def test_wrong_pads_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 4"):
        ours("Pad", [DATA, np.array([1, 2])])
    with pytest.raises(ValueError, match="cut more"):
        ours("Pad", [DATA, np.array([-2, 0, -2, 0])])
    with pytest.raises(ValueError, match="mode"):
        ours("Pad", [DATA, np.array([0, 0, 0, 0])], mode="mirror")


@pytest.mark.parametrize("sizes", [(3, 4), (1, 1), (4, 7), (2, 9), (0, 4)])
def test_center_crop_pad_agrees_with_onnxruntime(sizes: tuple[int, ...]) -> None:
    assert_agree("CenterCropPad", [DATA, np.array(sizes)])
    assert_agree("CenterCropPad", [DATA, np.array(sizes[:1])], axes=[-1])
