"""Windows and mel filters have the shapes that signal processing expects of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, Operand, TensorType, UnknownSize
from engine.ops import find
from engine.ops.dtype_codes import CODES
from tests.engine.ops.peer import agrees_with_peer

WINDOWS = {"HannWindow": np.hanning, "BlackmanWindow": np.blackman}


def op(name: str, **attributes: Any) -> Any:
    return find("", name, 17).from_attributes(attributes)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("size", [0, 1, 2, 7, 32])
def test_a_symmetric_window_is_numpys(name: str, size: int) -> None:
    found = op(name, periodic=0, output_datatype=11).meaning(np.array(size))
    np.testing.assert_allclose(found, WINDOWS[name](size), atol=1e-12)


@pytest.mark.parametrize("name", [*WINDOWS, "HammingWindow"])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_a_periodic_window_is_a_longer_symmetric_one_cut_short(name: str, size: int) -> None:
    periodic = op(name, output_datatype=11).meaning(np.array(size))
    longer = op(name, periodic=0, output_datatype=11).meaning(np.array(size + 1))
    np.testing.assert_allclose(periodic, longer[:size], atol=1e-12)


def test_a_hamming_window_stands_on_a_pedestal() -> None:
    found = op("HammingWindow", periodic=0).meaning(np.array(9))
    np.testing.assert_allclose([found.min(), found.max()], [4 / 46, 1], rtol=1e-6)


@pytest.mark.parametrize("code", [1, 10, 11, 16, 7, 2])
def test_a_window_has_the_type_that_is_asked_for(code: int) -> None:
    operator = op("HannWindow", output_datatype=code)
    assert operator.meaning(np.array(8)).dtype == CODES[code].numpy
    size = Operand(TensorType(DType.INT64, ()), content=np.array(symbol("n"), object))
    assert operator.infer(size) == [TensorType(CODES[code], (symbol("n"),))]


def test_a_window_of_unknown_size_has_an_unknown_size() -> None:
    (kind,) = op("HannWindow").infer(Operand(TensorType(DType.INT64, ())))
    assert kind.shape == (UnknownSize(),)


@pytest.mark.parametrize(("bands", "length"), [(8, 64), (20, 256), (3, 16)])
def test_mel_filters_agree_with_onnx_runtime_and_peak_at_one(bands: int, length: int) -> None:
    numbers = [np.array(bands), np.array(length), np.array(8000)]
    edges = [np.array(20.0, np.float32), np.array(3900.0, np.float32)]
    (found,) = agrees_with_peer("MelWeightMatrix", [*numbers, *edges], [DType.FLOAT32], domain="")
    assert (found.max(axis=0) == 1).all()


def test_mel_bands_beyond_half_the_sample_rate_are_refused() -> None:
    numbers = [np.array(8), np.array(64), np.array(8000)]
    with pytest.raises(ValueError, match="half the sample rate"):
        op("MelWeightMatrix").meaning(*numbers, np.array(0.0), np.array(9000.0))


@pytest.mark.parametrize("name", [*WINDOWS, "HammingWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_a_window_agrees_with_onnx_runtime(name: str, periodic: int) -> None:
    agrees_with_peer(name, [np.array(33)], [DType.FLOAT32], domain="", atol=1e-5, periodic=periodic)
