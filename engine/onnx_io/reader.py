"""From an ONNX file to a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto

from engine.errors import InvalidModelError, UnsupportedOperatorError
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import Array, DType, TensorType, Type
from engine.onnx_io.calls import check_calls
from engine.onnx_io.conversion import convert
from engine.onnx_io.inputs import settle_inputs
from engine.onnx_io.names import check_text
from engine.onnx_io.reference import reference_operator
from engine.onnx_io.tensors import array_of, type_of
from engine.ops.control import ControlOperator
from engine.ops.operator import Operator, find

__all__ = ["read"]

_UNTYPED = TensorType(DType.FLOAT32, None)
#: Bodies within bodies; inference visits the inner ones again for every turn of the outer.
_MAX_BODY_DEPTH = 12
#: Elements of a sparse tensor that is written out.
_MAX_DENSE = 1 << 31


def read(
    model: str | Path | bytes | onnx.ModelProto,
    *,
    reference: bool = True,
    shapes: Mapping[str, Sequence[Any]] | None = None,
) -> Graph:
    """The graph of a model: a path, the bytes of a file, or a ModelProto.

    ``reference`` allows operators without a meaning here to run in onnx's reference evaluator.
    ``shapes`` maps input names to shapes (integers and sizes) that replace the declared ones.
    Raises ModelError, saying what is wrong with the model and where.
    """
    proto, folder = _load(model)
    check_text(proto, _title(model))
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InvalidModelError(f"{_title(model)} is not an ONNX model: it holds no graph")
    opsets = _opsets(proto.opset_import)
    if 0 < opsets.get("", 7) < 7:
        proto = convert(proto, opsets[""])
        opsets = _opsets(proto.opset_import)
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    check_calls(proto.graph, functions)
    importer = _Importer(folder, functions, reference, dict(shapes or {}))
    graph = importer.graph(proto.graph, _Scope(opsets=opsets), top=True)
    _check_shapes_used(graph, shapes or {})
    return graph


def _title(model: object) -> str:
    return f"{str(model)!r}" if isinstance(model, (str, Path)) else "the given model"


def _load(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        return model, None
    try:
        if isinstance(model, bytes):
            return onnx.ModelProto.FromString(model), None
        path = Path(model)
        if not path.is_file():
            raise InvalidModelError(f"{_title(model)} is not there; expected an ONNX file")
        return onnx.ModelProto.FromString(path.read_bytes()), path.parent
    except DecodeError as error:
        raise InvalidModelError(
            f"{_title(model)} is not an ONNX model, or is truncated: {error}"
        ) from None


def _opsets(imports: Any) -> dict[str, int]:
    return {("" if item.domain == "ai.onnx" else item.domain): item.version for item in imports}


def _check_shapes_used(graph: Graph, shapes: Mapping[str, Any]) -> None:
    names = [value.name for value in graph.inputs]
    for name in shapes:
        if name not in names:
            raise InvalidModelError(f"the model has no input {name!r}; its inputs are {names}")


@dataclass
class _Scope:
    """Names visible at one place: values, opsets, and the scope around a body."""

    opsets: dict[str, int]
    outer: _Scope | None = None
    values: dict[str, Value] = field(default_factory=dict)
    captures: dict[str, tuple[Value, Value]] = field(default_factory=dict)  # outer, inner
    attributes: dict[str, AttributeProto] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    prefix: str = ""
    body_depth: int = 0

    def make(self, name: str, value: Value, where: str) -> None:
        """Enter a value that is made here; InvalidModelError when its name is taken."""
        if name in self.made:
            raise InvalidModelError(f"{where} has two values called {name!r}")
        self.made.add(name)
        self.values[name] = value

    def find(self, name: str) -> Value | None:
        """The value of a name here or outside; one from outside becomes a captured input."""
        if name in self.values:
            return self.values[name]
        found = self.outer.find(name) if self.outer is not None else None
        if found is None:
            return None
        if found.constant is not None:
            inner = Value(name, found.type, constant=found.constant, origin=found.origin)
        else:
            inner = Value(name, found.type)
            inner.content = found.content
            self.captures[name] = (found, inner)
        self.values[name] = inner
        return inner


class _Importer:
    """Builds graphs; one per model."""

    def __init__(
        self,
        folder: Path | None,
        functions: dict[tuple[str, str, str], onnx.FunctionProto],
        reference: bool,
        shapes: dict[str, Sequence[Any]],
    ) -> None:
        self.folder, self.functions = folder, functions
        self.reference, self.shapes = reference, shapes

    def graph(self, proto: onnx.GraphProto, scope: _Scope, *, top: bool = False) -> Graph:
        """One graph with its inputs, constants, nodes and outputs."""
        graph = Graph(proto.name or "graph")
        self._constants(graph, proto, scope)
        inputs: set[str] = set()
        for item in proto.input:
            if item.name in inputs:
                raise InvalidModelError(f"graph {graph.name!r} has two inputs called {item.name!r}")
            inputs.add(item.name)
            if item.name not in scope.values:
                kind = type_of(item.type, item.name) or _UNTYPED
                self._input(graph, scope, item.name, self._override(kind, item.name, top))
        if top:
            settle_inputs(graph)
        self._nodes(graph, proto.node, scope)
        for item in proto.output:
            graph.outputs.append(self._lookup(item.name, scope, f"output of graph {graph.name!r}"))
        if top:
            self._check_declared(graph, proto)
            # Outputs carry the model's names, also where a function or constant made them.
            graph.output_names = [item.name for item in proto.output]
            twice = {name for name in graph.output_names if graph.output_names.count(name) > 1}
            if twice:
                raise InvalidModelError(
                    f"graph {graph.name!r} has two outputs called {min(twice)!r}"
                )
        return graph

    def _override(self, kind: Type, name: str, top: bool) -> Type:
        if not (top and name in self.shapes):
            return kind
        if not isinstance(kind, TensorType):
            raise InvalidModelError(f"input {name!r} is {kind}; only a tensor can be given a shape")
        shape = tuple(self.shapes[name])
        if kind.shape is not None and len(kind.shape) != len(shape):
            raise InvalidModelError(
                f"input {name!r} has {len(kind.shape)} axes in the model, {len(shape)} were given"
            )
        for axis, (old, new) in enumerate(zip(kind.shape or shape, shape)):
            if isinstance(old, int) and isinstance(new, int) and old != new:
                raise InvalidModelError(
                    f"input {name!r} has size {old} on axis {axis} in the model, {new} was given"
                )
        return TensorType(kind.dtype, shape)

    def _input(self, graph: Graph, scope: _Scope, name: str, kind: Type) -> None:
        value = Value(graph.fresh_name(name), kind)
        graph.inputs.append(value)
        scope.make(name, value, f"graph {graph.name!r}")

    def _constants(self, graph: Graph, proto: onnx.GraphProto, scope: _Scope) -> None:
        for tensor in proto.initializer:
            array = array_of(tensor, self.folder, f"initializer {tensor.name!r}")
            self._constant(graph, scope, tensor.name, array)
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            self._constant(graph, scope, name, _dense(sparse, self.folder, name))

    def _constant(self, graph: Graph, scope: _Scope, name: str, array: Array) -> None:
        value = graph.constant(name, array, origin=name)
        scope.make(name, value, f"graph {graph.name!r}")

    def _lookup(self, name: str, scope: _Scope, where: str) -> Value:
        value = scope.find(name)
        if value is None:
            raise InvalidModelError(
                f"{where} reads {name!r}, which nothing before it makes (a dangling edge, a cycle, "
                "or nodes out of order)"
            )
        return value

    def _nodes(self, graph: Graph, nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
        for index, proto in enumerate(nodes):
            name = scope.prefix + (proto.name or f"{proto.op_type}_{index}")
            key = (proto.domain, proto.op_type, proto.overload)
            if key in self.functions:
                self._call(graph, proto, scope, name, self.functions[key])
            else:
                self._node(graph, proto, scope, name)

    def _node(self, graph: Graph, proto: onnx.NodeProto, scope: _Scope, name: str) -> None:
        inputs = [
            self._lookup(item, scope, f"node {name!r} ({proto.op_type})") if item else None
            for item in proto.input
        ]
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if domain not in scope.opsets:
            raise UnsupportedOperatorError(
                f"node {name!r} uses operator {proto.op_type} of domain {domain!r}, for which the "
                f"model imports no version and defines no function"
            )
        version = scope.opsets[domain]
        attributes = {a.name: self._resolve(a, scope) for a in proto.attribute}
        kept = {key: a for key, a in attributes.items() if a is not None}
        bodies = [a for a in kept.values() if a.type == AttributeProto.GRAPH]
        op = self._operator(proto, domain, version, kept, inputs, scope, name)
        outputs = self._outputs(graph, proto)
        if not outputs:
            return  # nobody can read what it makes
        node = Node(op, inputs, outputs, name=graph.fresh_name(name), sources=(name,))
        if isinstance(op, ControlOperator):
            self._bodies(graph, node, _ordered_bodies(proto, bodies), scope)
        for title, value in zip(proto.output, outputs):
            if title:
                scope.make(title, value, f"graph {graph.name!r}")
        graph.append(node)
        infer_node(graph, node)

    @staticmethod
    def _outputs(graph: Graph, proto: onnx.NodeProto) -> list[Value]:
        names = list(proto.output)
        while names and not names[-1]:
            names.pop()
        return [Value(graph.fresh_name(name or "unused"), _UNTYPED) for name in names]

    def _resolve(self, attribute: AttributeProto, scope: _Scope) -> AttributeProto | None:
        """An attribute, with a reference to a function's attribute replaced by its value."""
        if not attribute.ref_attr_name:
            return attribute
        return scope.attributes.get(attribute.ref_attr_name)

    def _operator(
        self,
        proto: onnx.NodeProto,
        domain: str,
        version: int,
        attributes: dict[str, AttributeProto],
        inputs: Sequence[Value | None],
        scope: _Scope,
        name: str,
    ) -> Operator:
        where = f"node {name!r} ({domain or 'ai.onnx'}.{proto.op_type}, opset {version})"
        try:
            cls = find(domain, proto.op_type, version)
        except UnsupportedOperatorError as error:
            if not self.reference:
                raise UnsupportedOperatorError(
                    f"{where}: {error}, and the reference evaluator is switched off"
                ) from None
            return reference_operator(proto, attributes, inputs, scope.opsets, where)
        values = {
            key: _attribute_value(a, self.folder, where)
            for key, a in attributes.items()
            if a.type != AttributeProto.GRAPH
        }
        if "output_count" in {item.name for item in fields(cls)}:
            values["output_count"] = len(proto.output)
        if issubclass(cls, ControlOperator):
            values["formal"] = len(proto.input)
        try:
            return cls.from_attributes(values)
        except ValueError as error:
            raise InvalidModelError(f"{where}: {error}") from None

    def _bodies(
        self, graph: Graph, node: Node, protos: Sequence[onnx.GraphProto], scope: _Scope
    ) -> None:
        """Build the bodies of a node; what they capture from outside becomes an input of it."""
        if scope.body_depth >= _MAX_BODY_DEPTH:
            raise InvalidModelError(f"bodies are nested more than {_MAX_BODY_DEPTH} deep")
        op = node.op
        assert isinstance(op, ControlOperator)
        operands = [None if value is None else value.operand() for value in node.inputs]
        formal_types = op.body_inputs(operands)
        scopes = []
        for proto, types in zip(protos, formal_types):
            inner = _Scope(
                opsets=scope.opsets,
                outer=scope,
                prefix=node.name + "/",
                attributes=scope.attributes,
                body_depth=scope.body_depth + 1,
            )
            body = Graph(proto.name or node.name)
            self._constants(body, proto, inner)
            if len(proto.input) != len(types):
                raise InvalidModelError(
                    f"body {body.name!r} of node {node.name!r} ({op.name}) takes "
                    f"{len(proto.input)} inputs, expected {len(types)}"
                )
            for item, kind in zip(proto.input, types):
                self._input(body, inner, item.name, kind)
            self._nodes(body, proto.node, inner)
            body.outputs = [
                self._lookup(item.name, inner, f"output of body {body.name!r}")
                for item in proto.output
            ]
            node.bodies.append(body)
            scopes.append(inner)
        self._captures(node, scopes)

    def _captures(self, node: Node, scopes: Sequence[_Scope]) -> None:
        """Every body takes every captured value, in one order."""
        outer: dict[str, Value] = {}
        for scope in scopes:
            outer.update({name: pair[0] for name, pair in scope.captures.items()})
        for name, value in outer.items():
            node.add_input(value)
            for scope, body in zip(scopes, node.bodies):
                pair = scope.captures.get(name)
                inner = pair[1] if pair else Value(name, value.type)
                inner.name = body.fresh_name(name)
                body.inputs.append(inner)

    def _call(
        self,
        graph: Graph,
        proto: onnx.NodeProto,
        scope: _Scope,
        name: str,
        function: onnx.FunctionProto,
    ) -> None:
        """Inline a local function: its nodes join the caller's graph."""
        inner = _Scope(
            opsets={**scope.opsets, **_opsets(function.opset_import)},
            prefix=name + "/",
            body_depth=scope.body_depth,
        )
        given = {a.name: self._resolve(a, scope) for a in proto.attribute}
        inner.attributes = {a.name: a for a in function.attribute_proto}
        inner.attributes.update({key: a for key, a in given.items() if a is not None})
        for index, formal in enumerate(function.input):
            actual = proto.input[index] if index < len(proto.input) else ""
            if actual:
                inner.values[formal] = self._lookup(actual, scope, f"call {name!r}")
        absent = {f for f in function.input if f not in inner.values}
        self._nodes(graph, [_without(node, absent) for node in function.node], inner)
        for formal, actual in zip(function.output, proto.output):
            if actual:
                found = self._lookup(formal, inner, f"function {function.name!r}")
                scope.make(actual, found, f"graph {graph.name!r}")

    def _check_declared(self, graph: Graph, proto: onnx.GraphProto) -> None:
        """Declared output types must not contradict what the operators say."""
        for item, value in zip(proto.output, graph.outputs):
            declared = type_of(item.type, item.name)
            found = value.type
            if not isinstance(declared, TensorType) or not isinstance(found, TensorType):
                continue
            if declared.shape is None or found.shape is None:
                continue
            clash = len(declared.shape) != len(found.shape) or any(
                isinstance(a, int) and isinstance(b, int) and a != b
                for a, b in zip(declared.shape, found.shape)
            )
            if clash or declared.dtype is not found.dtype:
                raise InvalidModelError(
                    f"output {item.name!r} is declared {declared}, but the nodes make {found}"
                )


