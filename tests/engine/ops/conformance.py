"""Runs registered operators on the single-node cases of onnx's backend suite."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, TypeProto
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

from engine.ir.sizes import Size, evaluate, symbol
from engine.ir.types import (
    DType,
    Operand,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownSize,
)
from engine.ops import Operator, find

# Cases whose expected outputs are one draw of NumPy's own generator: only types and shapes count.
RANDOM = re.compile(r"test_bernoulli|test_training_dropout(?!.*zero_ratio)")
# Types whose steps are coarser than the suite's tolerance: one step of rounding is allowed.
STEP = {
    DType.FLOAT16: 2**-10,
    DType.BFLOAT16: 2**-6,
    DType.FLOAT8E4M3FN: 2**-3,
    DType.FLOAT8E4M3FNUZ: 2**-3,
    DType.FLOAT8E5M2: 2**-2,
    DType.FLOAT8E5M2FNUZ: 2**-2,
}


@dataclass(frozen=True)
class Case:
    """One node with its inputs and the outputs expected for them."""

    name: str
    node: NodeProto
    version: int
    inputs: tuple[Any, ...]
    input_types: tuple[TypeProto | None, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def random(self) -> bool:
        return RANDOM.match(self.name) is not None

    def operator(self) -> Operator:
        found = find(self.node.domain, self.node.op_type, self.version)
        values = {item.name: attribute(item) for item in self.node.attribute}
        if "output_count" in found.__dataclass_fields__:
            values["output_count"] = len(self.node.output)
        return found.from_attributes(values)


def attribute(item: AttributeProto) -> Any:
    """An attribute as an operator's field holds it."""
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return array(value)
    if isinstance(value, Sequence):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


def array(value: Any) -> Any:
    """A value of the suite as the engine holds it: strings as objects, lists for sequences."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [array(item) for item in value]
    result = to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    if result.dtype.kind in "OUS":
        flat = [v.decode() if isinstance(v, bytes) else str(v) for v in result.ravel().tolist()]
        result = np.array(flat, object).reshape(result.shape)
    return result


@cache
def suite(kind: str) -> list[Any]:
    """The backend suite's test cases of a kind: "node" or "simple"."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind=kind))


@cache
def cases() -> dict[tuple[str, str], list[Case]]:
    """All single-node cases without graphs as attributes, by domain and operator."""
    result: dict[tuple[str, str], list[Case]] = {}
    for test in suite("node"):
        graph = test.model.graph
        if len(graph.node) != 1 or any(a.HasField("g") for a in graph.node[0].attribute):
            continue
        node = graph.node[0]
        versions = {item.domain: item.version for item in test.model.opset_import}
        names, kinds = [i.name for i in graph.input], [i.type for i in graph.input]
        for inputs, outputs in test.data_sets:
            given = dict(zip(names, map(array, inputs), strict=True))
            types = dict(zip(names, kinds, strict=True))
            case = Case(
                name=test.name,
                node=node,
                version=versions[node.domain],
                inputs=tuple(given.get(name) for name in node.input),
                input_types=tuple(types.get(name) for name in node.input),
                outputs=tuple(array(item) for item in outputs),
                rtol=test.rtol,
                atol=test.atol,
            )
            result.setdefault((node.domain, node.op_type), []).append(case)
    return result


