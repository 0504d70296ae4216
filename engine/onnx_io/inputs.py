"""Inputs whose elements have shapes of their own: sequences and optionals."""

from __future__ import annotations

from engine.ir.graph import Graph
from engine.ir.sizes import symbol
from engine.ir.types import OptionalType, SequenceType, TensorType, Type

__all__ = ["settle_inputs"]


def settle_inputs(graph: Graph) -> None:
    """Mark sizes of elements that are read off no tensor input as known only while running."""
    settled = {
        str(dim)
        for value in graph.inputs
        if isinstance(value.type, TensorType)
        for dim in value.type.shape or ()
        if not isinstance(dim, int)
    }
    for value in graph.inputs:
        if not isinstance(value.type, TensorType):
            value.type = _marked(value.type, settled)


def _marked(kind: Type, settled: set[str]) -> Type:
    if isinstance(kind, SequenceType):
        return SequenceType(_marked(kind.element, settled))
    if isinstance(kind, OptionalType):
        return OptionalType(_marked(kind.element, settled))
    if not isinstance(kind, TensorType) or kind.shape is None:
        return kind
    dims = (
        dim if isinstance(dim, int) or str(dim) in settled else symbol(f"?{dim}")
        for dim in kind.shape
    )
    return TensorType(kind.dtype, tuple(dims))