def _without(node: onnx.NodeProto, absent: set[str]) -> onnx.NodeProto:
    """A function's node in which formal inputs that the caller left out are absent."""
    if not absent.intersection(node.input):
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    names = ["" if name in absent else name for name in node.input]
    while names and not names[-1]:
        names.pop()
    del changed.input[:]
    changed.input.extend(names)
    return changed


def _ordered_bodies(
    proto: onnx.NodeProto, bodies: Sequence[AttributeProto]
) -> list[onnx.GraphProto]:
    by_name = {a.name: a.g for a in bodies}
    if proto.op_type == "If":
        missing = [name for name in ("then_branch", "else_branch") if name not in by_name]
        if missing:
            raise InvalidModelError(f"node {proto.name!r} (If) has no {missing[0]}")
        return [by_name["then_branch"], by_name["else_branch"]]
    if proto.op_type == "FlexAttention":
        names = ("score_mod", "prob_mod") if by_name else ()
        return [by_name.get(name) or _passing_through() for name in names]
    if "body" not in by_name:
        raise InvalidModelError(f"node {proto.name!r} ({proto.op_type}) has no body")
    return [by_name["body"]]


def _passing_through() -> onnx.GraphProto:
    """A body that returns what it is given."""
    value = onnx.ValueInfoProto(name="given")
    return onnx.GraphProto(name="passing_through", input=[value], output=[value])


