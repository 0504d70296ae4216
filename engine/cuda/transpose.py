"""Transposition of the axes that are contiguous before and after, in CUDA C.

y[..., column, row] = x[..., row, column]: columns are adjacent in the input, rows in the output.
Three forms. ``block``: a thread reads ``rows`` vectors of ``columns`` elements and writes them
turned, all in registers. ``narrow``: one of the axes has few elements and is dense on its side, so
that a thread's share is one run of memory there (images of three channels). ``tile``: 32 by 32
elements go through shared memory, for sizes that allow no vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.cuda.c_expression import PRELUDE
from engine.cuda.kernel import DeviceKernel
from engine.cuda.size_text import SizeText, divides, reach
from engine.cuda.vectors import VECTORS
from engine.ir.sizes import Dim, ceildiv, floordiv, product
from engine.ir.types import DType
from engine.plan.device import Scalar
from engine.plan.expressions import Range

__all__ = ["Problem", "TransposeChoice", "generate", "transpose_choices"]

#: The element type that stands for all of its size: bits are moved, never read.
_KINDS = {1: DType.UINT8, 2: DType.UINT16, 4: DType.UINT32, 8: DType.UINT64}
_WORDS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
TILE = 32
NARROW = 8
ACCESS = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Sizes and strides in elements of ``nbytes``; outer axes have strides in both tensors."""

    nbytes: int
    rows: Dim
    columns: Dim
    x_row: Dim
    y_column: Dim
    outer: tuple[Dim, ...] = ()
    x_outer: tuple[Dim, ...] = ()
    y_outer: tuple[Dim, ...] = ()


@dataclass(frozen=True, slots=True)
class TransposeChoice:
    """A form, and for registers the rows and columns of a thread and its warp's lanes by columns.

    A warp has 32 // ``across`` lanes along the rows.
    """

    form: Literal["block", "narrow", "tile"]
    rows: int = 1
    columns: int = 1
    across: int = 8

    def to_json(self) -> dict[str, Any]:
        """The choice as a candidate's JSON."""
        return asdict(self)