def check(case: Case) -> None:
    """Assert that meaning and shape rule of the case's operator agree with the suite.

    The rule is asked with sizes as numbers and as symbols, with and without the values of the
    inputs, with values that are symbols, and with unknown ranks.
    """
    operator = case.operator()
    text = json.dumps(operator.attributes())
    again = type(operator).from_attributes(json.loads(text))
    assert json.dumps(again.attributes()) == text, "attributes change on their way through JSON"
    before = [np.array(i) if isinstance(i, np.ndarray) else None for i in case.inputs]
    result = operator.meaning(*case.inputs)
    for kept, value in zip(before, case.inputs, strict=True):
        if kept is not None:
            same(value, kept, rtol=0, atol=0, where="an input changed by the meaning")
    results = result if isinstance(result, tuple) else (result,)
    wanted = [i for i, name in enumerate(case.node.output) if name]
    for position, expected in zip(wanted, case.outputs, strict=True):
        found = results[position]
        if case.random:
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        else:
            same(found, expected, rtol=case.rtol, atol=case.atol, where=f"output {position}")
    actual = [results[i] if i < len(results) else None for i in range(len(case.node.output))]
    for values_known in (True, False):
        check_rule(case, operator, actual, symbolic=False, values_known=values_known)
        check_rule(case, operator, actual, symbolic=True, values_known=values_known)
    pairs = zip(case.inputs, case.input_types, strict=True)
    unknown = [operand(value, proto, shape=None) for value, proto in pairs]
    for kind, value in zip(operator.infer(*unknown), actual, strict=False):
        fits(kind, value, {}, "with inputs of unknown rank")
    check_shape_arithmetic(case, operator, results)


def check_rule(
    case: Case, operator: Operator, actual: Sequence[Any], *, symbolic: bool, values_known: bool
) -> None:
    """Assert that the shape rule's answer fits the actual outputs."""
    bindings: dict[str, int] = {}
    numbers = count()
    operands: list[Operand | None] = []
    for position, (value, proto) in enumerate(zip(case.inputs, case.input_types, strict=True)):
        known = values_known and isinstance(value, np.ndarray)
        shape: Any = shape_of(value)
        # The shape of a constant is a constant.
        if symbolic and shape is not None and not (known and position in operator.shape_inputs):
            names = [f"d{next(numbers)}" for _ in shape]
            bindings.update(zip(names, shape, strict=True))
            shape = tuple(symbol(name) for name in names)
        show = known and (not symbolic or position in operator.shape_inputs)
        operands.append(operand(value, proto, shape=shape, constant=value if show else None))
    where = f"{'symbolic' if symbolic else 'static'}, values {'' if values_known else 'un'}known"
    types = operator.infer(*operands)
    assert len(types) >= len([v for v in actual if v is not None]), f"{where}: too few types"
    for kind, found in zip(types, actual, strict=False):
        if found is not None:
            fits(kind, found, bindings, where)


def check_shape_arithmetic(case: Case, operator: Operator, results: Sequence[Any]) -> None:
    """Assert that the operator also works on sizes, where it says so."""
    arrays = [value for value in case.inputs if value is not None]
    integers = all(isinstance(v, np.ndarray) and v.dtype.kind in "iub" for v in arrays)
    if operator.symbolic and integers and arrays and len(results) == 1:
        objects = [None if value is None else value.astype(object) for value in case.inputs]
        found = np.asarray(operator.meaning(*objects), object)
        expected = results[0]
        same(found.astype(expected.dtype), expected, rtol=0, atol=0, where="on sizes")
    bindings: dict[str, int] = {}
    operands: list[Operand | None] = []
    for position, (value, proto) in enumerate(zip(case.inputs, case.input_types, strict=True)):
        item = operand(value, proto, shape=shape_of(value))
        if item is not None and position in operator.shape_inputs:
            content = _symbols(value, f"c{position}", bindings)
            kept = value if content is None and isinstance(value, np.ndarray) else None
            item = Operand(item.type, kept, content)
        operands.append(item)
    for kind, value in zip(operator.infer(*operands), results, strict=False):
        fits(kind, value, bindings, "values symbolic")


def _symbols(value: Any, name: str, bindings: dict[str, int]) -> Any:
    """A small integer tensor as symbols that stand for its elements; None when one is below 1."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "i" or value.size > 16:
        return None
    if (value < 1).any():
        return None
    names = [f"{name}_{index}" for index in range(value.size)]
    bindings.update(zip(names, value.ravel().tolist(), strict=True))
    content = np.empty(value.size, object)
    content[:] = [symbol(item) for item in names]
    return content.reshape(value.shape)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, or the one that all elements of a sequence have."""
    if isinstance(value, list):
        shapes = {shape_of(item) for item in value}
        return shapes.pop() if len(shapes) == 1 else None
    return getattr(value, "shape", None)


