"""Gemm and MatMul become one operator with an epilogue."""

from __future__ import annotations

from engine.fusions.fusion import Match, Refused, fusion
from engine.ir.graph import Graph, Node, Value
from engine.ir.types import DType
from engine.ops.expression import call, cast, constant, load
from engine.ops.fused import CONTRACTED, FusedMatMul

__all__ = ["gemm", "matmul"]


@fusion("gemm(a, b, c) => a @ b + c", "Gemm")
def gemm(graph: Graph, node: Node) -> Match | Refused | None:
    """Alpha joins a constant B, beta a constant C; a transposed constant A or B is turned."""
    a, b = node.inputs[0], node.inputs[1]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    assert a is not None and b is not None
    if a.tensor.dtype not in CONTRACTED:
        return Refused("only float32, float16 and bfloat16 have fast products here")
    alpha, beta = getattr(node.op, "alpha", 1.0), getattr(node.op, "beta", 1.0)
    if getattr(node.op, "transA", 0):
        return Refused("A is transposed")
    total = load(0, DType.FLOAT32)
    if alpha != 1.0:
        total = call("multiply", total, constant(alpha, DType.FLOAT32))
    inputs: list[Value | None] = [a, b]
    kinds: tuple[str, ...] = ()
    if c is not None and beta != 0.0:
        kind = _operand_kind(c, node.outputs[0])
        if kind is None:
            return Refused(f"C is {c.type}, which no epilogue reads")
        extra = cast(load(1, c.tensor.dtype), DType.FLOAT32)
        if beta != 1.0:
            extra = call("multiply", extra, constant(beta, DType.FLOAT32))
        total = call("add", total, extra)
        inputs.append(c)
        kinds = (kind,)
    op = FusedMatMul(
        bool(getattr(node.op, "transB", 0)), cast(total, node.outputs[0].tensor.dtype), kinds
    )
    return Match(op, inputs, node.outputs[0], [node])


def _operand_kind(c: Value, output: Value) -> str | None:
    """How an epilogue reads an operand, if it can."""
    shape, whole = c.tensor.dims, output.tensor.dims
    columns = whole[-1]
    if shape == whole:
        return "full"
    if all(dim == 1 for dim in shape):
        return "scalar"
    if shape[-1] == columns and all(dim == 1 for dim in shape[:-1]):
        return "column"
    return None


@fusion("matmul(a, b) => a @ b with an epilogue", "MatMul")
def matmul(graph: Graph, node: Node) -> Match | Refused | None:
    """Products of matrices with at least two axes each."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    if a.tensor.dtype not in CONTRACTED:
        return Refused("only float32, float16 and bfloat16 have fast products here")
    if a.tensor.shape is None or b.tensor.shape is None:
        return Refused("the rank of an operand is not known")
    if len(a.tensor.shape) < 2 or len(b.tensor.shape) < 2:
        return Refused("an operand is a vector")
    total = cast(load(0, DType.FLOAT32), node.outputs[0].tensor.dtype)
    return Match(FusedMatMul(epilogue=total), [a, b], node.outputs[0], [node])
