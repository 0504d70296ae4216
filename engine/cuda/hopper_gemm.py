"""Matrix products on Hopper: wgmma on tiles from the tensor memory accelerator, any epilogue.

A persistent kernel. One warp loads A [M, K] and B [N, K] through a ring of stages; two warpgroups
(three for tiles of 192 rows) multiply, and do the epilogue in the registers that hold the sums. In
"ping-pong" each has tiles of its own and one stores while the other multiplies; otherwise they
share every tile. Two blocks of a cluster may share the rows of B that both read. (The scheme is
that of CUTLASS's warp-specialised persistent kernels; NVIDIA, "Efficient GEMM in CUDA".)

Sums are float32. Parameters: tensor maps of A, B, where it has one the result, where there is one
the staged operand; pointers to the other operands and, without a map, to the result; M, N, K (int);
as longs, without a map the elements between rows of the result, then those of the "full" operands
with a pointer.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE
from engine.cuda.contraction import joined
from engine.cuda.hopper_gemm_source import BODY, HELPERS, PLACES, SETTINGS
from engine.cuda.hopper_gemm_tail import FACTORS, HopperTail
from engine.cuda.hopper_prelude import HOPPER_PRELUDE, wgmma_text
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.plan.device import TensorMapForm

__all__ = ["FACTORS", "HopperTail", "HopperTile", "HopperWindow", "check_tile", "hopper_kernel"]

_DEPTH = 64


@dataclass(frozen=True, slots=True)
class HopperTile:
    """How a product is cut.

    ``rows`` x ``columns`` of a tile: rows 64 or 128 in ping-pong, 128, 192 or 256 otherwise,
    columns a multiple of 32 up to 256; ``stages`` of 64 elements of k; ``buffers`` for results
    of 16 rows and ``part`` columns per computing warp; ``cluster`` blocks (1 or 2) that share B;
    ``group`` rows of tiles that neighbours in time share. With 2 ``blocks`` per multiprocessor,
    each of half its memory and with one warpgroup for 64 or 128 rows, one block may begin while
    another ends, also one of the next kernel.
    """

    rows: int
    columns: int
    pingpong: bool
    stages: int
    buffers: int = 2
    cluster: int = 1
    group: int = 8
    blocks: int = 1

    def to_json(self) -> dict[str, object]:
        """The choice as JSON: what tells tiles of one layer apart."""
        return {
            "tile": [self.rows, self.columns],
            "pingpong": self.pingpong,
            "stages": self.stages,
            "buffers": self.buffers,
            "cluster": self.cluster,
            "group": self.group,
            "blocks": self.blocks,
        }

    @property
    def groups(self) -> int:
        """Warpgroups that multiply."""
        return 3 if self.rows == 192 else 3 - self.blocks

    @property
    def threads(self) -> int:
        """Threads of a block; those of the first warpgroup load."""
        return 128 * (1 + self.groups)

    @property
    def part(self) -> int:
        """Columns that a warp stores at once."""
        return 64 if self.columns % 64 == 0 else 32

    @property
    def shared_nbytes(self) -> int:
        """Dynamic shared memory, where there is enough with room to begin at a multiple of 1024."""
        ring = self.stages * (self.rows + self.columns) * _DEPTH * 2
        buffers = 4 * self.groups * self.buffers
        barriers = 16 * self.stages + 16 + 8 * buffers
        return (1024 if self.blocks == 1 else 0) + ring + buffers * 16 * self.part * 2 + barriers

    @property
    def sums(self) -> int:
        """Sums that a thread holds."""
        return self.rows * self.columns // (128 * (1 if self.pingpong else self.groups))


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


def _settings(
    tile: HopperTile, tail: HopperTail, constant: bool, window: HopperWindow | None
) -> str:
    named = {
        "BM": tile.rows,
        "BN": tile.columns,
        "PART": tile.part,
        "GROUPS": tile.groups,
        "BLOCKS_OF_SM": tile.blocks,
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
    rows = (64, 128) if tile.pingpong or tile.blocks == 2 else (128, 192, 256)
    if tile.rows not in rows or tile.columns % 32 or not 32 <= tile.columns <= 256:
        raise ValueError(f"no tile of {tile.rows} x {tile.columns} in this mode")
    if tile.blocks not in (1, 2) or (tile.blocks == 2 and tile.pingpong):
        raise ValueError(
            "tiles in ping-pong leave no room for a second block, nor is there a third"
        )
    most = 96 if tile.groups == 3 else 192
    if tile.sums > most or tile.stages < 2 or tile.cluster not in (1, 2):
        raise ValueError("a thread would hold too many sums, or there are too few stages")
    least = {"boxes": 2, "rows": 1, "elements": 0}[tail.store]
    if tile.buffers < least or (tail.staged and tail.store != "boxes"):
        raise ValueError(f"results in {tail.store} need {least} buffers, staged operands boxes")
    if tail.store == "rows" and tile.part != 64:
        raise ValueError(f"rows are stored 64 columns at once, a tile has {tile.columns}")


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
    # Threads of three warpgroups have no register left for what stays.
    names, early, late = tail.columns(tile.columns // tile.part, keep=tile.groups < 3)
    body = BODY
    for name, text in {
        "@PARAMETERS@": ", ".join(parameters),
        "@STAGED@": f"x{tail.staged}",
        "@SCALARS@": joined(tail.scalars(), 8),
        "@ROWS@": joined(tail.rows(), 16),
        "@NAMES@": joined(names, 8),
        "@EARLY@": joined(early, 12),
        "@LATE@": joined(late, 12),
        "@COLUMNS@": joined(tail.shared_columns(), 20),
        "@RESULT@": joined(tail.results(), 28),
        "@STORE@": joined(tail.finish(), 20),
    }.items():
        body = body.replace(name, text)
    head = [PRELUDE, _settings(tile, tail, constant, window), HOPPER_PRELUDE, PLACES]
    head += [wgmma_text(dtype, tile.columns), HELPERS, tail.function()]
    read, part = ((tile.rows,), (16,)) if window is None else (window.box, window.part)
    boxes = [(*read, _DEPTH), (tile.columns // tile.cluster, _DEPTH)] + [(*part, tile.part)] * 2
    forms = [TensorMapForm(item.value, box, 2 * box[-1]) for (_, item), box in zip(maps, boxes)]
    return DeviceKernel(
        "nvrtc",
        "hopper_gemm",
        "".join([*head, body]),
        tile.threads,
        shared_nbytes=tile.shared_nbytes,
        waits=True,
        maps=tuple(forms),
        cluster=tile.cluster,
    )
