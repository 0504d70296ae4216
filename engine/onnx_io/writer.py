"""From a graph back to an ONNX file, for Netron and other tools.

Standard operators are written as such. Operators that only the engine's passes make stay in the
domain "enginefarm"; attributes for which ONNX has no form are JSON strings.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from engine.ir.graph import Graph, Node, Value
from engine.ir.types import (
    Array,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    Type,
    UnknownSize,
)
from engine.onnx_io.tensors import proto_dtype
from engine.ops.control import ControlOperator
from engine.ops.operator import Operator, find
from engine.ops.reference import Reference

__all__ = ["model_of", "write"]

#: Constants beyond this go to a file beside the model; a protobuf cannot hold 2 GB.
INLINE_NBYTES = 1 << 30
_SMALL = 4096
_ALIGNMENT = 4096
_BODIES = {"If": ("then_branch", "else_branch"), "FlexAttention": ("score_mod", "prob_mod")}
_OWN_FIELDS = ("formal", "output_count")


def write(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to ``path``; great weights go to ``path``.data beside it."""
    place = Path(path)
    total = sum(value.constant.nbytes for value in graph.constants() if value.constant is not None)
    if total <= INLINE_NBYTES:
        place.write_bytes(model_of(graph).SerializeToString(deterministic=True))
        return
    data = place.with_name(place.name + ".data")
    with data.open("wb") as file:
        model = _Writer(file=file, location=data.name).model(graph)
    place.write_bytes(model.SerializeToString(deterministic=True))


def model_of(graph: Graph) -> onnx.ModelProto:
    """The graph as an ONNX model, constants included."""
    return _Writer().model(graph)


class _Writer:
    """Writes one graph with its bodies; no two values of them share a name."""

    def __init__(self, file: Any = None, location: str = "") -> None:
        self.names: dict[int, str] = {}
        self.taken: set[str] = set()
        self.file = file
        self.location = location

    def model(self, graph: Graph) -> onnx.ModelProto:
        """The whole model."""
        proto = self.graph(graph, graph.output_names)
        operators = [node.op for _, node in graph.walk()]
        imports = [helper.make_opsetid(*item) for item in sorted(opsets(operators).items())]
        return helper.make_model(
            proto,
            opset_imports=imports,
            producer_name="enginefarm",
            ir_version=min(10, onnx.IR_VERSION),
        )

    def name(self, value: Value, wanted: str = "") -> str:
        """The name of a value, unique in the whole model."""
        found = self.names.get(id(value))
        if found is None:
            hint = wanted or value.name or "value"
            found, count = hint, 0
            while found in self.taken:
                count += 1
                found = f"{hint}.{count}"
            self.taken.add(found)
            self.names[id(value)] = found
        return found

    def graph(
        self, graph: Graph, output_names: Sequence[str] = (), formal: int | None = None
    ) -> Any:
        """A graph; of a body only the first ``formal`` inputs are its own."""
        inputs = graph.inputs if formal is None else graph.inputs[:formal]
        proto = onnx.GraphProto(name=graph.name or "graph")
        proto.input.extend(helper.make_value_info(self.name(v), type_proto(v.type)) for v in inputs)
        copies = self._name_outputs(graph, output_names)
        for node in graph.nodes:
            proto.node.append(self.node(node))
        for value in graph.constants():
            proto.initializer.append(self.tensor(value))
        proto.node.extend(copies)
        names = [copy.output[0] for copy in copies]
        for value in graph.outputs:
            copied = self._is_copied(graph, value)
            name = names.pop(0) if copied else self.name(value)
            proto.output.append(helper.make_value_info(name, type_proto(value.type)))
        for value in graph.values():
            if value.producer is not None and not graph.is_output(value):
                proto.value_info.append(
                    helper.make_value_info(self.name(value), type_proto(value.type))
                )
        return proto

    @staticmethod
    def _is_copied(graph: Graph, value: Value) -> bool:
        """Whether an output needs a name of its own: an input, a constant, or given twice."""
        mine = value.producer is not None and value.producer.graph is graph
        return not mine or sum(1 for other in graph.outputs if other is value) > 1

    def _name_outputs(self, graph: Graph, output_names: Sequence[str]) -> list[onnx.NodeProto]:
        """Give outputs the names that callers know; copies for those that cannot have them."""
        names = list(output_names) or [value.name for value in graph.outputs]
        copies = []
        for value, name in zip(graph.outputs, names):
            if not self._is_copied(graph, value):
                self.name(value, name)
                continue
            stand_in = Value(name, value.type)
            copies.append((value, stand_in))
        made = []
        for value, stand_in in copies:
            copy = self.name(stand_in)
            made.append(helper.make_node("Identity", [self.name(value)], [copy], f"copy {copy}"))
            self.names.pop(id(stand_in))  # ids of objects that die may come again
        return made

    def node(self, node: Node) -> onnx.NodeProto:
        """One node with its bodies; what bodies capture they name as the graph around them does."""
        op = node.op
        own = node.inputs[: op.formal] if isinstance(op, ControlOperator) else node.inputs
        inputs = ["" if value is None else self.name(value) for value in own]
        outputs = [self.name(value) for value in node.outputs]
        if isinstance(op, Reference):
            proto = onnx.NodeProto()
            proto.ParseFromString(base64.b64decode(op.node))
            del proto.input[:], proto.output[:]
        else:
            proto = onnx.NodeProto(op_type=op.name, domain=op.domain)
            proto.attribute.extend(attributes(op))
        proto.name = node.name
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        if len(node.sources) > 1:
            proto.doc_string = "stands for " + ", ".join(node.sources)
        for title, body in zip(_BODIES.get(op.name, ("body",)), node.bodies):
            captured = node.inputs[len(own) :]
            formal = len(body.inputs) - len(captured)
            for outer, inner in zip(captured, body.inputs[formal:]):
                assert outer is not None
                self.names[id(inner)] = self.name(outer)
            proto.attribute.append(helper.make_attribute(title, self.graph(body, (), formal)))
        return proto

    def tensor(self, value: Value) -> TensorProto:
        """A constant as an initialiser, its bytes here or in the file beside the model."""
        array = value.constant
        assert array is not None
        name = self.name(value)
        if self.file is None or array.nbytes < _SMALL or array.dtype == object:
            return tensor_proto(array, name)
        self.file.write(bytes(-self.file.tell() % _ALIGNMENT))
        offset = self.file.tell()
        np.ascontiguousarray(array).tofile(self.file)
        dtype = DType.of(array.dtype)
        if dtype.value in ("int4", "uint4", "float4e2m1", "int2", "uint2"):
            raise ValueError(f"constant {name!r} of {dtype.value} is too great to be written")
        proto = TensorProto(name=name, dims=array.shape, data_type=proto_dtype(dtype))
        proto.data_location = TensorProto.EXTERNAL
        facts = (("location", self.location), ("offset", offset), ("length", array.nbytes))
        for key, fact in facts:
            proto.external_data.add(key=key, value=str(fact))
        return proto


