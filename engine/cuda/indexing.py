"""Gathers and scatters by index tuples as CUDA C: a thread per element that is moved.

Indices count from the end where they are negative; what lies outside an axis is brought to its
nearest element, so that no access leaves its tensor. Without a reduction, elements that several
updates name keep one of them; sums in floating point are rounded in the order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.kernel import DeviceKernel
from engine.cuda.size_text import SizeText
from engine.ir.sizes import Dim, ceildiv, product
from engine.ir.types import DType
from engine.plan.device import Scalar
from engine.plan.expressions import Range

__all__ = ["THREADS", "Made", "gather_tuples", "reducible", "scatter_elements", "scatter_tuples"]

THREADS = 256

_HEAD = r"""@PRELUDE@
typedef @INDEX@ ef_index;
EF_FUNCTION ef_index ef_place(int64_t index, ef_index size) {
  index = index < 0 ? index + size : index;
  index = index < 0 ? 0 : index;
  return (ef_index)(index < size ? index : (int64_t)size - 1); }
"""

_COMBINE = r"""
/* An update joins what stands there; whoever loses the race tries again on the new value. */
EF_FUNCTION void ef_join(@KIND@ *to, @KIND@ update) {
  union Both { @KIND@ value; @BITS@ bits; };
  Both held, made;
  @BITS@ *const place = (@BITS@ *)to;
  held.bits = *(volatile @BITS@ *)place;
  for (;;) {
    const @KIND@ a = held.value, b = update;
    made.value = @COMBINED@;
    const @BITS@ found = atomicCAS(place, held.bits, made.bits);
    if (found == held.bits) return;
    held.bits = found;
  }
}
"""

_TEXT = r"""
extern "C" __global__ void __launch_bounds__(@THREADS@) @NAME@(@PARAMETERS@) {
  ef_wait();
  ef_launch_dependents();
  const ef_index item = (ef_index)blockIdx.x * @THREADS@ + (int)threadIdx.x;
  if (item >= @TOTAL@) return;
@BODY@
}
"""
#: What stands there and an update as one value; NaN wins, as in the meaning.
_COMBINED = {
    "add": "(@KIND@)(a + b)",
    "mul": "(@KIND@)(a * b)",
    "max": "a != a || a > b ? a : b",
    "min": "a != a || a < b ? a : b",
}
_ATOMIC = (DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64, DType.UINT32, DType.UINT64)


@dataclass(frozen=True, slots=True)
class Made:
    """A kernel, its grid and the sizes it takes behind its pointers."""

    kernel: DeviceKernel
    grid: tuple[Dim, ...]
    scalars: tuple[Scalar, ...]


def reducible(dtype: DType) -> bool:
    """Whether updates of a type can join what stands there."""
    return dtype in _ATOMIC


def _kernel(
    name: str,
    pointers: Sequence[str],
    body: Sequence[str],
    sizes: SizeText,
    total: Dim,
    functions: str = "",
) -> Made:
    limit = sizes(total)
    head = _HEAD.replace("@PRELUDE@", PRELUDE).replace("@INDEX@", sizes.index_type)
    text = _TEXT.replace("@THREADS@", str(THREADS)).replace("@NAME@", name)
    text = text.replace("@PARAMETERS@", ", ".join([*pointers, *sizes.declarations]))
    text = text.replace("@TOTAL@", limit).replace("@BODY@", "\n".join(f"  {x}" for x in body))
    kernel = DeviceKernel("nvrtc", name, head + functions + text, THREADS, waits=True)
    return Made(kernel, (ceildiv(total, THREADS),), sizes.scalars)


def _sizes(ranges: Mapping[str, Range], *totals: Dim) -> SizeText:
    return SizeText(SizeText.needs_wide(totals, ranges), ranges)


def _tuple_position(
    lead: Sequence[Dim], strides: Sequence[Dim], count: int, sizes: SizeText
) -> list[str]:
    """Adds to ``at`` where the index tuple ``tuple`` points; one stride per indexed axis."""
    return [
        f"at += ef_place(indices[tuple * {count} + {place}], {sizes(size)}) * {sizes(stride)};"
        for place, (size, stride) in enumerate(zip(lead, strides, strict=True))
    ]


def _strides(dims: Sequence[Dim]) -> list[Dim]:
    return [product(dims[axis + 1 :]) for axis in range(len(dims))]


def gather_tuples(
    data: tuple[DType, Sequence[Dim]],
    indices: tuple[DType, Sequence[Dim]],
    batch: int,
    ranges: Mapping[str, Range],
) -> Made:
    """Slices of data whose indices behind the batch axes are the last axis of ``indices``.

    Pointers are data, indices, result.
    """
    (dtype, dims), (index_type, places) = data, indices
    count = int(str(places[-1]))
    inner = product(dims[batch + count :])
    total = product(places[:-1]) * inner
    sizes = _sizes(ranges, product(dims), product(places), total)
    each, width = sizes(product(places[batch:-1])), sizes(inner)
    body = [
        f"const ef_index tuple = item / {width};",
        f"ef_index at = item % {width};",
        f"at += tuple / {each} * {sizes(product(dims[batch:]))};" if batch else "",
        *_tuple_position(
            dims[batch : batch + count], _strides(dims)[batch : batch + count], count, sizes
        ),
        "result[item] = data[at];",
    ]
    kind = storage_type(dtype)
    pointers = [f"const {kind} *data", f"const {storage_type(index_type)} *indices"]
    return _kernel("gather_tuples", [*pointers, f"{kind} *result"], body, sizes, total)


def _write(dtype: DType, reduction: str) -> tuple[str, str]:
    """The statement that puts an update where it belongs, and the function that it needs."""
    if reduction == "none":
        return "result[at] = updates[item];", ""
    if reduction not in _COMBINED or not reducible(dtype):
        raise ValueError(f"updates of {dtype.value} do not join by {reduction}")
    kind = storage_type(dtype)
    bits = "unsigned long long" if dtype.nbytes == 8 else "unsigned"
    text = _COMBINE.replace("@COMBINED@", _COMBINED[reduction])
    return (
        "ef_join(result + at, updates[item]);",
        text.replace("@KIND@", kind).replace("@BITS@", bits),
    )


def scatter_tuples(
    data: tuple[DType, Sequence[Dim]],
    indices: tuple[DType, Sequence[Dim]],
    reduction: str,
    ranges: Mapping[str, Range],
) -> Made:
    """Slices of updates to where the last axis of ``indices`` points in a copy of the data.

    Pointers are indices, updates, result (which holds the data already).
    """
    (dtype, dims), (index_type, places) = data, indices
    count = int(str(places[-1]))
    inner = product(dims[count:])
    total = product(places[:-1]) * inner
    sizes = _sizes(ranges, product(dims), product(places), total)
    statement, functions = _write(dtype, reduction)
    body = [
        f"const ef_index tuple = item / {sizes(inner)};",
        f"ef_index at = item % {sizes(inner)};",
        *_tuple_position(dims[:count], _strides(dims)[:count], count, sizes),
        statement,
    ]
    kind = storage_type(dtype)
    pointers = [f"const {storage_type(index_type)} *indices", f"const {kind} *updates"]
    pointers.append(f"{kind} *result")
    return _kernel("scatter_tuples", pointers, body, sizes, total, functions)


def scatter_elements(
    data: tuple[DType, Sequence[Dim]],
    indices: tuple[DType, Sequence[Dim]],
    axis: int,
    reduction: str,
    ranges: Mapping[str, Range],
) -> Made:
    """Each update to its own place, with its index along ``axis``, in a copy of the data.

    Pointers are those of `scatter_tuples`.
    """
    (dtype, dims), (index_type, places) = data, indices
    total = product(places)
    sizes = _sizes(ranges, product(dims), total)
    statement, functions = _write(dtype, reduction)
    strides = _strides(dims)
    along = f"ef_place(indices[item], {sizes(dims[axis])}) * {sizes(strides[axis])}"
    body = ["ef_index rest = item;", f"ef_index at = {along};"]
    for place in reversed(range(len(places))):
        if place != axis:
            body.append(f"at += rest % {sizes(places[place])} * {sizes(strides[place])};")
        body.append(f"rest /= {sizes(places[place])};")
    kind = storage_type(dtype)
    pointers = [f"const {storage_type(index_type)} *indices", f"const {kind} *updates"]
    pointers.append(f"{kind} *result")
    return _kernel("scatter_elements", pointers, [*body, statement], sizes, total, functions)
