"""Row reductions in CUDA C: accumulators, exchange inside a warp and between the warps of a block.

Sums and products of integers wrap, so they are made without signs; floats narrower than float32
are reduced in float32 and rounded once. Greatest and least propagate NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cuda.c_expression import storage_type
from engine.ir.types import DType
from engine.ops.expression import Expression

__all__ = ["accumulator", "combine", "finished", "neutral", "print_exchange", "print_fold"]

WARP = 32
#: Up to so many warps every thread reads what each of them found.
FEW_WARPS = 8


def accumulator(node: Expression) -> str:
    """The C type in which a reduction is made."""
    dtype = node.dtype
    if dtype.is_float:
        return "double" if dtype is DType.FLOAT64 else "float"
    wide = dtype.nbytes == 8
    if node.function in ("row_sum", "row_prod") or not dtype.value.startswith("int"):
        return "uint64_t" if wide else "uint32_t"
    return "int64_t" if wide else "int32_t"


def combine(node: Expression, left: str, right: str) -> str:
    """The C text that takes one more value into a reduction."""
    if node.function in ("row_sum", "row_prod"):
        return f"{left} {'+' if node.function == 'row_sum' else '*'} {right}"
    greatest = node.function == "row_max"
    if node.dtype.is_float:
        return f"ef_{'maximum' if greatest else 'minimum'}({left}, {right})"
    name = "max" if greatest else "min"
    return f"ef_integer_{name}<{accumulator(node)}>({left}, {right})"


def neutral(node: Expression) -> str:
    """What changes nothing."""
    if node.function in ("row_sum", "row_prod"):
        return str(int(node.function == "row_prod"))
    greatest = node.function == "row_max"
    if node.dtype.is_float:
        return "-INFINITY" if greatest else "INFINITY"
    kind = accumulator(node)
    if kind.startswith("u"):
        return f"({kind})0" if greatest else f"~({kind})0"
    least = "INT64_MIN" if kind == "int64_t" else "(-2147483647 - 1)"
    return least if greatest else f"({kind})~{least}"


def finished(node: Expression, text: str) -> str:
    """A reduction's value from its accumulator."""
    if node.dtype in (DType.FLOAT16, DType.BFLOAT16):
        return f"ef_round_{node.dtype.value}({text})"
    return text if node.dtype.is_float else f"({storage_type(node.dtype)}){text}"


def print_fold(node: Expression, name: str, width: int) -> list[str]:
    """The accumulators of one thread, made one: name[0]."""
    lines = []
    while width > 1:
        width //= 2
        value = combine(node, f"{name}[e]", f"{name}[e + {width}]")
        lines += ["#pragma unroll", f"for (int e = 0; e < {width}; ++e) {name}[e] = {value};"]
    return lines


def print_exchange(
    folds: Sequence[Expression], level: int, lanes: int, threads: int, marks: Sequence[str] = ("",)
) -> list[str]:
    """All threads of a row get the reduction of a{level}_i[0] over them.

    ``lanes`` is a power of two up to a warp, or all ``threads`` of the block, in whole warps.
    ``marks`` are what the names of the accumulators of each row taken at once end with.
    """
    items = [(f"{level}_{i}{mark}", node) for mark in marks for i, node in enumerate(folds)]
    lines = []
    for name, node in items:
        lines += _shuffles(node, f"a{name}[0]", min(lanes, WARP))
    if lanes <= WARP:
        return lines
    warps = threads // WARP
    for name, node in items:
        lines.append(f"__shared__ {accumulator(node)} s{name}[{warps}];")
    lines.append(f"if (lane % {WARP} == 0) {{")
    for name, _ in items:
        lines.append(f"s{name}[lane / {WARP}] = a{name}[0];")
    lines += ["}", "__syncthreads();"]
    for name, node in items:
        lines += _gathered(node, f"a{name}[0]", f"s{name}", warps)
    return lines


def _gathered(node: Expression, name: str, shared: str, warps: int) -> list[str]:
    """What the warps found, made one by every warp in the same order."""
    if warps <= FEW_WARPS:
        value = combine(node, name, f"{shared}[warp]")
        loop = f"for (int warp = 1; warp < {warps}; ++warp) {name} = {value};"
        return [f"{name} = {shared}[0];", "#pragma unroll", loop]
    lane = f"lane % {WARP}"
    lines = [f"{name} = {lane} < {warps} ? {shared}[{lane}] : {neutral(node)};"]
    return lines + _shuffles(node, name, WARP)


def _shuffles(node: Expression, name: str, lanes: int) -> list[str]:
    if lanes == 1:
        return []
    value = combine(node, name, f"__shfl_xor_sync(0xffffffffu, {name}, step)")
    return [
        "#pragma unroll",
        f"for (int step = {lanes // 2}; step; step /= 2) {name} = {value};",
    ]
