"""Matrix products on Hopper: wgmma on tiles from the tensor memory accelerator, any epilogue.

A persistent kernel. One warp loads A [M, K] and B [N, K] through a ring of stages; two warpgroups
multiply, and do the epilogue in the registers that hold the sums. In "ping-pong" each has tiles of
its own and one stores while the other multiplies; otherwise they share every tile. Two blocks of a
cluster may share the rows of B that both read. (The scheme is that of CUTLASS's warp-specialised
persistent kernels; NVIDIA, "Efficient GEMM in CUDA".)

Sums are float32. Parameters: tensor maps of A, B, where it has one the result, where there is one
the staged operand; pointers to the other operands and, without a map, to the result; M, N, K (int);
as longs, without a map the elements between rows of the result, then those of the "full" operands
with a pointer.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import (
    PRELUDE,
    print_expression,
    read_text,
    storage_type,
    value_type,
    write_text,
)
from engine.cuda.contraction import joined
from engine.cuda.hopper_gemm_source import BODY, FAST_ERF, PLACES, SETTINGS
from engine.cuda.hopper_prelude import HOPPER_PRELUDE, wgmma_text
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.ops.expression import Expression, order
from engine.plan.device import TensorMapForm

__all__ = ["FACTORS", "HopperTail", "HopperTile", "HopperWindow", "check_tile", "hopper_kernel"]

#: Element types of the factors.
FACTORS = (DType.FLOAT16, DType.BFLOAT16)
_PACK = {DType.FLOAT16: "float16", DType.BFLOAT16: "bfloat16"}
_DEPTH, _BUFFER_NBYTES, _WARPS = 64, 2048, 8


@dataclass(frozen=True, slots=True)
class HopperTile:
    """How a product is cut.

    ``rows`` x ``columns`` of a tile: rows 64 or 128 in ping-pong, 128 or 256 otherwise, columns a
    multiple of 64 up to 256; ``stages`` of 64 elements of k; ``buffers`` of 2 KiB for results per
    computing warp; ``cluster`` blocks (1 or 2) that share B; ``group`` rows of tiles that
    neighbours in time share.
    """

    rows: int
    columns: int
    pingpong: bool
    stages: int
    buffers: int = 2
    cluster: int = 1
    group: int = 8

    def to_json(self) -> dict[str, object]:
        """The choice as JSON: what tells tiles of one layer apart."""
        return {
            "tile": [self.rows, self.columns],
            "pingpong": self.pingpong,
            "stages": self.stages,
            "buffers": self.buffers,
            "cluster": self.cluster,
            "group": self.group,
        }

    @property
    def shared_nbytes(self) -> int:
        """Dynamic shared memory, with room to begin at a multiple of 1024."""
        ring = self.stages * (self.rows + self.columns) * _DEPTH * 2
        barriers = 16 * self.stages + 16 + 8 * _WARPS * self.buffers
        return 1024 + ring + _WARPS * self.buffers * _BUFFER_NBYTES + barriers

    @property
    def sums(self) -> int:
        """Sums that a thread holds."""
        return self.rows * self.columns // (128 if self.pingpong else 256)


@dataclass(frozen=True, slots=True)
class HopperWindow:
    """A convolution as a product: rows are output pixels, k runs over taps, then channels.

    ``box`` is a tile's block of pixels: images, rows, columns, powers of two. ``pads`` are top and
    left; what lies outside the image is zero.
    """

    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    box: tuple[int, int, int]

    @property
    def part(self) -> tuple[int, int, int]:
        """The block of the 16 pixels that one warp stores at once."""
        wide = min(self.box[2], 16)
        high = min(self.box[1], 16 // wide)
        return 16 // (wide * high), high, wide

    def settings(self) -> dict[str, int]:
        """The macros that say all this."""
        found = {"TAPS": self.taps[0] * self.taps[1], "TAPS_W": self.taps[1]}
        found |= dict(zip(("TN", "TH", "TW"), self.box))
        for name, pair in (
            ("STRIDE", self.strides),
            ("DILATION", self.dilations),
            ("PAD", self.pads),
        ):
            found |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
        return found


@dataclass(frozen=True, slots=True)
class HopperTail:
    """What is done to the sums, and how its operands and its result are passed.

    ``kinds`` are those of `engine.ops.fused`. ``store`` is "boxes" (a tensor map takes results of
    16 bits), "rows" (16 bits at any address) or "elements" (any type). ``staged`` numbers, from 1,
    the "full" operand of 16 bits that comes through a tensor map as well; 0 is none.
    """

    epilogue: Expression
    kinds: tuple[str, ...]
    dtypes: tuple[DType, ...]
    store: str
    staged: int = 0

    def maps(self) -> list[tuple[str, DType]]:
        """Names and element types of the tensor maps after those of the factors."""
        found = [("y_map", self.epilogue.dtype)] if self.store == "boxes" else []
        if self.staged:
            found.append((f"x{self.staged}_map", self.dtypes[self.staged - 1]))
        return found

    def pointers(self) -> list[str]:
        """The C parameters that are pointers."""
        found = [
            f"const {storage_type(dtype)} *x{place}"
            for place, dtype in enumerate(self.dtypes, 1)
            if place != self.staged
        ]
        return found + ([] if self.store == "boxes" else [f"{storage_type(self._result)} *y"])

    def strides(self) -> list[str]:
        """The names of the strides."""
        full = [
            f"x{place}_row"
            for place, kind in enumerate(self.kinds, 1)
            if kind == "full" and place != self.staged
        ]
        return [*([] if self.store == "boxes" else ["y_row"]), *full]

    @property
    def _result(self) -> DType:
        return self.epilogue.dtype

    def function(self) -> str:
        """The C function that makes a result out of a sum and its operands' values.

        The last rounding to 16 bits is left to the store, which packs two values at once. Raises
        ValueError where CUDA C lacks a type or a function.
        """
        body, narrow = self.epilogue, self._result in _PACK
        if narrow and body.function == "cast" and body.operands[0].dtype is DType.FLOAT32:
            body = body.operands[0]
        names = [f"v{place}" for place in range(1, len(self.dtypes) + 1)]
        lines, value = print_expression(body, ["sum", *names])
        parameters = ["float sum"]
        parameters += [f"{value_type(dtype)} {name}" for name, dtype in zip(names, self.dtypes)]
        head = f"EF_FUNCTION {value_type(body.dtype)} ef_tail({', '.join(parameters)}) {{"
        fast = narrow and any(
            node.function == "erf" and node.dtype is DType.FLOAT32 for node in order(body)
        )
        return "\n".join(
            [FAST_ERF if fast else "", head, joined([*lines, f"return {value};"], 2), "}", ""]
        )

    def scalars(self) -> list[str]:
        """Loads that hold for the whole run."""
        return [
            f"const {value_type(dtype)} x{place}_value = {read_text(dtype, f'x{place}[0]')};"
            for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1)
            if kind == "scalar"
        ]

    def rows(self) -> list[str]:
        """Loads that hold for a block of 64 rows."""
        found = []
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            if kind == "row":
                name = value_type(dtype)
                found.append(f"{name} x{place}_rows[2];")
                element = f"x{place}[ef_least(row + inner_row + h * 8, M - 1)]"
                found.append(
                    f"for (int h = 0; h < 2; ++h) x{place}_rows[h] = {read_text(dtype, element)};"
                )
        return found

    def columns(self) -> list[str]:
        """Loads that hold for 64 columns: two neighbours in each of eight groups of eight."""
        found = []
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            if kind != "column":
                continue
            at = "column + c * 8 + inner_column"
            head = "#pragma unroll\nfor (int c = 0; c < 8; ++c)"
            if dtype in _PACK:
                found += [
                    f"uint32_t x{place}_columns[8];",
                    f"{head} x{place}_columns[c] = ef_pair(x{place}, {at}, N);",
                ]
            else:
                found += [
                    f"{value_type(dtype)} x{place}_columns[8][2];",
                    f"{head} for (int e = 0; e < 2; ++e)",
                    f"    x{place}_columns[c][e] = "
                    + read_text(dtype, f"x{place}[ef_least({at} + e, N - 1)]")
                    + ";",
                ]
        return found

    def results(self) -> list[str]:
        """The results of two neighbouring columns, packed into a word or stored."""
        lines, values = [], ["", ""]
        arguments: list[list[str]] = [["sum[0]"], ["sum[1]"]]
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            text, loads = self._operand(place, kind, dtype)
            lines += loads
            for e in range(2):
                arguments[e].append(text.replace("@E@", str(e)))
        values = [f"ef_tail({', '.join(items)})" for items in arguments]
        if self.store != "elements":
            return [*lines, f"words[q] = ef_pack_{_PACK[self._result]}({', '.join(values)});"]
        for e, value in enumerate(values):
            stored = write_text(self._result, f"({value})")
            lines.append(f"if (at_row < M && at_column + {e} < N)")
            lines.append(f"    y[(long long)at_row * y_row + at_column + {e}] = {stored};")
        return lines

    def _operand(self, place: int, kind: str, dtype: DType) -> tuple[str, list[str]]:
        """The text of an operand's value for column @E@ of two, and what comes before it."""
        name = f"x{place}"
        if kind == "scalar":
            return f"{name}_value", []
        if kind == "row":
            return f"{name}_rows[q % 2]", []
        if kind == "column" and dtype not in _PACK:
            return f"{name}_columns[p * 2 + q / 2][@E@]", []
        if kind == "column" or place == self.staged:
            word = f"{name}_columns[p * 2 + q / 2]" if kind == "column" else "staged[q]"
            unpack = f"float {name}_pair[2]; ef_unpack_{_PACK[dtype]}({word}, {name}_pair[0], "
            return f"{name}_pair[@E@]", [f"{unpack}{name}_pair[1]);"]
        line = f"(long long)ef_least(at_row, M - 1) * {name}_row"
        return read_text(dtype, f"{name}[{line} + ef_least(at_column + @E@, N - 1)]"), []

    def finish(self) -> list[str]:
        """What stores a buffer of 16 rows and 64 columns."""
        if self.store == "elements":
            return []
        if self.store == "rows":
            return ["__syncwarp();", "ef_store_rows(y, y_row, buffer, row, column, M, N, lane);"]
        lines = ["ef_publish();", "__syncwarp();", "if (lane == 0) {"]
        lines.append("    ef_store_part(&y_map, at, row_in_tile + i * 64, j * 64, buffer);")
        if self.staged:
            # The buffer before this one has been read when all stores but the last have.
            lines.append(
                "    if (stored) { ef_await_reads<1>(); ask((slot ? slot : BUFFERS) - 1); }"
            )
            lines.append("    stored = true;")
        return [*lines, "}"]