def transpose_choices(problem: Problem) -> list[TransposeChoice]:
    """What is worth measuring, the likeliest first; never empty."""
    width = ACCESS // problem.nbytes
    rows, columns = problem.rows, problem.columns
    if isinstance(rows, int) and rows <= NARROW and problem.y_column == rows:
        wide = _widest(width, [*_x_steps(problem), columns])
        while wide > 1 and wide * rows > 64:
            wide //= 2
        return [TransposeChoice("narrow", rows, wide, 32)]
    if isinstance(columns, int) and columns <= NARROW and problem.x_row == columns:
        tall = _widest(width, [*_y_steps(problem), rows])
        while tall > 1 and tall * columns > 64:
            tall //= 2
        return [TransposeChoice("narrow", tall, columns, 1)]
    most = min(width, 8)
    tall, wide = (
        _widest(most, [*_y_steps(problem), rows]),
        _widest(most, [*_x_steps(problem), columns]),
    )
    found = []
    if tall * wide >= most and max(tall, wide) > 1:
        for across in (4, 8) if tall > 1 and wide > 1 else (16, 32) if tall > 1 else (1, 2):
            found.append(TransposeChoice("block", tall, wide, across))
        if tall == wide and tall > 4:
            found.append(TransposeChoice("block", tall // 2, wide // 2, 8))
    return [*found, TransposeChoice("tile", TILE, TILE, TILE)]


def _x_steps(problem: Problem) -> list[Dim]:
    return [problem.x_row, *problem.x_outer]


def _y_steps(problem: Problem) -> list[Dim]:
    return [problem.y_column, *problem.y_outer]


def _widest(most: int, dims: Sequence[Dim]) -> int:
    while most > 1 and not all(divides(most, dim) for dim in dims):
        most //= 2
    return most


def generate(
    problem: Problem, choice: TransposeChoice, ranges: Mapping[str, Range] | None = None
) -> tuple[DeviceKernel, tuple[Dim, ...], tuple[Scalar, ...]]:
    """Kernel, grid, and what it takes behind input and output; ValueError for a wrong choice."""
    if not divides(choice.columns, problem.columns) or not divides(choice.rows, problem.rows):
        if choice.form != "tile":
            raise ValueError(f"{problem.rows} x {problem.columns} is not made of such blocks")
    size = SizeText(_is_wide(problem, ranges or {}), ranges or {})
    form = _tile if choice.form == "tile" else _registers
    body, threads, grid = form(problem, choice, size)
    word = _WORDS[problem.nbytes]
    parameters = [f"const {word} *x", f"{word} *y", *size.declarations]
    source = (
        f"{PRELUDE}{VECTORS}typedef {size.index_type} ef_index;\n"
        f'extern "C" __global__ void __launch_bounds__({threads}) ef_transpose(\n'
        f"    {', '.join(parameters)}) {{\n{body}}}\n"
    )
    return DeviceKernel("nvrtc", "ef_transpose", source, threads, waits=True), grid, size.scalars


def _is_wide(problem: Problem, ranges: Mapping[str, Range]) -> bool:
    space = (*problem.outer, problem.rows, problem.columns)
    dims = [product(space), *space, problem.x_row, problem.y_column]
    far = [
        reach(0, space, (*problem.x_outer, problem.x_row, 1), ranges),
        reach(0, space, (*problem.y_outer, 1, problem.y_column), ranges),
    ]
    return SizeText.needs_wide([*dims, *problem.x_outer, *problem.y_outer], ranges) or (
        max(far) >= 1 << 31
    )


def _outer(problem: Problem, size: SizeText) -> str:
    """Where an outer index, ``rest``, lies in both tensors."""
    lines = ["ef_index from = 0, to = 0;"]
    for axis in range(len(problem.outer) - 1, -1, -1):
        count = size(problem.outer[axis])
        index = f"rest % {count}" if axis else "rest"
        lines.append(f"{{ const ef_index i = {index};")
        if axis:
            lines.append(f"rest /= {count};")
        lines.append(f"from += i * {size(problem.x_outer[axis])};")
        lines.append(f"to += i * {size(problem.y_outer[axis])}; }}")
    return "\n".join(lines)


def _registers(
    problem: Problem, choice: TransposeChoice, size: SizeText
) -> tuple[str, int, tuple[Dim, ...]]:
    """Forms block and narrow: every warp has a rectangle of threads' blocks."""
    tall, wide, across = choice.rows, choice.columns, choice.across
    kind, nbytes = f"ef_kind_{_KINDS[problem.nbytes].value}", problem.nbytes
    down, threads = 32 // across, 128
    row_blocks, column_blocks = floordiv(problem.rows, tall), floordiv(problem.columns, wide)
    row_tiles, column_tiles = ceildiv(row_blocks, down), ceildiv(column_blocks, across)
    tiles = product(problem.outer) * row_tiles * column_tiles
    narrow = choice.form == "narrow"
    words = max(1, wide * nbytes // 4), max(1, tall * nbytes // 4)
    if narrow and problem.x_row == wide:  # the whole block is one run of the input
        read = _run("x + from + r * " + size(problem.x_row), tall, wide, nbytes, kind, "in")
    else:
        position = f"x + from + (r + i) * {size(problem.x_row)} + c"
        read = (
            f"#pragma unroll\nfor (int i = 0; i < {tall}; ++i) {{\nuint32_t w[{words[0]}];\n"
            f"ef_fetch<{wide * nbytes}>({position}, w);\n"
            f"ef_decode<{kind}, {wide}>(w, in + i * {wide});\n}}\n"
        )
    if narrow and problem.y_column == tall:
        write = _run("y + to + c * " + size(problem.y_column), wide, tall, nbytes, kind, "out")
    else:
        position = f"y + to + (c + k) * {size(problem.y_column)} + r"
        write = (
            f"#pragma unroll\nfor (int k = 0; k < {wide}; ++k) {{\nuint32_t w[{words[1]}];\n"
            f"ef_encode<{kind}, {tall}>(out + k * {tall}, w);\n"
            f"ef_put<{tall * nbytes}>({position}, w);\n}}\n"
        )
    body = f"""const int lane = (int)threadIdx.x % 32;
ef_index tile = (ef_index)blockIdx.x * {threads // 32} + (int)threadIdx.x / 32;
ef_wait();
ef_launch_dependents();
if (tile >= {size(tiles)}) return;
ef_index rest = tile / {size(column_tiles)};
const ef_index c = ((tile - rest * {size(column_tiles)}) * {across} + lane % {across}) * {wide};
const ef_index row = rest;
rest /= {size(row_tiles)};
const ef_index r = ((row - rest * {size(row_tiles)}) * {down} + lane / {across}) * {tall};
{_outer(problem, size)}
if (r >= {size(problem.rows)} || c >= {size(problem.columns)}) return;
{kind}::value in[{tall * wide}], out[{tall * wide}];
{read}#pragma unroll
for (int i = 0; i < {tall}; ++i)
#pragma unroll
for (int k = 0; k < {wide}; ++k) out[k * {tall} + i] = in[i * {wide} + k];
{write}"""
    return body, threads, (ceildiv(tiles, threads // 32),)


def _run(pointer: str, count: int, length: int, nbytes: int, kind: str, values: str) -> str:
    """Text that moves ``count * length`` adjacent elements by the widest accesses that fit."""
    total = count * length
    width = ACCESS // nbytes
    while total % width:
        width //= 2
    words = max(1, width * nbytes // 4)
    loop = f"#pragma unroll\nfor (int i = 0; i < {total}; i += {width}) {{\nuint32_t w[{words}];\n"
    if values == "in":
        return (
            f"{loop}ef_fetch<{width * nbytes}>({pointer} + i, w);\n"
            f"ef_decode<{kind}, {width}>(w, in + i);\n}}\n"
        )
    return (
        f"{loop}ef_encode<{kind}, {width}>(out + i, w);\n"
        f"ef_put<{width * nbytes}>({pointer} + i, w);\n}}\n"
    )


def _tile(
    problem: Problem, choice: TransposeChoice, size: SizeText
) -> tuple[str, int, tuple[Dim, ...]]:
    """Form tile: a block of 32 by 8 threads, four elements each."""
    row_tiles, column_tiles = ceildiv(problem.rows, TILE), ceildiv(problem.columns, TILE)
    word, rows, columns = _WORDS[problem.nbytes], size(problem.rows), size(problem.columns)
    body = f"""__shared__ {word} tile[{TILE}][{TILE} + {max(1, 4 // problem.nbytes)}];
const int x0 = (int)threadIdx.x % {TILE}, y0 = (int)threadIdx.x / {TILE};
ef_index rest = (ef_index)blockIdx.x / {size(column_tiles)};
const ef_index c = ((ef_index)blockIdx.x - rest * {size(column_tiles)}) * {TILE};
const ef_index row = rest;
rest /= {size(row_tiles)};
const ef_index r = (row - rest * {size(row_tiles)}) * {TILE};
{_outer(problem, size)}
ef_wait();
ef_launch_dependents();
#pragma unroll
for (int i = y0; i < {TILE}; i += 8)
if (r + i < {rows} && c + x0 < {columns})
tile[i][x0] = x[from + (r + i) * {size(problem.x_row)} + c + x0];
__syncthreads();
#pragma unroll
for (int k = y0; k < {TILE}; k += 8)
if (c + k < {columns} && r + x0 < {rows})
y[to + (c + k) * {size(problem.y_column)} + r + x0] = tile[x0][k];
"""
    return body, 8 * TILE, (product(problem.outer) * row_tiles * column_tiles,)
