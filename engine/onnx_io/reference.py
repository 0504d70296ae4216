"""The step of last resort: onnx's reference evaluator runs a node that has no meaning here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from engine.errors import InvalidModelError, KernelError, UnsupportedOperatorError
from engine.ir.graph import Value
from engine.ir.types import TensorType
from engine.onnx_io.tensors import dtype_of, proto_dtype
from engine.ops.reference import Reference

__all__ = ["evaluate_node", "reference_operator"]


def reference_operator(
    proto: onnx.NodeProto,
    attributes: dict[str, AttributeProto],
    inputs: Sequence[Value | None],
    opsets: dict[str, int],
    where: str,
) -> Reference:
    """The node as a reference step; UnsupportedOperatorError when onnx does not know it either."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    version = opsets[domain]
    try:
        schema = onnx.defs.get_schema(proto.op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # the latter for versions beyond all numbers
        raise UnsupportedOperatorError(
            f"{where}: neither the engine nor onnx {onnx.__version__} knows this operator"
        ) from None
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in attributes.values()):
        raise UnsupportedOperatorError(f"{where}: a reference step cannot have bodies")
    node = onnx.NodeProto()
    node.CopyFrom(proto)
    del node.attribute[:]
    for name, attribute in attributes.items():
        kept = node.attribute.add()
        kept.CopyFrom(attribute)
        kept.name = name
    types = _output_types(schema, node, inputs, opsets, where)
    return Reference(
        node=base64.b64encode(node.SerializeToString(deterministic=True)).decode(),
        operator=f"{domain or 'ai.onnx'}.{proto.op_type}-{version}",
        opsets=tuple(f"{key}:{value}" for key, value in sorted(opsets.items())),
        dtypes=tuple(name for name, _ in types),
        ranks=tuple(rank for _, rank in types),
    )


def _output_types(
    schema: Any,
    node: onnx.NodeProto,
    inputs: Sequence[Value | None],
    opsets: dict[str, int],
    where: str,
) -> list[tuple[str, int]]:
    known = {}
    for name, value in zip(node.input, inputs):
        if value is None:
            continue
        if not isinstance(value.type, TensorType):
            raise UnsupportedOperatorError(f"{where}: a reference step takes tensors only")
        shape = value.type.shape
        known[name] = onnx.helper.make_tensor_type_proto(
            proto_dtype(value.type.dtype),
            None if shape is None else [d if isinstance(d, int) else None for d in shape],
        )
    imports = [onnx.helper.make_opsetid(key, version) for key, version in opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, node, known, opset_imports=imports)
    except Exception as error:
        raise InvalidModelError(f"{where}: {error}") from None
    types = []
    for name in node.output:
        proto = found.get(name)
        if proto is None or not proto.HasField("tensor_type"):
            raise UnsupportedOperatorError(f"{where}: onnx does not infer the type of {name!r}")
        inner = proto.tensor_type
        rank = len(inner.shape.dim) if inner.HasField("shape") else -1
        types.append((dtype_of(inner.elem_type, where).value, rank))
    return types


@lru_cache(maxsize=256)
def _evaluator(node: str, opsets: tuple[str, ...]) -> tuple[Any, onnx.NodeProto]:
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto.FromString(base64.b64decode(node))
    graph = onnx.helper.make_graph(
        [proto],
        "reference",
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(proto.input) if name],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    imports = []
    for item in opsets:
        domain, _, version = item.rpartition(":")
        imports.append(onnx.helper.make_opsetid(domain, int(version)))
    model = onnx.helper.make_model(graph, opset_imports=imports)
    return ReferenceEvaluator(model), proto


def evaluate_node(operator: Reference, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Run the node of a reference step on arrays; KernelError when the evaluator fails."""
    evaluator, proto = _evaluator(operator.node, operator.opsets)
    feeds = {name: value for name, value in zip(proto.input, inputs) if name}
    try:
        results = evaluator.run(None, feeds)
    except Exception as error:
        raise KernelError(
            f"the reference evaluator failed in {operator.operator}: {error}"
        ) from error
    return tuple(np.asarray(item) for item in results)
