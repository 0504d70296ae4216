"""Runs one operator by its meaning and, for comparison, as a one-node model by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import Array, DType, Operand, TensorType, UnknownSize
from engine.ops import find
from engine.ops.dtype_codes import CODES

NUMBERS = {dtype: code for code, dtype in CODES.items()}


def ours(
    name: str, inputs: Sequence[Array | None], opset: int = 21, outputs: int = 1, **attributes: Any
) -> tuple[Array, ...]:
    """The outputs by our meaning, after checking the shape rule against them."""
    found = find("", name, opset)
    if "output_count" in found.__dataclass_fields__:
        attributes["output_count"] = outputs
    operator = found.from_attributes(attributes)
    result = operator.meaning(*inputs)
    result = result if isinstance(result, tuple) else (result,)
    for known in (True, False):
        operands, bindings = [], {}
        for place, item in enumerate(inputs):
            if item is None:
                operands.append(None)
                continue
            shape: tuple[Any, ...] = item.shape
            if not known and place not in found.shape_inputs:
                shape = tuple(symbol(f"s{place}_{axis}") for axis in range(item.ndim))
                bindings |= {f"s{place}_{axis}": size for axis, size in enumerate(item.shape)}
            value = item if known or place in found.shape_inputs else None
            operands.append(Operand(TensorType(DType.of(item.dtype), shape), value))
        check_types(operator.infer(*operands), result, bindings)
    return result


def check_types(types: Sequence[Any], values: Sequence[Array], bindings: dict[str, int]) -> None:
    """The types tell the truth about the values, unknown sizes within their bounds."""
    assert len(types) == len(values)
    for found, value in zip(types, values, strict=True):
        assert isinstance(value, np.ndarray)
        assert found.dtype is DType.of(value.dtype)
        if found.shape is None:
            continue
        assert len(found.shape) == value.ndim
        for dim, size in zip(found.shape, value.shape, strict=True):
            if not isinstance(dim, UnknownSize):
                assert evaluate(dim, bindings) == size, f"{found} for {value.shape}, {bindings}"
            elif dim.bound is not None:
                assert size <= evaluate(dim.bound, bindings)


def theirs(
    name: str, inputs: Sequence[Array | None], opset: int = 21, outputs: int = 1, **attributes: Any
) -> tuple[Array, ...]:
    """The outputs by onnxruntime on the CPU; skips when it is not installed."""
    runtime = pytest.importorskip("onnxruntime")
    names = [f"x{place}" if item is not None else "" for place, item in enumerate(inputs)]
    while names and not names[-1]:
        names.pop()
    results = [f"y{place}" for place in range(outputs)]
    given = {n: item for n, item in zip(names, inputs, strict=False) if item is not None}
    infos = [
        helper.make_tensor_value_info(n, NUMBERS[DType.of(item.dtype)], list(item.shape))
        for n, item in given.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(name, names, results, **attributes)],
        "one",
        infos,
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in results],
    )
    for info in graph.output:
        info.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = min(onnx.IR_VERSION, 10)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return tuple(np.asarray(item) for item in session.run(None, given))


def assert_agree(
    name: str, inputs: Sequence[Array | None], opset: int = 21, outputs: int = 1, **attributes: Any
) -> None:
    """Our meaning and onnxruntime give the same types, shapes and, but for rounding, values."""
    mine = ours(name, inputs, opset, outputs, **attributes)
    other = theirs(name, inputs, opset, outputs, **attributes)
    assert len(mine) == len(other)
    for found, expected in zip(mine, other, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
        else:
            assert found.tolist() == expected.tolist()
