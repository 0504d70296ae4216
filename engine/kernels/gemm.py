"""Matrix products with a fused epilogue.

C[p, q, m, n] = f(sum over k of A[p, q, m, k] B[p, q, k, n]), with two batch axes, each with
its own strides (0 broadcasts). B is either packed beforehand (recipes "columns" and "rows" of
`packing`) or any strided matrix, packed into scratch block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from engine.kernels.blocked import (
    TILE_FIELDS,
    Tile,
    balanced_blocks,
    fill_in,
    print_blocked,
    print_sizes,
    ranked_shapes,
    scratch_layout,
)
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa, detect
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_boolean,
    take_choice,
    window,
)
from engine.kernels.packing import packed_columns_size

__all__ = ["Gemm", "candidates"]

ORDERS = ("rows", "columns")
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

    ``packed`` says that B is packed; then b_row and b_column mean nothing. ``order`` says which
    blocks follow each other: "rows" keeps a block of A while columns pass, "columns" keeps B.
    """

    kind: ClassVar[str] = "gemm"

    tile: Tile
    epilogue: Epilogue = IDENTITY
    packed: bool = True
    order: str = "rows"

    def to_json(self) -> dict[str, object]:
        """Tile sizes, flags and epilogue."""
        return {
            **self.tile.to_json(),
            "packed": self.packed,
            "order": self.order,
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, (*TILE_FIELDS, "packed", "order", "epilogue"))
        return cls(
            tile=Tile.from_json(fields),
            epilogue=Epilogue.from_json(fields.get("epilogue")),
            packed=take_boolean(fields, "packed"),
            order=take_choice(fields, "order", ORDERS),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """A, B, epilogue operands, C."""
        return ("float32",) * (len(self.epilogue.operands) + 3)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Dimensions and strides, then outer, inner and row stride of each epilogue operand.

        A "column" operand has row stride 0, a "row" operand any; columns are adjacent in C and in
        "column" and "full" operands.
        """
        extra = tuple(
            f"e{position}_{axis}"
            for position in range(1, len(self.epilogue.operands) + 1)
            for axis in ("outer", "inner", "row")
        )
        return (*_DIMENSIONS, *_STRIDES, *extra)

    def items(self, sizes: Sequence[int]) -> int:
        """Blocks of all products."""
        s = self.named(sizes)
        rows = -(-s["m"] // self.tile.block_rows)
        return s["outer"] * s["inner"] * rows * -(-s["n"] // self.tile.block_columns)

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
        return 4 * scratch_layout(self.tile, pack_columns=not self.packed)[-1]

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Two operations per product; every operand moved once."""
        s = self.named(sizes)
        batch = s["outer"] * s["inner"]
        return 2.0 * batch * s["m"] * s["n"] * s["k"], 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C file."""
        sums, panels, _, _ = scratch_layout(self.tile, pack_columns=not self.packed)
        shared = print_blocked(name, self.tile, self.epilogue, isa)
        packers = _PACK_ROWS if self.packed else _PACK_ROWS + _PACK_COLUMNS
        marks = {
            "SIZES": print_sizes(self.size_names),
            "TARGET": self._print_target(),
            "ITEM": _ITEMS[self.order],
            "PANEL": _PANEL_PACKED if self.packed else _PANEL_PLAIN,
            "NAME": name,
            "BLOCK_ROWS": self.tile.block_rows,
            "BLOCK_COLUMNS": self.tile.block_columns,
            "COLUMNS": self.tile.columns,
            "DEPTH": self.tile.depth,
            "PITCH": self.tile.pitch,
            "SUMS": sums,
            "PANELS": panels,
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
) -> list[Gemm]:
    """Parameter sets worth measuring for a product of these sizes, the likeliest first."""
    isa = isa or detect()
    if m <= 4:
        depth = 2048 if isa.name == "avx512" else 1024
        tiles = [Tile(m, columns, depth, 1, 2) for columns in (64, 32, 16)]
    else:
        tiles = [_blocked(m, n, shape) for shape in ranked_shapes(m, n, isa)[:4]]
    found = [Gemm(tile, epilogue, packed) for tile in tiles]
    if k * n * 4 > 1 << 20 and m > 4:  # weights beyond the inner caches: keep a block of them
        found[1:1] = [Gemm(tiles[0], epilogue, packed, "columns")]
    return found


def _blocked(m: int, n: int, shape: tuple[int, int]) -> Tile:
    """A tile whose blocks fit the caches and leave enough items for the threads."""
    most = (min(64, 224 // shape[0]), 4)
    row_tiles, column_tiles = balanced_blocks(m, n, shape, most=most, items=8)
    return Tile(*shape, 256, row_tiles, column_tiles)


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

_ITEMS = {
    "rows": """const int64_t row = rest % row_blocks_x_columns / column_blocks * @BLOCK_ROWS@;
    const int64_t column = rest % column_blocks * @BLOCK_COLUMNS@;""",
    "columns": """const int64_t row = rest % row_blocks * @BLOCK_ROWS@;
    const int64_t column = rest % row_blocks_x_columns / row_blocks * @BLOCK_COLUMNS@;""",
}

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
  float *packed_rows = (float *)scratch, *sums = packed_rows + @SUMS@;
  float *packed_columns = packed_rows + @PANELS@;
  const int64_t row_blocks = (m + @BLOCK_ROWS@ - 1) / @BLOCK_ROWS@;
  const int64_t column_blocks = (n + @BLOCK_COLUMNS@ - 1) / @BLOCK_COLUMNS@;
  const int64_t row_blocks_x_columns = row_blocks * column_blocks;
  const int whole = k <= @DEPTH@;
  int64_t packed_q = -1, packed_row = -1, packed_column = -1;
  for (int64_t rest = begin; rest < end; ++rest) {
    const int64_t p = rest / row_blocks_x_columns / inner, q = rest / row_blocks_x_columns % inner;
    @ITEM@
    const int64_t rows = LEAST(@BLOCK_ROWS@, m - row);
    const int64_t columns = LEAST(@BLOCK_COLUMNS@, n - column);
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
      @NAME@_block(packed_rows, panel, panel_stride, rows, columns, depth, sums, at == 0,
                   at + depth >= k, whole, &target);
      at += depth;
    } while (at < k);
  }
}
"""