_HELPERS = r"""
EF_FUNCTION int ef_least(int a, int b) { return a < b ? a : b; }
/* Two neighbours, the first in the low half; `column` is even, what lies past the end is zero. */
EF_FUNCTION uint32_t ef_pair(const uint16_t *p, int column, int count) {
  if (column + 1 < count) return *(const uint32_t *)(p + column);
  return column < count ? p[column] : 0; }
/* A warp writes 16 rows of a buffer to rows that begin anywhere, two elements per lane. */
EF_FUNCTION void ef_store_rows(uint16_t *y, long long pitch, uint32_t buffer, int row, int column,
                               int M, int N, int lane) {
  const int left = ef_least(64, N - column);
  #pragma unroll 4
  for (int r = 0; r < 16; ++r) {
    if (row + r >= M) break;
    uint16_t *to = y + (row + r) * pitch + column;
    const int odd = (int)((uint64_t)to >> 1 & 1), c = 2 * lane + odd;
    const uint32_t line = buffer + r * 128;
    auto at = [&](int i) { return ef_shared_half(line + ((i / 8 ^ (r & 7)) << 4) + i % 8 * 2); };
    if (c + 1 < left) *(uint32_t *)(to + c) = at(c) | (uint32_t)at(c + 1) << 16;
    else if (c < left) to[c] = at(c);
    if (odd && lane == 0) to[0] = at(0);
  } }
"""