def _dense(sparse: onnx.SparseTensorProto, folder: Path | None, name: str) -> Array:
    """A sparse tensor (values, indices, dims) as a plain array."""
    where = f"sparse tensor {name!r}"
    values = array_of(sparse.values, folder, where)
    indices = array_of(sparse.indices, folder, where)
    if min(sparse.dims, default=0) < 0 or math.prod(sparse.dims) > _MAX_DENSE:
        raise InvalidModelError(f"{where} has the shape {list(sparse.dims)}, no size to be filled")
    array = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        indices = indices.astype(np.int64)
        if indices.ndim == 2:
            array[tuple(indices.T)] = values
        else:
            array.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise InvalidModelError(f"{where}: {error}") from None
    return array


def _attribute_value(attribute: AttributeProto, folder: Path | None, where: str) -> Any:
    kind = attribute.type
    if kind == AttributeProto.TENSOR:
        return array_of(attribute.t, folder, f"{where}, attribute {attribute.name!r}")
    if kind == AttributeProto.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor, folder, attribute.name)
    if kind == AttributeProto.TYPE_PROTO:
        return type_of(attribute.tp, where)
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return tuple(item.decode("utf-8", "replace") for item in attribute.strings)
    if kind == AttributeProto.TENSORS:
        return tuple(array_of(item, folder, where) for item in attribute.tensors)
    value = onnx.helper.get_attribute_value(attribute)
    return tuple(value) if kind in (AttributeProto.INTS, AttributeProto.FLOATS) else value
