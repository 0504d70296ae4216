"""cuBLASLt: structures, JSON, and the column-major view, without a GPU and with one."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.cuda import cublaslt_functions as lt
from engine.cuda.cublaslt import (
    CublasLt,
    Descriptors,
    MatmulCall,
    MatmulSizes,
    PreparedMatmul,
)
from engine.errors import KernelError, PlanCorruptError
from tests.engine.cuda.library_models import ColumnMajorModel

CALL = MatmulCall(
    dtype="float16",
    result="float16",
    transpose_b=True,
    alpha=0.5,
    bias=True,
    residual=True,
    activation="relu",
    algorithm="0123456789abcdef" * 8,
    workspace_nbytes=1024,
    version=130002,
)
SIZES = MatmulSizes(5, 7, 3, 2, 3, 3, 7, 7, 15, 21, 35, 35)


def test_structures_are_as_long_as_the_library_s() -> None:
    assert ctypes.sizeof(lt.Algorithm) == 64
    assert ctypes.sizeof(lt.HeuristicResult) == 96
    found = [getattr(lt.HeuristicResult, n).offset for n, _ in lt.HeuristicResult._fields_]
    assert found == [0, 64, 72, 76, 80]


def test_calls_and_sizes_come_back_from_json() -> None:
    assert MatmulCall.from_json(CALL.to_json()) == CALL
    assert MatmulSizes.from_list(SIZES.to_list()) == SIZES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int8"),
        ("result", "bfloat16"),
        ("transpose_b", 1),
        ("alpha", "1"),
        ("alpha", True),
        ("activation", "gelu"),
        ("algorithm", "00" * 63),
        ("algorithm", "zz" * 64),
        ("workspace_nbytes", -1),
        ("workspace_nbytes", 1 << 40),
        ("version", None),
        ("more", 1),
    ],
)
def test_a_damaged_call_is_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(PlanCorruptError, match=field):
        MatmulCall.from_json({**CALL.to_json(), field: value})


@pytest.mark.parametrize("sizes", [[1] * 11, [0] + [1] * 11, [1] * 11 + [-1], [1 << 60] * 12])
def test_damaged_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(PlanCorruptError, match="cublaslt"):
        MatmulSizes.from_list(sizes)


def run(
    model: ColumnMajorModel, call: MatmulCall, sizes: MatmulSizes, operands: Sequence[int]
) -> None:
    descriptors = Descriptors(model, call, sizes)  # type: ignore[arg-type]
    prepared = PreparedMatmul(model, 1, descriptors)  # type: ignore[arg-type]
    prepared.run(operands, 0, prepared.workspace_nbytes, 0)
    prepared.close()
    prepared.close()
    assert not model.objects, "a descriptor was not released"
    with pytest.raises(KernelError, match="closed"):
        prepared.run(operands, 0, 0, 0)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("shared_b", [False, True])
@pytest.mark.parametrize("extra", [(), ("bias",), ("residual",), ("bias", "residual")])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_column_major_view_is_the_row_major_product(
    transpose_b: bool, shared_b: bool, extra: tuple[str, ...], activation: str
) -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal((2, 5, 3)).astype(np.float16)
    b = rng.standard_normal((1 if shared_b else 2, 3, 7)).astype(np.float16)
    bias, residual = (rng.standard_normal(s).astype(np.float16) for s in ((7,), (2, 5, 7)))
    stored = np.ascontiguousarray(b.swapaxes(1, 2)) if transpose_b else b
    y = np.full((2, 5, 7), np.nan, np.float16)
    memory = {1: a, 2: stored, 3: bias, 4: residual, 5: y}
    call = dataclasses.replace(
        CALL,
        transpose_b=transpose_b,
        bias="bias" in extra,
        residual="residual" in extra,
        activation=activation,
    )
    sizes = MatmulSizes(
        *(5, 7, 3, 2, 3, 3 if transpose_b else 7, 7, 7),
        *(15, 0 if shared_b else 21, 35, 35),
    )
    run(ColumnMajorModel(memory), call, sizes, [1, 2, *(3 + (e == "residual") for e in extra), 5])
    expected = 0.5 * np.matmul(a.astype(np.float32), b.astype(np.float32))
    expected += (bias if "bias" in extra else 0) + (residual if "residual" in extra else 0)
    expected = np.maximum(expected, 0) if activation == "relu" else expected
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)


def test_a_refused_or_hungrier_algorithm_is_named() -> None:
    for model, words in (
        (ColumnMajorModel({}, refuses=15), "does not run the plan's algorithm"),
        (ColumnMajorModel({}, need=1 << 20), "1048576 bytes of workspace"),
    ):
        descriptors = Descriptors(model, CALL, SIZES)  # type: ignore[arg-type]
        with pytest.raises(KernelError, match=words):
            PreparedMatmul(model, 1, descriptors)  # type: ignore[arg-type]


def test_wrong_operands_are_refused_before_the_library_sees_them() -> None:
    model = ColumnMajorModel({}, need=512)
    prepared = PreparedMatmul(model, 1, Descriptors(model, CALL, SIZES))  # type: ignore[arg-type]
    assert prepared.workspace_nbytes == 512
    for operands, workspace in (([1, 2, 3], 512), ([1, 2, 3, 4, 5], 511)):
        with pytest.raises(KernelError, match="5 operands and 512 bytes"):
            prepared.run(operands, 4096, workspace, 0)


def test_another_version_of_the_library_is_refused() -> None:
    library = object.__new__(CublasLt)
    library._functions, library._handle = ColumnMajorModel({}), 0  # type: ignore[assignment]
    call = dataclasses.replace(CALL, version=130100)
    with pytest.raises(KernelError, match=r"130100.*130002.*nvidia-cublas"):
        library.prepare(call.to_json(), SIZES.to_list(), None)  # type: ignore[arg-type]
