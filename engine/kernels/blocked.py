"""The C text that all contractions share: register tiles over packed rows, blocks, the store.

Rows are packed into scratch as [row][depth + 16], so that a tile reads them at constant offsets
and at a pitch that is no power of two; columns come in panels of [depth][columns]. Sums stay in
registers over one slice of the depth and in scratch between slices; the store applies the epilogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.kernels.c_expression import PRELUDE
from engine.kernels.epilogue import Epilogue, print_epilogue
from engine.kernels.isa import Isa
from engine.kernels.kernel import take_integer

__all__ = [
    "SPLIT_SIZES",
    "TILE_FIELDS",
    "Split",
    "Tile",
    "balanced_split",
    "check_split",
    "count_blocks",
    "fill_in",
    "print_blocked",
    "print_sizes",
    "product_cost",
    "ranked_shapes",
    "scratch_floats",
]

PITCH_SLACK = 16
PREFETCH_STEPS = 16
TILE_FIELDS = ("rows", "columns", "depth")
SPLIT_SIZES = ("row_tiles", "column_tiles", "by_columns")
MOST_TILES = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """What is fixed when a contraction is compiled.

    A register tile is ``rows`` x ``columns`` floats; ``depth`` is the slice of the depth summed at
    a time.
    """

    rows: int
    columns: int
    depth: int

    def to_json(self) -> dict[str, object]:
        """The sizes by name."""
        return {name: getattr(self, name) for name in TILE_FIELDS}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Tile:
        """Read and check; raises ValueError naming the field at fault."""
        columns = take_integer(fields, "columns", 16, 64)
        if columns % 16:
            raise ValueError(f"field columns: found {columns}, expected a multiple of 16")
        return cls(
            rows=take_integer(fields, "rows", 1, 16),
            columns=columns,
            depth=take_integer(fields, "depth", 16, 8192),
        )

    @property
    def pitch(self) -> int:
        """Floats between packed rows."""
        return self.depth + PITCH_SLACK


@dataclass(frozen=True, slots=True)
class Split:
    """How a contraction is divided when it runs, so that layers of any size share a kernel.

    A work item is ``row_tiles`` x ``column_tiles`` register tiles. Items follow each other along
    the columns (a block of rows is kept while columns pass) or, ``by_columns``, along the rows.
    """

    row_tiles: int
    column_tiles: int
    by_columns: bool = False

    def to_json(self) -> dict[str, object]:
        """The numbers by name."""
        return {name: getattr(self, name) for name in SPLIT_SIZES}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What a kernel takes among its sizes, in the order of `SPLIT_SIZES`."""
        return self.row_tiles, self.column_tiles, int(self.by_columns)


def check_split(sizes: Mapping[str, int]) -> None:
    """Raise ValueError when a plan divides a contraction into nothing or into giants."""
    for name in SPLIT_SIZES[:2]:
        if not 1 <= sizes[name] <= MOST_TILES:
            raise ValueError(f"size {name} is {sizes[name]}, expected 1 to {MOST_TILES}")
    if sizes["by_columns"] > 1:
        raise ValueError(f"size by_columns is {sizes['by_columns']}, expected 0 or 1")


