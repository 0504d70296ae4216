"""Weights that cannot be right: not-a-numbers where every sum would become one."""

from __future__ import annotations

import numpy as np

from engine.errors import InvalidModelError
from engine.ir.graph import Graph
from engine.ir.types import Array, DType

__all__ = ["LEARNED", "check_weights"]

#: Operators that multiply their constant inputs with data, or add them to sums.
LEARNED = frozenset(
    {
        *("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "PRelu"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "RMSNormalization"),
        *("GRU", "LSTM", "RNN"),
    }
)
#: Elements looked at together, so that a large weight needs no second copy of its size.
_CHUNK = 1 << 22


def check_weights(graph: Graph) -> None:
    """Refuse a model whose learned parameters hold not-a-numbers.

    Infinities are let through, as masks have them, and so are not-a-numbers that other operators
    read (`IsNaN`, `Where`). Raises InvalidModelError naming the first such weight and its reader.
    """
    seen: set[int] = set()
    for _, node in graph.walk():
        if node.kind not in LEARNED:
            continue
        for value in node.inputs:
            if value is None or value.constant is None or id(value.constant) in seen:
                continue
            seen.add(id(value.constant))
            count = _count_nan(value.constant)
            if count:
                raise InvalidModelError(
                    f"the weight {value.name!r} of node {node.name!r} ({node.kind}) holds {count} "
                    f"not-a-numbers among {value.constant.size} elements, so the outputs would be "
                    "not-a-numbers too; export the model again from a checkpoint without them"
                )


def _count_nan(array: Array) -> int:
    if array.dtype == object or not DType.of(array.dtype).is_float:
        return 0
    flat = array.reshape(-1)
    return sum(
        int(np.count_nonzero(np.isnan(flat[start : start + _CHUNK])))
        for start in range(0, flat.size, _CHUNK)
    )
