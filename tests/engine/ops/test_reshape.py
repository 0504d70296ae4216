"""Operators that only change shapes resolve 0 and -1, follow symbols and refuse contradictions."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from tests.engine.ops.single_node import assert_agree, ours


def operand(*shape: object, content: object = None) -> Operand:
    return Operand(TensorType(DType.INT64, shape), content=content)


def sizes(*content: object) -> Operand:
    return operand(len(content), content=np.array(content, object))


@pytest.mark.parametrize("target", [(3, 8), (-1,), (0, -1, 2), (0, 0, 0), (2, 1, 12)])
def test_reshape_agrees_with_onnxruntime(target: tuple[int, ...]) -> None:
    assert_agree("Reshape", [np.arange(24.0).reshape(2, 3, 4), np.array(target)])


def test_a_zero_is_a_size_when_it_is_allowed() -> None:
    (found,) = ours("Reshape", [np.zeros((0, 3)), np.array([3, 0])], allowzero=1)
    assert found.shape == (3, 0)


def test_reshape_follows_symbols() -> None:
    n, m = symbol("n"), symbol("m")
    (found,) = find("", "Reshape", 14)().infer(operand(n, m, 768), sizes(0, m, 12, -1))
    assert found.shape == (n, m, 12, 64)
    (found,) = find("", "Reshape", 14)().infer(operand(n, m, 768), sizes(-1, 768))
    assert found.shape == (n * m, 768)


def test_reshape_knows_the_rank_when_only_the_length_of_the_target_is_known() -> None:
    (found,) = find("", "Reshape", 14)().infer(operand(2, 3), operand(3))
    assert [type(dim) for dim in found.dims] == [UnknownSize] * 3


@pytest.mark.parametrize(
    ("target", "word"),
    [((5, -1), "elements"), ((-1, -1), "one -1"), ((2, 2), "elements"), ((2, 3, 0), "copies")],
)
def test_impossible_targets_are_refused(target: tuple[int, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        find("", "Reshape", 14)().meaning(np.zeros((2, 3)), np.array(target))


@pytest.mark.parametrize("axis", [-3, -1, 0, 1, 2, 3])
def test_flatten_agrees_with_onnxruntime(axis: int) -> None:
    assert_agree("Flatten", [np.arange(24.0).reshape(2, 3, 4)], axis=axis)


@pytest.mark.parametrize("axes", [None, (0,), (-1,), (0, 3)])
def test_squeeze_agrees_with_onnxruntime(axes: tuple[int, ...] | None) -> None:
    data = np.arange(6.0).reshape(1, 2, 3, 1)
    assert_agree("Squeeze", [data, None if axes is None else np.array(axes)])
    (old,) = ours("Squeeze", [data], 11, axes=axes)
    assert old.shape == np.squeeze(data, axes).shape


def test_squeeze_refuses_an_axis_that_is_not_one() -> None:
    with pytest.raises(ValueError, match="size 2"):
        find("", "Squeeze", 13)().meaning(np.zeros((2, 1)), np.array([0]))
    with pytest.raises(ValueError, match="twice"):
        find("", "Squeeze", 13)().meaning(np.zeros((1, 1)), np.array([0, -2]))


@pytest.mark.parametrize("axes", [(0,), (-1,), (1, -1), (3, 0)])
def test_unsqueeze_agrees_with_onnxruntime(axes: tuple[int, ...]) -> None:
    data = np.arange(6.0).reshape(2, 3)
    assert_agree("Unsqueeze", [data, np.array(axes)])
    (old,) = ours("Unsqueeze", [data], 11, axes=axes)
    assert old.shape == np.expand_dims(data, axes).shape


def test_symbolic_contents_pass_through() -> None:
    shape = np.array([symbol("n"), 768], object)
    (found,) = (find("", "Unsqueeze", 13)().meaning(shape, np.array([0])),)
    assert found.shape == (1, 2)
    assert found[0, 0] == symbol("n")


def test_rank_unknown_is_no_error() -> None:
    nothing = Operand(TensorType(DType.FLOAT32, None))
    for name, others in [("Flatten", []), ("Squeeze", []), ("Reshape", [nothing])]:
        (found,) = find("", name, 21)().infer(nothing, *others)
        assert found.dtype is DType.FLOAT32
