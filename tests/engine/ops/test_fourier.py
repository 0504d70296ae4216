"""Fourier transforms invert, agree with NumPy, and know their sizes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find


def op(name: str, version: int = 20, **attributes: Any) -> Any:
    return find("", name, version).from_attributes(attributes)


def signal(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1, -2, -3])
def test_the_inverse_transform_undoes_the_transform(axis: int) -> None:
    x = signal(3, 8, 2)
    place = np.array(axis)
    spectrum = op("DFT").meaning(x, None, place)
    again = op("DFT", inverse=1).meaning(spectrum, None, place)
    np.testing.assert_allclose(again, x, atol=1e-6)


@pytest.mark.parametrize("length", [8, 9])
def test_the_one_sided_inverse_undoes_the_one_sided_transform(length: int) -> None:
    x = signal(2, length, 1)
    spectrum = op("DFT", onesided=1).meaning(x)
    assert spectrum.shape == (2, length // 2 + 1, 2)
    again = op("DFT", onesided=1, inverse=1).meaning(spectrum, np.array(length))
    np.testing.assert_allclose(again, x, atol=1e-6)


@pytest.mark.parametrize("length", [5, 8, 12])
def test_a_signal_is_cut_or_padded_to_the_length(length: int) -> None:
    x = signal(2, 8, 1, dtype=np.float64)
    found = op("DFT", 17).meaning(x, np.array(length))
    expected = np.fft.fft(x[..., 0], length)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_type_of_the_input_is_kept(dtype: Any) -> None:
    assert op("DFT").meaning(signal(2, 4, 1, dtype=dtype)).dtype == dtype


def test_the_axis_of_the_parts_cannot_be_transformed() -> None:
    with pytest.raises(ValueError, match="imaginary"):
        op("DFT").meaning(signal(2, 4, 2), None, np.array(-1))


def test_sizes_of_transforms_follow_symbols() -> None:
    n, m = symbol("n"), symbol("m")
    x = Operand(TensorType(DType.FLOAT32, (2, n, 1)))
    length = Operand(TensorType(DType.INT64, ()), content=np.array(m, object))
    opaque = Operand(TensorType(DType.INT64, ()))

    def shape(attributes: dict[str, int], *operands: Operand | None) -> Any:
        return op("DFT", **attributes).infer(x, *operands)[0].shape

    assert shape({}) == (2, n, 2)
    assert shape({}, length) == (2, m, 2)
    assert shape({"onesided": 1}) == (2, n // 2 + 1, 2)
    assert shape({"onesided": 1, "inverse": 1}) == (2, n * 2 - 2, 1)
    assert shape({"onesided": 1}, opaque) == (2, UnknownSize(), 2)
    assert shape({}, None, opaque) == (UnknownSize(), UnknownSize(), 2)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_each_frame_of_a_short_time_transform_is_the_transform_of_a_windowed_piece(
    onesided: int, step: int
) -> None:
    x, window = signal(2, 30, 1), np.hanning(8).astype(np.float32)
    found = op("STFT", onesided=onesided).meaning(x, np.array(step), window)
    frames = (30 - 8) // step + 1
    assert found.shape == (2, frames, 5 if onesided else 8, 2)
    for number in range(frames):
        piece = x[:, number * step : number * step + 8] * window[:, None]
        expected = op("DFT", onesided=onesided).meaning(piece)
        np.testing.assert_allclose(found[:, number], expected, atol=1e-5)


def test_a_short_time_transform_knows_its_sizes() -> None:
    n = symbol("n")
    x = Operand(TensorType(DType.FLOAT32, (1, n, 1)))
    step = Operand(TensorType(DType.INT64, ()), np.array(4))
    window = Operand(TensorType(DType.FLOAT32, (16,)))
    (kind,) = op("STFT").infer(x, step, window)
    assert kind.shape == (1, (n - 16) // 4 + 1, 9, 2)


def test_a_window_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        op("STFT").meaning(signal(1, 9, 1), np.array(1), np.ones(4), np.array(5))


def test_a_signal_shorter_than_a_frame_has_no_frames() -> None:
    found = op("STFT").meaning(signal(1, 3, 1), np.array(1), None, np.array(5))
    assert found.shape == (1, 0, 3, 2)
