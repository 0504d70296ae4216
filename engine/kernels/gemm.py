"""Matrix products with a fused epilogue.

C[p, q, m, n] = f(sum over k of A[p, q, m, k] B[p, q, k, n]), with two batch axes, each with
its own strides (0 broadcasts). B is either packed beforehand (recipes "columns" and "rows" of
`packing`) or any strided matrix, packed into scratch block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from engine.kernels.blocked import (
    SPLIT_SIZES,
    TILE_FIELDS,
    Split,
    Tile,
    balanced_split,
    check_split,
    count_blocks,
    fill_in,
    print_blocked,
    print_sizes,
    ranked_shapes,
    scratch_floats,
)
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa, detect
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_boolean,
    window,
)
from engine.kernels.packing import packed_columns_size

__all__ = ["Gemm", "candidates"]

_DIMENSIONS = ("outer", "inner", "m", "n", "k")
_STRIDES = (
    *("a_outer", "a_inner", "a_row", "a_column"),
    *("b_outer", "b_inner", "b_row", "b_column"),
    *("c_outer", "c_inner", "c_row"),
)


@register
@dataclass(frozen=True, slots=True)
class Gemm(Kernel):
    """A blocked float32 matrix product.

    ``packed`` says that B is packed; then b_row and b_column mean nothing.
    """

    kind: ClassVar[str] = "gemm"

    tile: Tile
    epilogue: Epilogue = IDENTITY
    packed: bool = True

    def to_json(self) -> dict[str, object]:
        """Tile sizes, flags and epilogue."""
        return {
            **self.tile.to_json(),
            "packed": self.packed,
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, (*TILE_FIELDS, "packed", "epilogue"))
        return cls(
            tile=Tile.from_json(fields),
            epilogue=Epilogue.from_json(fields.get("epilogue")),
            packed=take_boolean(fields, "packed"),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """A, B, epilogue operands, C."""
        return ("float32",) * (len(self.epilogue.operands) + 3)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Split, dimensions and strides, then outer, inner and row stride of epilogue operands.

        A "column" operand has row stride 0, a "row" operand any; columns are adjacent in C and in
        "column" and "full" operands.
        """
        extra = tuple(
            f"e{position}_{axis}"
            for position in range(1, len(self.epilogue.operands) + 1)
            for axis in ("outer", "inner", "row")
        )
        return (*SPLIT_SIZES, *_DIMENSIONS, *_STRIDES, *extra)

    def named(self, sizes: Sequence[int]) -> dict[str, int]:
        """The sizes by name; ValueError for any that no product has."""
        found = Kernel.named(self, sizes)
        check_split(found)
        return found

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of all products."""
        s = self.named(sizes)
        return s["outer"] * s["inner"] * count_blocks(s["m"], s["n"], self.tile, s)

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements."""
        s = self.named(sizes)
        if 0 in (s["outer"], s["inner"], s["m"], s["n"]):
            return (0,) * self.operand_count

        def reach(prefix: str, matrix: int) -> int:
            outer = (s["outer"] - 1) * s[f"{prefix}_outer"]
            return outer + (s["inner"] - 1) * s[f"{prefix}_inner"] + matrix

        def corner(prefix: str, rows: int, columns: int, column: int) -> int:
            last = (rows - 1) * s[f"{prefix}_row"] + (columns - 1) * column + 1
            return reach(prefix, last) if rows and columns else 0

        if self.packed:
            b = reach("b", packed_columns_size(s["k"], s["n"], self.tile.columns))
        else:
            b = corner("b", s["k"], s["n"], s["b_column"])
        extra = [
            corner(f"e{i}", s["m"], s["n"] if kind in ("column", "full") else 1, 1)
            for i, kind in enumerate(self.epilogue.operands, 1)
        ]
        a = corner("a", s["m"], s["k"], s["a_column"])
        return (a, b, *extra, corner("c", s["m"], s["n"], 1))

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """Packed rows, sums and, when B is not packed, a block of its columns."""
        return 4 * scratch_floats(self.tile, self.named(sizes), pack_columns=not self.packed)

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Two operations per product; every operand moved once."""
        s = self.named(sizes)
        batch = s["outer"] * s["inner"]
        return 2.0 * batch * s["m"] * s["n"] * s["k"], 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C file."""
        shared = print_blocked(name, self.tile, self.epilogue, isa)
        packers = _PACK_ROWS if self.packed else _PACK_ROWS + _PACK_COLUMNS
        marks = {
            "SIZES": print_sizes(self.size_names),
            "TARGET": self._print_target(),
            "PANEL": _PANEL_PACKED if self.packed else _PANEL_PLAIN,
            "NAME": name,
            "ROWS": self.tile.rows,
            "COLUMNS": self.tile.columns,
            "DEPTH": self.tile.depth,
            "PITCH": self.tile.pitch,
            "OUTPUT": self.operand_count - 1,
        }
        return shared + fill_in(packers + _BODY, marks)

    def _print_target(self) -> str:
        """The initialiser of the store's struct: where the block's corner lies in every operand."""
        lines = ["c + p * c_outer + q * c_inner + row * c_row + column, c_row"]
        for i, kind in enumerate(self.epilogue.operands, 1):
            column = " + column" if kind in ("column", "full") else ""
            corner = f"p * e{i}_outer + q * e{i}_inner + row * e{i}_row{column}"
            lines.append(f"(const float *)pointer[{i + 1}] + {corner}, e{i}_row")
        return ",\n      ".join(lines)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """BLAS products over strided views."""
        s = self.named(sizes)
        if 0 in (s["outer"], s["inner"], s["m"], s["n"]):
            return
        batch, m, n, k = (s["outer"], s["inner"]), s["m"], s["n"], s["k"]

        def view(prefix: str, operand: Array, shape: Sequence[int], last: Sequence[int]) -> Array:
            strides = (s[f"{prefix}_outer"], s[f"{prefix}_inner"], *last)
            return window(operand, (*batch, *shape), strides)

        a = view("a", operands[0], (m, k), (s["a_row"], s["a_column"]))
        if self.packed:
            width = self.tile.columns
            panels = -(-n // width)
            b = view("b", operands[1], (panels, k, width), (k * width, width, 1))
            parts = np.matmul(a[:, :, None], b)
            sums = np.moveaxis(parts, 2, 3).reshape(*batch, m, panels * width)[..., :n]
        else:
            sums = a @ view("b", operands[1], (k, n), (s["b_row"], s["b_column"]))
        values = [sums]
        for i, kind in enumerate(self.epilogue.operands, 1):
            wide = kind in ("column", "full")
            shape = (m, n if wide else 1)
            values.append(view(f"e{i}", operands[i + 1], shape, (s[f"e{i}_row"], 1)))
        view("c", operands[-1], (m, n), (s["c_row"], 1))[...] = self.epilogue.evaluate(values)


def candidates(
    m: int,
    n: int,
    k: int,
    *,
    packed: bool = True,
    epilogue: Epilogue = IDENTITY,
    isa: Isa | None = None,
) -> list[tuple[Gemm, Split]]:
    """Kernels and splits worth measuring for a product of these sizes, the likeliest first."""
    isa = isa or detect()
    if m <= 4:
        depth = 2048 if isa.name == "avx512" else 1024
        shapes = [(max(m, 1), columns) for columns in (64, 32)]
        return [(Gemm(Tile(*s, depth), epilogue, packed), Split(1, 2)) for s in shapes]
    found = []
    for shape in ranked_shapes(m, n, isa)[:2]:
        most = (min(64, 224 // shape[0]), 4)
        split = balanced_split(m, n, shape, most=most, items=6)
        found.append((Gemm(Tile(*shape, 256), epilogue, packed), split))
    if k * n * 4 > 1 << 20:  # weights beyond the inner caches: keep a block of them
        kernel, split = found[0]
        found[1:1] = [(kernel, replace(split, by_columns=True))]
    return found


_PACK_ROWS = r"""
static void @NAME@_pack_rows(const float *a, int64_t a_row, int64_t a_column, int64_t rows,
                             int64_t depth, float *restrict packed) {
  if (a_column == 1)
    for (int64_t i = 0; i < rows; ++i)
      memcpy(packed + i * @PITCH@, a + i * a_row, (size_t)depth * 4);
  else
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < rows; ++i)
        packed[i * @PITCH@ + k] = a[i * a_row + k * a_column];
}
"""

_PACK_COLUMNS = r"""
static void @NAME@_pack_columns(const float *b, int64_t b_row, int64_t b_column, int64_t columns,
                                int64_t depth, float *restrict packed) {
  for (int64_t j = 0; j < columns; j += @COLUMNS@, packed += depth * @COLUMNS@) {
    const int64_t n = LEAST(@COLUMNS@, columns - j);
    const float *from = b + j * b_column;
    if (n < @COLUMNS@) memset(packed, 0, (size_t)depth * @COLUMNS@ * 4);
    if (b_column == 1 && n == @COLUMNS@)
      for (int64_t k = 0; k < depth; ++k)
        memcpy(packed + k * @COLUMNS@, from + k * b_row, @COLUMNS@ * 4);
    else if (b_row == 1)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < depth; ++k)
          packed[k * @COLUMNS@ + i] = from[i * b_column + k];
    else
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < n; ++i)
          packed[k * @COLUMNS@ + i] = from[k * b_row + i * b_column];
  }
}
"""

_PANEL_PACKED = """const float *panel =
          b + p * b_outer + q * b_inner + column * k + at * @COLUMNS@;
      const int64_t panel_stride = k * @COLUMNS@;"""

_PANEL_PLAIN = """const float *panel = packed_columns;
      const int64_t panel_stride = depth * @COLUMNS@;
      if (!whole || packed_q != p * inner + q || packed_column != column)
        @NAME@_pack_columns(b + p * b_outer + q * b_inner + at * b_row + column * b_column, b_row,
                            b_column, columns, depth, packed_columns);
      packed_column = column;"""

_BODY = r"""
__attribute__((visibility("default")))
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
@SIZES@
  const float *a = pointer[0], *b = pointer[1];
  float *c = pointer[@OUTPUT@];
  const int64_t block_rows = row_tiles * @ROWS@, block_columns = column_tiles * @COLUMNS@;
  float *packed_rows = (float *)scratch, *sums = packed_rows + LINE(block_rows * @PITCH@);
  float *packed_columns = sums + LINE(block_rows * block_columns);
  const int64_t row_blocks = (m + block_rows - 1) / block_rows;
  const int64_t column_blocks = (n + block_columns - 1) / block_columns;
  const int64_t blocks = row_blocks * column_blocks;
  const int whole = k <= @DEPTH@;
  int64_t packed_q = -1, packed_row = -1, packed_column = -1;
  for (int64_t rest = begin; rest < end; ++rest) {
    const int64_t p = rest / blocks / inner, q = rest / blocks % inner, block = rest % blocks;
    const int64_t row = (by_columns ? block % row_blocks : block / column_blocks) * block_rows;
    const int64_t column =
        (by_columns ? block / row_blocks : block % column_blocks) * block_columns;
    const int64_t rows = LEAST(block_rows, m - row);
    const int64_t columns = LEAST(block_columns, n - column);
    const @NAME@_target target = {
      @TARGET@};
    int64_t at = 0;
    do {
      const int64_t depth = LEAST(@DEPTH@, k - at);
      @PANEL@
      if (!whole || packed_q != p * inner + q || packed_row != row)
        @NAME@_pack_rows(a + p * a_outer + q * a_inner + row * a_row + at * a_column, a_row,
                         a_column, rows, depth, packed_rows);
      packed_q = p * inner + q;
      packed_row = row;
      @NAME@_block(packed_rows, panel, panel_stride, rows, columns, depth, sums,
                   whole ? 0 : block_rows, at == 0, at + depth >= k,
                   at + depth < k ? panel + depth * @COLUMNS@ : panel, &target);
      at += depth;
    } while (at < k);
  }
}
"""