def operand(
    value: Any, proto: TypeProto | None, *, shape: Any, constant: Any = None
) -> Operand | None:
    """What a shape rule is told of an input; None for an absent one."""
    if proto is None:
        return None
    return Operand(kind_of(proto, shape), constant)


def kind_of(proto: TypeProto, shape: Any) -> Type:
    which = proto.WhichOneof("value")
    if which == "sequence_type":
        return SequenceType(kind_of(proto.sequence_type.elem_type, shape))
    if which == "optional_type":
        return OptionalType(kind_of(proto.optional_type.elem_type, shape))
    numpy = tensor_dtype_to_np_dtype(proto.tensor_type.elem_type)
    return TensorType(DType.of(numpy), shape)


def fits(kind: Type, value: Any, bindings: dict[str, int], where: str) -> None:
    """Assert that a value is one of a type whose symbols have the given values."""
    if isinstance(kind, OptionalType):
        if value is not None:
            fits(kind.element, value, bindings, where)
    elif isinstance(kind, SequenceType):
        assert isinstance(value, list), f"{where}: {kind} inferred, found {type(value).__name__}"
        for item in value:
            fits(kind.element, item, bindings, where)
    elif isinstance(kind, TensorType) and value is not None:
        found = DType.of(value.dtype)
        assert kind.dtype is found, f"{where}: {kind.dtype} inferred, found {found}"
        if kind.shape is None:
            return
        text = f"{where}: {kind} inferred, found shape {value.shape}"
        assert len(kind.shape) == value.ndim, text
        for dim, size in zip(kind.shape, value.shape, strict=True):
            if isinstance(dim, UnknownSize):
                bound = dim.bound
                assert bound is None or evaluate(bound, bindings) >= size, f"{text}, bound {bound}"
            else:
                assert isinstance(dim, (int, Size)), f"{text}: {type(dim)} is no size"
                assert evaluate(dim, bindings) == size, text


def same(found: Any, expected: Any, *, rtol: float, atol: float, where: str) -> None:
    """Assert that two values agree in kind, dtype, shape and, within tolerance, in content."""
    if expected is None:
        assert found is None, f"{where}: {found!r} instead of nothing"
        return
    if isinstance(expected, list):
        assert isinstance(found, list), f"{where}: {type(found).__name__} instead of a list"
        assert len(found) == len(expected), f"{where}: {len(found)} instead of {len(expected)}"
        for one, other in zip(found, expected, strict=True):
            same(one, other, rtol=rtol, atol=atol, where=where)
        return
    assert isinstance(found, (np.ndarray, np.generic)), f"{where}: {type(found)} is no array"
    assert found.dtype == expected.dtype, f"{where}: {found.dtype} instead of {expected.dtype}"
    assert found.shape == expected.shape, f"{where}: {found.shape} instead of {expected.shape}"
    kind = DType.of(expected.dtype)
    if kind.is_float or kind.is_complex:
        wide = np.complex128 if kind.is_complex else np.float64
        ours, theirs = found.astype(wide), expected.astype(wide)
        tolerance = 0 if rtol == 0 else max(rtol, STEP.get(kind, 0))
        # Expected zeros may hold the rounding noise of sums over the largest elements.
        sizes = np.abs(theirs[np.isfinite(theirs)])
        noise = 0 if rtol == 0 else 2**-22 * sizes.max(initial=0)
        np.testing.assert_allclose(
            ours, theirs, rtol=tolerance, atol=max(atol, noise), err_msg=where
        )
    else:
        np.testing.assert_array_equal(found, expected, err_msg=where)
