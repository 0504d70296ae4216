"""Compares one operator with ONNX Runtime on inputs of the test's choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from engine.ir.sizes import symbol
from engine.ir.types import DType, MapType, Operand, SequenceType, TensorType, Type
from engine.ops import Operator, find
from tests.engine.ops.conformance import array, attribute, fits, same

#: Opsets to ask ONNX Runtime with.
LATEST = {"": 21, "ai.onnx.ml": 3}


def build(
    name: str, *, domain: str = "ai.onnx.ml", version: int | None = None, **attributes: Any
) -> Operator:
    """An operator from attributes as a model holds them."""
    node = helper.make_node(name, ["x"], ["y"], domain=domain, **attributes)
    found = find(domain, name, version or LATEST[domain])
    return found.from_attributes({item.name: attribute(item) for item in node.attribute})


def agrees_with_peer(
    name: str,
    inputs: list[Any],
    outputs: list[DType | None],
    *,
    domain: str = "ai.onnx.ml",
    version: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    **attributes: Any,
) -> list[Any]:
    """Assert that meaning and ONNX Runtime give the same; returns the outputs.

    ``outputs`` are the element types of the outputs, None for one that is no tensor.
    """
    version = version or LATEST[domain]
    operator = build(name, domain=domain, version=version, **attributes)
    result = operator.meaning(*inputs)
    results = list(result) if isinstance(result, tuple) else [result]
    kinds = operator.infer(*[Operand(type_of(item)) for item in inputs])
    for kind, value in zip(kinds, results, strict=True):
        fits(kind, value, {}, "sizes known")
    bindings: dict[str, int] = {}
    symbolic = [Operand(type_of(item, bindings, f"s{i}")) for i, item in enumerate(inputs)]
    for kind, value in zip(operator.infer(*symbolic), results, strict=True):
        fits(kind, value, bindings, "sizes symbolic")
    expected = run_peer(name, inputs, outputs, domain=domain, version=version, **attributes)
    for place, (found, wanted) in enumerate(zip(results, expected, strict=True)):
        if isinstance(wanted, list):
            assert found == wanted
        else:
            same(found, array(wanted), rtol=rtol, atol=atol, where=f"output {place}")
    return results


def type_of(value: Any, bindings: dict[str, int] | None = None, name: str = "") -> Type:
    """The type of a value, its sizes replaced by symbols that are entered in ``bindings``."""
    if isinstance(value, dict):
        key = DType.STRING if isinstance(next(iter(value)), str) else DType.INT64
        item = next(iter(value.values()))
        kind = DType.INT64 if isinstance(item, int) else DType.FLOAT32
        return MapType(key, TensorType(DType.STRING if isinstance(item, str) else kind, ()))
    if isinstance(value, list):
        return SequenceType(type_of(value[0]))
    if bindings is None:
        return TensorType(DType.of(value.dtype), value.shape)
    names = [f"{name}_{axis}" for axis in range(value.ndim)]
    bindings.update(zip(names, value.shape, strict=True))
    return TensorType(DType.of(value.dtype), tuple(symbol(item) for item in names))


def run_peer(
    name: str,
    inputs: list[Any],
    outputs: list[DType | None],
    *,
    domain: str,
    version: int,
    **attributes: Any,
) -> list[Any]:
    """The outputs of ONNX Runtime for a model of one node."""
    formal = [info(f"x{place}", type_of(value)) for place, value in enumerate(inputs)]
    results = [
        onnx.ValueInfoProto(name=f"y{place}")
        if kind is None
        else helper.make_tensor_value_info(f"y{place}", code(kind), None)
        for place, kind in enumerate(outputs)
    ]
    node = helper.make_node(
        name, [i.name for i in formal], [o.name for o in results], domain=domain, **attributes
    )
    opsets = {"": LATEST[""], domain: version}
    model = helper.make_model(
        helper.make_graph([node], "one", formal, results),
        opset_imports=[helper.make_opsetid(key, number) for key, number in opsets.items()],
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {item.name: value for item, value in zip(formal, inputs, strict=True)}
    return list(session.run(None, feed))


def code(kind: DType) -> int:
    if kind is DType.STRING:
        return int(TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(kind.numpy))


def info(name: str, kind: Type) -> onnx.ValueInfoProto:
    if isinstance(kind, MapType):
        assert isinstance(kind.value, TensorType)
        value = helper.make_tensor_type_proto(code(kind.value.dtype), ())
        return helper.make_value_info(name, helper.make_map_type_proto(code(kind.key), value))
    assert isinstance(kind, TensorType)
    return helper.make_tensor_value_info(name, code(kind.dtype), kind.shape)


def samples(rows: int, features: int, dtype: Any = np.float32, *, seed: int = 0) -> Any:
    """Random rows of features: normal floats, or integers from -5 to 5."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "i":
        return rng.integers(-5, 6, (rows, features)).astype(dtype)
    return rng.standard_normal((rows, features)).astype(dtype)