def opsets(operators: Sequence[Operator]) -> dict[str, int]:
    """A version for each domain at which every operator is the one that the graph means."""
    newest: dict[str, int] = {"": 1}
    least: dict[str, int] = {}
    for op in operators:
        if isinstance(op, Reference):
            versions = dict(item.rsplit(":", 1) for item in op.opsets)
            for domain, version in versions.items():
                least[domain] = max(least.get(domain, 1), int(version))
        else:
            least[op.domain] = max(least.get(op.domain, 1), op.since)
    least.setdefault("", 7)
    known = onnx.defs.onnx_opset_version()
    for domain, lowest in least.items():
        mine = {type(op) for op in operators if op.domain == domain}
        last = known if domain == "" else lowest
        fitting = (
            version
            for version in range(last, lowest - 1, -1)
            if all(find(domain, cls.name, version) is cls for cls in mine)
        )
        newest[domain] = next(fitting, lowest)
    return newest


def attributes(op: Operator) -> list[AttributeProto]:
    """The attributes that differ from their defaults, as ONNX has them or as JSON strings."""
    found = []
    for name, plain in op.attributes().items():
        if name in _OWN_FIELDS:
            continue
        value = getattr(op, name, None)  # some describe themselves in other words than fields
        kind = _attribute_kind(value)
        if kind is None:
            value, kind = json.dumps(plain, sort_keys=True, default=str), AttributeProto.STRING
        elif isinstance(value, np.ndarray):
            value = tensor_proto(value, name)
        found.append(helper.make_attribute(name, value, attr_type=kind))
    return found


def _attribute_kind(value: Any) -> Any:
    """The ONNX type of an attribute's value; None when it has none."""
    if isinstance(value, np.ndarray):
        return AttributeProto.TENSOR
    if isinstance(value, DType):
        return None
    for python, one, many in (
        (int, AttributeProto.INT, AttributeProto.INTS),
        (float, AttributeProto.FLOAT, AttributeProto.FLOATS),
        (str, AttributeProto.STRING, AttributeProto.STRINGS),
    ):
        if isinstance(value, python):
            return one
        if isinstance(value, tuple) and value and all(isinstance(item, python) for item in value):
            return many
    return AttributeProto.INTS if value == () else None


def tensor_proto(array: Array, name: str) -> TensorProto:
    """An array as an ONNX tensor; elements under 8 bits are packed as ONNX has them."""
    if array.dtype == object:
        strings = [str(item).encode() for item in array.reshape(-1)]
        return TensorProto(
            name=name, dims=array.shape, data_type=TensorProto.STRING, string_data=strings
        )
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def type_proto(kind: Type) -> onnx.TypeProto:
    """A type as ONNX has it; sizes are numbers, named, or left open."""
    if isinstance(kind, SequenceType):
        return helper.make_sequence_type_proto(type_proto(kind.element))
    if isinstance(kind, OptionalType):
        return helper.make_optional_type_proto(type_proto(kind.element))
    if isinstance(kind, MapType):
        return helper.make_map_type_proto(proto_dtype(kind.key), type_proto(kind.value))
    shape = None if kind.shape is None else [_dim(dim) for dim in kind.shape]
    return helper.make_tensor_type_proto(proto_dtype(kind.dtype), shape)


def _dim(dim: Any) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if isinstance(dim, UnknownSize) else str(dim)