def _settings(
    tile: HopperTile, tail: HopperTail, constant: bool, window: HopperWindow | None
) -> str:
    named = {
        "BM": tile.rows,
        "BN": tile.columns,
        "PINGPONG": int(tile.pingpong),
        "STAGES": tile.stages,
        "BUFFERS": tile.buffers,
        "CLUSTER": tile.cluster,
        "GROUP": tile.group,
        "CONSTANT_B": int(constant),
        "STAGED": int(tail.staged > 0),
        "STORE": tail.store.upper(),
        "DIMENSIONS": f"__cluster_dims__({tile.cluster}, 1, 1)" if tile.cluster > 1 else "",
    }
    named |= {"IMAGES": int(window is not None), **(window.settings() if window else {})}
    return "".join(f"#define {name} {value}\n" for name, value in named.items()) + SETTINGS


def check_tile(tile: HopperTile, tail: HopperTail) -> None:
    """Raise ValueError for a tile that the kernel does not have, or that the epilogue excludes."""
    rows = (64, 128) if tile.pingpong else (128, 256)
    if tile.rows not in rows or tile.columns not in (64, 128, 192, 256):
        raise ValueError(f"no tile of {tile.rows} x {tile.columns} in this mode")
    if tile.sums > 192 or tile.stages < 2 or tile.cluster not in (1, 2):
        raise ValueError("a thread would hold too many sums, or there are too few stages")
    least = {"boxes": 2, "rows": 1, "elements": 0}[tail.store]
    if tile.buffers < least or (tail.staged and tail.store != "boxes"):
        raise ValueError(f"results in {tail.store} need {least} buffers, staged operands boxes")