def count_blocks(rows: int, columns: int, tile: Tile, sizes: Mapping[str, int]) -> int:
    """Work items of a product of ``rows`` x ``columns``."""
    high, wide = tile.rows * sizes["row_tiles"], tile.columns * sizes["column_tiles"]
    return -(-rows // high) * -(-columns // wide)


def scratch_floats(tile: Tile, sizes: Mapping[str, int], *, pack_columns: bool = False) -> int:
    """Floats of packed rows, sums and, if asked, packed columns."""
    rows, columns = tile.rows * sizes["row_tiles"], tile.columns * sizes["column_tiles"]
    floats = _line(rows * tile.pitch) + _line(rows * columns)
    return floats + (_line(tile.depth * columns) if pack_columns else 0)


def _tile_cost(rows: int, vectors: int) -> int:
    """Half cycles per step of the depth: two products or loads a cycle, at least 8 in flight."""
    return max(rows * vectors, rows + vectors, 8)


def product_cost(row_count: int, column_count: int, shape: tuple[int, int], isa: Isa) -> int:
    """Half cycles per step of the depth for a product in register tiles of ``shape``."""
    rows, columns = shape
    width = isa.vector_floats
    vectors = columns // width
    rest = next((n for n in _row_variants(rows) if n >= row_count % rows), 0)
    tail = -(-(column_count % columns) // width)
    tail = (-(-vectors // 2) if tail <= -(-vectors // 2) else vectors) if tail else 0
    cost = 0
    for count, part in ((column_count // columns, vectors), (1, tail)):
        if part:
            full = row_count // rows * _tile_cost(rows, part)
            cost += count * (full + (_tile_cost(rest, part) if row_count % rows else 0))
    return cost


_SHAPES = {
    "avx512": ((14, 32), (6, 64), (4, 64), (1, 64)),
    "avx2": ((6, 16), (4, 16), (2, 32), (1, 64)),
    "neon": ((6, 16), (4, 16), (3, 32), (1, 64)),
    "generic": ((3, 16), (2, 16), (1, 32)),
}
#: Shapes whose costs differ by less than this share are equals: then the one that most layers use
#: goes first, because it is compiled already.
_EQUAL_SHARE = 0.04


def ranked_shapes(row_count: int, column_count: int, isa: Isa) -> list[tuple[int, int]]:
    """Register tiles (rows, columns) for a product of this size, the least wasteful first.

    Among those about equal, the order of the table holds.
    """
    shapes = _SHAPES[isa.name]
    costs = {shape: product_cost(row_count, column_count, shape, isa) for shape in shapes}
    equal = max(1.0, _EQUAL_SHARE * min(costs.values()))
    return sorted(shapes, key=lambda shape: (costs[shape] - min(costs.values())) // equal)


def balanced_split(
    row_count: int, column_count: int, shape: tuple[int, int], *, most: tuple[int, int], items: int
) -> Split:
    """Register tiles per block: at most ``most``, equal blocks, ``items`` of them if possible."""
    # At least one: a layer may be tuned for a size of which it has no rows.
    tiles = [max(1, -(-row_count // shape[0])), max(1, -(-column_count // shape[1]))]
    blocks = [-(-count // limit) for count, limit in zip(tiles, most, strict=True)]
    while blocks[0] * blocks[1] < items:
        sizes = [-(-count // parts) for count, parts in zip(tiles, blocks, strict=True)]
        longer = 0 if sizes[0] * shape[0] > sizes[1] * shape[1] else 1
        if sizes[longer] == 1:
            longer = 1 - longer
        if sizes[longer] == 1:
            break
        blocks[longer] += 1
    rows, columns = (-(-count // parts) for count, parts in zip(tiles, blocks, strict=True))
    return Split(rows, columns)


def _line(floats: int) -> int:
    return -(-floats // 16) * 16


def _row_variants(rows: int) -> list[int]:
    return sorted({rows, -(-rows // 2), -(-rows // 8)})


def _print_tile(name: str, rows: int, vectors: int, tile: Tile, isa: Isa) -> str:
    """One register tile: rows x vectors sums over a slice of the depth."""
    width = isa.vector_floats
    pairs = [(i, j) for i in range(rows) for j in range(vectors)]
    declare = ", ".join(f"c{i}_{j}" for i, j in pairs)
    clear = " ".join(f"c{i}_{j} = zero;" for i, j in pairs)
    resume = " ".join(f"c{i}_{j} = LOAD(c + {i * tile.columns + j * width});" for i, j in pairs)
    keep = " ".join(f"STORE(c + {i * tile.columns + j * width}, c{i}_{j});" for i, j in pairs)
    loads = " ".join(f"const vector b{j} = LOAD(b + {j * width});" for j in range(vectors))
    lines = []
    for i in range(rows):
        sums = " ".join(f"c{i}_{j} += b{j} * s;" for j in range(vectors))
        lines.append(f"    {{ const float s = a[{i * tile.pitch}]; {sums} }}")
    body = "\n".join(lines)
    # Columns stream from the outer caches; asking some steps ahead measured 5 to 15 % faster.
    ahead = PREFETCH_STEPS * tile.columns
    ask = " ".join(
        f"__builtin_prefetch(b + {ahead + j * 16});" for j in range(vectors * width // 16)
    )
    return f"""
static void {name}_{rows}x{vectors}(const float *restrict a, const float *restrict b, int64_t depth,
                                    float *restrict c, int first, const float *next,
                                    int64_t step) {{
  const vector zero = {{0}};
  vector {declare};
  if (first) {{ {clear} }}
  else {{ {resume} }}
  for (int64_t k = 0; k < depth; ++k, ++a, b += {tile.columns}, next += step) {{
    {loads} {ask} __builtin_prefetch(next, 0, 2);
{body}
  }}
  {keep}
}}"""


def _print_tiles(name: str, tile: Tile, isa: Isa) -> str:
    """Register tiles of several sizes, and the choice between them."""
    width = isa.vector_floats
    all_vectors = tile.columns // width
    vector_counts = sorted({all_vectors, -(-all_vectors // 2)})
    parts, choice = [], []
    for vectors in vector_counts:
        choice.append(f"  if (columns <= {vectors * width}) {{")
        for rows in _row_variants(tile.rows):
            parts.append(_print_tile(name, rows, vectors, tile, isa))
            call = f"{name}_{rows}x{vectors}(a, b, depth, c, first, next, step)"
            choice.append(f"    if (rows <= {rows}) {{ {call}; return; }}")
        choice.append("  }")
    chosen = "\n".join(choice)
    return (
        "\n".join(parts)
        + f"""
static void {name}_tile(int64_t rows, int64_t columns, const float *a, const float *b,
                        int64_t depth, float *c, int first, const float *next, int64_t step) {{
{chosen}
}}"""
    )


def _print_store(name: str, tile: Tile, epilogue: Epilogue, width: int) -> str:
    """The store of a register tile through the epilogue, and the struct that says where.

    Where the last column cuts a vector, its part goes through copies of a vector's width. Loops of
    one vector are kept from being unrolled into scalars before they are vectorised.
    """
    fields, loads, parts, names, part_names = [], [], [], ["c[j]"], ["c[whole + j]"]
    for position, kind in enumerate(epilogue.operands, 1):
        fields.append(f"  const float *e{position}; int64_t e{position}_row;")
        wide = kind not in ("scalar", "row")
        start = f"o->e{position} + (row + i) * o->e{position}_row" + (" + column" if wide else "")
        loads.append(f"    const float *e{position} = {start};")
        names.append(f"e{position}[j]" if wide else f"e{position}[0]")
        part_names.append(f"w{position}[j]" if wide else f"e{position}[0]")
        if wide:
            parts.append(f"float w{position}[{width}];")
            parts.append(f"STORE(w{position}, ef_read(e{position} + whole, rest));")
    statements, value = print_epilogue(epilogue.expression, names)
    part_statements, part_value = print_epilogue(epilogue.expression, part_names)
    marks = {
        "FIELDS": "\n".join(fields),
        "LOADS": "\n".join(loads),
        "PARTS": " ".join(parts),
        "VALUE": f"{statements} out[j] = {value};",
        "PART_VALUE": f"{part_statements} part[j] = {part_value};",
        "WIDTH": width,
        "NAME": name,
        "COLUMNS": tile.columns,
    }
    return fill_in(_STORE, marks)


def print_blocked(name: str, tile: Tile, epilogue: Epilogue, isa: Isa) -> str:
    """Types, register tiles, store, and NAME_block, which sums one slice of one work item.

    NAME_block(a, b, panel stride, rows, columns, depth, sums, sum rows, first, last, after,
    target): sums lie in panels of ``sum rows``; 0 says that the slice is the whole depth, so that
    all register tiles may share one place for sums. ``after`` is the panel that follows.
    """
    rows, columns = tile.rows, tile.columns
    return f"""#include <stdint.h>
#include <string.h>
typedef float vector __attribute__((vector_size({isa.vector_floats * 4})));
typedef float unaligned_vector
    __attribute__((vector_size({isa.vector_floats * 4}), aligned(4), may_alias));
#define LOAD(p) (*(const unaligned_vector *)(p))
#define STORE(p, v) (*(unaligned_vector *)(p) = (v))
#define LEAST(x, y) ((x) < (y) ? (x) : (y))
#define LINE(floats) (((floats) + 15) / 16 * 16)
{PRELUDE}
{_PARTS.get(isa.name, _PLAIN_PARTS)}
{fill_in(_COPY, {"WIDTH": isa.vector_floats})}
{_print_tiles(name, tile, isa)}
{_print_store(name, tile, epilogue, isa.vector_floats)}
static void {name}_block(const float *a, const float *b, int64_t panel_stride, int64_t rows,
                         int64_t columns, int64_t depth, float *sums, int64_t sum_rows,
                         int first, int last, const float *after, const {name}_target *o) {{
  // While the tiles of one panel are summed, the next panel is asked for, a part by each tile.
  const int64_t tiles = (rows + {rows - 1}) / {rows};
  const int64_t step = LEAST(16, ({columns} + tiles - 1) / tiles);
  for (int64_t column = 0; column < columns; column += {columns}, b += panel_stride) {{
    const int64_t n = LEAST({columns}, columns - column);
    const float *next = column + {columns} < columns ? b + panel_stride : after;
    for (int64_t row = 0; row < rows; row += {rows}, next += step * depth) {{
      const int64_t m = LEAST({rows}, rows - row);
      float *c = sum_rows ? sums + column * sum_rows + row * {columns} : sums;
      {name}_tile(m, n, a + row * {tile.pitch}, b, depth, c, first, next, step);
      if (last) {name}_store(c, m, n, o, row, column);
    }}
  }}
}}
"""


_STORE = r"""
typedef struct {
  float *out; int64_t out_row;
@FIELDS@
} @NAME@_target;
static void @NAME@_store(const float *c, int64_t rows, int64_t columns, const @NAME@_target *o,
                         int64_t row, int64_t column) {
  if (columns == @COLUMNS@) {
    for (int64_t i = 0; i < rows; ++i, c += @COLUMNS@) {
      float *out = o->out + (row + i) * o->out_row + column;
@LOADS@
#pragma GCC ivdep
      for (int64_t j = 0; j < @COLUMNS@; ++j) { @VALUE@ }
    }
    return;
  }
  const int64_t whole = columns / @WIDTH@ * @WIDTH@, rest = columns - whole;
  for (int64_t i = 0; i < rows; ++i, c += @COLUMNS@) {
    float *out = o->out + (row + i) * o->out_row + column;
@LOADS@
    for (int64_t at = 0; at < whole; at += @WIDTH@) {
#pragma GCC ivdep
#pragma GCC unroll 1
      for (int64_t j = at; j < at + @WIDTH@; ++j) { @VALUE@ }
    }
    if (rest) {
      float part[@WIDTH@];
      @PARTS@
#pragma GCC ivdep
#pragma GCC unroll 1
      for (int64_t j = 0; j < @WIDTH@; ++j) { @PART_VALUE@ }
      ef_write(out + whole, LOAD(part), rest);
    }
  }
}"""

# Reads and writes the first floats of a vector, and nothing beyond them.
_PARTS = {
    "avx512": r"""
static inline vector ef_read(const float *from, int64_t count) {
  const vector zero = {0};
  return (vector)__builtin_ia32_loadups512_mask(from, zero, (uint16_t)((1u << count) - 1));
}
static inline void ef_write(float *to, vector v, int64_t count) {
  __builtin_ia32_storeups512_mask(to, v, (uint16_t)((1u << count) - 1));
}
""",
    "avx2": r"""
typedef int32_t ef_mask __attribute__((vector_size(32)));
typedef int32_t ef_unaligned_mask __attribute__((vector_size(32), aligned(4), may_alias));
static const int32_t ef_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static inline vector ef_read(const float *from, int64_t count) {
  const ef_mask m = *(const ef_unaligned_mask *)(ef_lanes + 8 - count);
  return (vector)__builtin_ia32_maskloadps256((const vector *)from, m);
}
static inline void ef_write(float *to, vector v, int64_t count) {
  const ef_mask m = *(const ef_unaligned_mask *)(ef_lanes + 8 - count);
  __builtin_ia32_maskstoreps256((vector *)to, m, v);
}
""",
}
_PLAIN_PARTS = r"""
static inline vector ef_read(const float *from, int64_t count) {
  vector v = {0};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
static inline void ef_write(float *to, vector v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
"""

_COPY = r"""
static inline __attribute__((always_inline)) void ef_copy(float *to, const float *from,
                                                          int64_t count) {
  for (; count >= @WIDTH@; count -= @WIDTH@, to += @WIDTH@, from += @WIDTH@) STORE(to, LOAD(from));
  if (count) ef_write(to, ef_read(from, count), count);
}
static inline void ef_clear(float *to, int64_t count) {
  const vector zero = {0};
  for (; count >= @WIDTH@; count -= @WIDTH@, to += @WIDTH@) STORE(to, zero);
  if (count) ef_write(to, zero, count);
}
"""


def print_sizes(names: Sequence[str]) -> str:
    """Declarations that read the sizes by name."""
    return "\n".join(f"  const int64_t {name} = size[{i}];" for i, name in enumerate(names))


def fill_in(text: str, marks: Mapping[str, object]) -> str:
    """Replace every ``@MARK@`` of a template."""
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", str(value))
    return text
