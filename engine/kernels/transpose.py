"""Transposition of the axes that are contiguous before and after, by tiles held in registers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.kernels.isa import Isa
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_choice,
    take_integer,
    window,
)

__all__ = ["Transpose", "candidates", "kernel_of"]

#: Rows and columns of a work item.
BLOCK = 64
SPAN = 512
_WORDS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
#: Axes that stay outside the tiles.
MOST_OUTER = 6
_DTYPES = tuple(
    dtype.value for dtype in DType if dtype is not DType.STRING and dtype.nbytes in _WORDS
)

_HEAD = r"""
#include <stdint.h>
typedef @WORD@ word;
typedef word vector __attribute__((vector_size(@BYTES@), aligned(@ITEM@), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vector){__VA_ARGS__})
#endif
static inline __attribute__((always_inline)) void tile(
    const word *x, int64_t x_row, word *y, int64_t y_column) {
@TILE@
}
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
  enum { W = @WIDTH@, BLOCK = @BLOCK@, SPAN = @SPAN@ };
  const int64_t rows = size[@RANK@], columns = size[@RANK@ + 1];
  const int64_t x_row = size[@RANK@ + 2], y_column = size[@RANK@ + 3];
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK, spans = (columns + SPAN - 1) / SPAN;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % blocks * BLOCK, stop = first + BLOCK < rows ? first + BLOCK : rows;
    int64_t rest = item / blocks, from = 0, to = 0;
    int64_t c = rest % spans * SPAN;
    const int64_t last = c + SPAN < columns ? c + SPAN : columns;
    rest /= spans;