def _check_window(window: HopperWindow, tile: HopperTile, tail: HopperTail) -> None:
    """Raise ValueError for a window that the kernel does not have."""
    images, high, wide = window.box
    if images * high * wide != tile.rows or any(size & (size - 1) for size in window.box):
        raise ValueError(f"a box of {window.box} pixels is no tile of {tile.rows} rows")
    if max(high * window.strides[0], wide * window.strides[1]) > 256 or max(window.strides) > 8:
        raise ValueError(f"strides of {window.strides} reach too far for a box of {window.box}")
    beside = [
        place
        for place, kind in enumerate(tail.kinds, 1)
        if kind == "row" or (kind == "full" and place != tail.staged)
    ]
    if tail.store != "boxes" or beside:
        raise ValueError("results and operands of the result's shape must lie in boxes")


def hopper_kernel(
    dtype: DType,
    tail: HopperTail,
    tile: HopperTile,
    *,
    constant: bool,
    window: HopperWindow | None = None,
) -> DeviceKernel:
    """A [M, K] times the transpose of B [N, K], both of ``dtype`` (float16 or bfloat16).

    ``constant`` says that no kernel writes B, so that it is loaded before earlier kernels have
    ended. The grid is any multiple of the tile's cluster, at most the number of tiles rounded up
    to clusters. Raises ValueError for what the kernel cannot do.

    With a ``window`` A is a tensor of images, rows, columns and K channels, as are the result and a
    staged operand, and B is [N, taps * K]; in the place of M stand the tiles of pixels, and those
    along rows and columns of an image.
    """
    check_tile(tile, tail)
    if window is not None:
        _check_window(window, tile, tail)
    maps = [("a", dtype), ("b", dtype), *tail.maps()]
    parameters = [f"const __grid_constant__ ef_map {name}" for name, _ in maps]
    rows = ["int M"] if window is None else ["int tile_count", "int tiles_h", "int tiles_w"]
    parameters += [*tail.pointers(), *rows, "int N", "int K"]
    parameters += [f"long long {name}" for name in tail.strides()]
    body = BODY
    for name, text in {
        "@PARAMETERS@": ", ".join(parameters),
        "@STAGED@": f"x{tail.staged}",
        "@SCALARS@": joined(tail.scalars(), 8),
        "@ROWS@": joined(tail.rows(), 16),
        "@COLUMNS@": joined(tail.columns(), 20),
        "@RESULT@": joined(tail.results(), 28),
        "@STORE@": joined(tail.finish(), 20),
    }.items():
        body = body.replace(name, text)
    head = [PRELUDE, _settings(tile, tail, constant, window), HOPPER_PRELUDE, PLACES]
    head += [wgmma_text(dtype, tile.columns), _HELPERS, tail.function()]
    read, part = ((tile.rows,), (16,)) if window is None else (window.box, window.part)
    boxes = [(*read, _DEPTH), (tile.columns // tile.cluster, _DEPTH), (*part, 64), (*part, 64)]
    forms = [TensorMapForm(item.value, box, 128) for (_, item), box in zip(maps, boxes)]
    return DeviceKernel(
        "nvrtc",
        "hopper_gemm",
        "".join([*head, body]),
        384,
        shared_nbytes=tile.shared_nbytes,
        waits=True,
        maps=tuple(forms),
        cluster=tile.cluster,
    )
