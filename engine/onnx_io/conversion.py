"""Models older than opset 7, converted by onnx."""

from __future__ import annotations

import onnx

from engine.errors import UnsupportedOperatorError

__all__ = ["convert"]


def convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model in opset 7; UnsupportedOperatorError when onnx cannot convert it."""
    from onnx import version_converter

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _shape_slopes(copy)
    try:
        return version_converter.convert_version(copy, 7)
    except Exception as error:
        raise UnsupportedOperatorError(
            f"the model uses opset {version}, older than 7, and onnx cannot convert it: {error}"
        ) from None


def _shape_slopes(proto: onnx.ModelProto) -> None:
    """Before opset 7 a PRelu's slope was one number per channel; onnx does not convert that."""
    nodes = [n for n in proto.graph.node if n.op_type == "PRelu" and len(n.input) == 2]
    slopes = {node.input[1] for node in nodes}
    ranks = {
        node.input[1]: len(value.type.tensor_type.shape.dim)
        for node in nodes
        for value in (*proto.graph.input, *proto.graph.value_info)
        if node.input[0] == value.name
    }
    declared = {value.name: value for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name in slopes and len(tensor.dims) == 1 and tensor.dims[0] > 1:
            added = [1] * (ranks.get(tensor.name, 4) - 2)
            tensor.dims.extend(added)
            if tensor.name in declared:
                shape = declared[tensor.name].type.tensor_type.shape
                for _ in added:
                    shape.dim.add().dim_value = 1