@OUTER@
    const word *x = (const word *)pointer[0] + from;
    word *y = (word *)pointer[1] + to;
    for (; c + W <= last; c += W) {
      int64_t r = first;
      for (; r + W <= stop; r += W) tile(x + r * x_row + c, x_row, y + c * y_column + r, y_column);
      for (; r < stop; ++r)
        for (int64_t k = c; k < c + W; ++k) y[k * y_column + r] = x[r * x_row + k];
    }
    for (; c < last; ++c)
      for (int64_t r = first; r < stop; ++r) y[c * y_column + r] = x[r * x_row + c];
  }
}
"""


@register
@dataclass(frozen=True, slots=True)
class Transpose(Kernel):
    """y[..., column, row] = x[..., row, column] over ``rank`` outer axes with free strides.

    Columns are adjacent in the input, rows in the output.
    """

    kind: ClassVar[str] = "transpose"

    rank: int
    dtype: DType = DType.FLOAT32

    def to_json(self) -> dict[str, object]:
        """How many outer axes, and the element type."""
        return {"rank": self.rank, "dtype": self.dtype.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, ("rank", "dtype"))
        dtype = DType(take_choice(fields, "dtype", _DTYPES))
        return cls(take_integer(fields, "rank", 0, MOST_OUTER), dtype)

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Input and output."""
        return (self.dtype.numpy.name,) * 2

    @property
    def size_names(self) -> tuple[str, ...]:
        """Outer sizes, rows and columns, their other strides, outer strides of x and of y."""
        axes = range(self.rank)
        return (
            *(f"outer{axis}" for axis in axes),
            *("rows", "columns", "x_row", "y_column"),
            *(f"x_outer{axis}" for axis in axes),
            *(f"y_outer{axis}" for axis in axes),
        )

    def _parts(self, sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """The whole space (rows and columns last) and the strides of x and y over it."""
        self.named(sizes)
        values, rank = [int(size) for size in sizes], self.rank
        rows, columns, x_row, y_column = values[rank : rank + 4]
        outer = values[rank + 4 :]
        space = [*values[:rank], rows, columns]
        return space, [*outer[:rank], x_row, 1], [*outer[rank:], 1, y_column]

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of rows and columns."""
        space, _, _ = self._parts(sizes)
        return math.prod(space[:-2]) * -(-space[-2] // BLOCK) * -(-space[-1] // SPAN)

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of input and output in elements."""
        space, x, y = self._parts(sizes)
        if 0 in space:
            return (0, 0)
        reach = [sum((n - 1) * s for n, s in zip(space, p, strict=True)) + 1 for p in (x, y)]
        return (reach[0], reach[1])

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """None: tiles live in registers."""
        return 0

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """No arithmetic; every element read and written."""
        space, _, _ = self._parts(sizes)
        return 0.0, 2.0 * math.prod(space) * self.dtype.nbytes

    def source(self, name: str, isa: Isa) -> str:
        """The C text for an instruction set."""
        width = max(2, isa.vector_floats * 4 // self.dtype.nbytes)
        if self.dtype.nbytes < 4:  # tiles of bytes would need too many registers
            width = min(width, 16 if isa.vector_floats < 16 else 32)
        width = min(width, 16)
        outer = []
        for axis in range(self.rank - 1, -1, -1):
            x_place, y_place = self.rank + 4 + axis, 2 * self.rank + 4 + axis
            outer.append(f"    {{ const int64_t i = rest % size[{axis}]; rest /= size[{axis}];")
            outer.append(f"      from += i * size[{x_place}]; to += i * size[{y_place}]; }}")
        marks = {
            "NAME": name,
            "WORD": _WORDS[self.dtype.nbytes],
            "ITEM": str(self.dtype.nbytes),
            "BYTES": str(width * self.dtype.nbytes),
            "WIDTH": str(width),
            "BLOCK": str(BLOCK),
            "SPAN": str(SPAN),
            "RANK": str(self.rank),
            "OUTER": "\n".join(outer),
            "TILE": _tile(width),
        }
        text = _HEAD
        for key, value in marks.items():
            text = text.replace(f"@{key}@", value)
        return text

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """A strided copy."""
        space, x, y = self._parts(sizes)
        if 0 not in space:  # as words: NumPy cannot stride over every element type
            source, target = (item.view(f"u{self.dtype.nbytes}") for item in operands[:2])
            window(target, space, y)[...] = window(source, space, x)


def _tile(width: int) -> str:
    """A square tile transposed in registers by exchanging blocks of halving size."""
    lines = [f"vector r{i} = *(const vector *)(x + {i} * x_row);" for i in range(width)]
    step = width // 2
    while step:
        low = [lane if not lane & step else lane - step + width for lane in range(width)]
        high = [lane + step if not lane & step else lane + width for lane in range(width)]
        for i in range(width):
            if not i & step:
                first, second = ", ".join(map(str, low)), ", ".join(map(str, high))
                lines.append(f"{{ vector a = r{i}, b = r{i + step};")
                lines.append(f"r{i} = SHUFFLE(a, b, {first});")
                lines.append(f"r{i + step} = SHUFFLE(a, b, {second}); }}")
        step //= 2
    lines += [f"*(vector *)(y + {i} * y_column) = r{i};" for i in range(width)]
    return "\n".join(lines)


def kernel_of(
    shape: Sequence[Dim], permutation: Sequence[int], dtype: DType = DType.FLOAT32
) -> tuple[Transpose, tuple[Dim, ...]] | None:
    """The kernel that permutes the axes of a contiguous tensor, and its sizes.

    None when the last axis stays last: then it is a copy of whole rows, which a region does.
    Raises ValueError for elements of another size than a machine word's, and too many axes.
    """
    if dtype.value not in _DTYPES:
        raise ValueError(f"elements of {dtype.value} are not moved in registers")
    axes = [axis for axis in permutation if shape[axis] != 1]
    if not axes or axes[-1] == max(axes):
        return None
    groups = [[axes[0]]]
    for axis in axes[1:]:  # neighbours that stay neighbours are one axis
        middle = range(groups[-1][-1] + 1, axis)
        if axis > groups[-1][-1] and all(shape[item] == 1 for item in middle):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    x_strides: list[Dim] = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        x_strides[axis] = x_strides[axis + 1] * shape[axis + 1]
    sizes = [_product(shape, group) for group in groups]
    x = [x_strides[group[-1]] for group in groups]
    y: list[Dim] = [1] * len(groups)
    for place in range(len(groups) - 2, -1, -1):
        y[place] = y[place + 1] * sizes[place + 1]
    column = next(place for place, group in enumerate(groups) if group[-1] == max(axes))
    outer = [place for place in range(len(groups) - 1) if place != column]
    if len(outer) > MOST_OUTER:
        raise ValueError(f"{len(outer)} outer axes, more than {MOST_OUTER}")
    found = [sizes[place] for place in outer]
    found += [sizes[-1], sizes[column], x[-1], y[column]]
    found += [x[place] for place in outer] + [y[place] for place in outer]
    return Transpose(len(outer), dtype), tuple(found)


def _product(shape: Sequence[Dim], group: Sequence[int]) -> Dim:
    result: Dim = 1
    for axis in group:
        result = result * shape[axis]
    return result


def candidates(rank: int, dtype: DType = DType.FLOAT32) -> list[Transpose]:
    """Parameter sets worth measuring: there is one."""
    return [Transpose(rank, dtype)]
