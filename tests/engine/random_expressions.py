"""Random expressions over a few loads, for comparing printers."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from engine.ir.types import Array, DType
from engine.ops.expression import Expression, call, cast, constant, load
from engine.ops.functions import FUNCTIONS, kind

FLOATS = [DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16]
INTEGERS = [DType.INT8, DType.UINT8, DType.INT16, DType.INT32, DType.UINT32, DType.INT64]
TYPES = [*FLOATS, *INTEGERS, DType.UINT16, DType.UINT64, DType.BOOL]
# Exact in every printer: results may be compared, rounded and cast without widening differences.
EXACT = [
    *("add", "subtract", "multiply", "min", "max", "negative", "abs", "sign", "select"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_xor", "logical_not"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "shift_left", "shift_right"),
    *("divide", "floor_mod", "fmod", "floor", "ceil", "round", "trunc", "isnan", "isinf"),
]
# Within a few units in the last place of each other.
SMOOTH = sorted(set(FUNCTIONS) - set(EXACT) - {"power"})


@st.composite
def exact_expressions(draw: Any, count: int = 3, size: int = 12) -> Expression:
    """An expression of exactly defined functions over loads 0 to count - 1 and constants."""
    kinds = [draw(st.sampled_from(TYPES)) for _ in range(count)]
    nodes = [load(place, dtype) for place, dtype in enumerate(kinds)]
    nodes.append(constant(draw(st.integers(0, 100)), draw(st.sampled_from(TYPES))))
    nodes.append(constant(draw(st.floats(width=16)), draw(st.sampled_from(FLOATS))))
    for _ in range(draw(st.integers(1, size))):
        made = draw_call(draw, nodes)
        if made is not None:
            nodes.append(made)
    return nodes[-1]


def draw_call(draw: Any, nodes: list[Expression]) -> Expression | None:
    name = draw(st.sampled_from([*EXACT, "cast"]))
    first = draw(st.sampled_from(nodes))
    if name == "cast":
        return cast(first, draw(st.sampled_from(TYPES)))
    row = FUNCTIONS[name]
    if kind(first.dtype) not in row.takes:
        return None
    rest = [cast(draw(st.sampled_from(nodes)), first.dtype) for _ in range(row.arity - 1)]
    if name == "select":
        condition = draw(st.sampled_from(nodes))
        return call("select", cast(condition, DType.BOOL), first, rest[0])
    return call(name, first, *rest)


def values(dtype: DType, count: int, seed: int) -> Array:
    """Ordinary and awkward values of a type."""
    rng = np.random.default_rng(seed)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_integer:
        raw = rng.integers(0, 256, count * dtype.nbytes, dtype=np.uint8).view(dtype.numpy)
        small = rng.integers(0, 9, count).astype(dtype.numpy)
        return np.where(rng.random(count) < 0.5, raw, small)
    found = rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 1.5, 2.5, 300.0, -129.0, 3e9]
    found[: len(special)] = special[:count]
    with np.errstate(over="ignore"):
        return found.astype(dtype.numpy)
