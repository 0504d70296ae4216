"""Small products and convolutions on Hopper: k split over the blocks of a cluster, one gulp each.

Where a product is too small to fill the GPU, time is latency. Each block of a cluster takes a part
of k that fits into its shared memory as a whole: it asks for all of its weights before the kernels
in front of it have ended, for the activations right after, and multiplies slab by slab as they
arrive; nothing is loaded twice, no stage is waited for. The blocks then send each other parts of
their float32 sums through distributed shared memory; each adds and finishes its share of the tile.
(Split-K inside a thread block cluster: NVIDIA, "Hopper Tuning Guide", distributed shared memory;
PTX ISA, "mapa", "st.async", "barrier.cluster".)

Rows of the weights are features, rows of the activations pixels. wgmma multiplies 64 rows by any
multiple of eight columns: rows are pixels and columns features, or, ``swapped``, the other way
round, so that few pixels waste nothing.

Parameters: tensor maps of the activations x and the weights w; pointers to the operands and the
result; M, or images, height and width of the result; N, K (int); as longs the elements between
rows of the result, then those of the "full" operands.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, read_text, storage_type, value_type, write_text
from engine.cuda.contraction import joined
from engine.cuda.hopper_gemm_tail import HopperTail
from engine.cuda.hopper_prelude import HOPPER_PRELUDE, wgmma_text
from engine.cuda.hopper_split_source import BODY, EXCHANGE, SETTINGS
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.ops.expression import Expression
from engine.plan.device import TensorMapForm

__all__ = ["SplitTail", "SplitTile", "SplitWindow", "check_split", "split_kernel"]

_PACK = {DType.FLOAT16: "float16", DType.BFLOAT16: "bfloat16"}
_DEPTH, _MOST_BLOCKS, _MOST_HELD = 64, 8, 32


@dataclass(frozen=True, slots=True)
class SplitTile:
    """How a product is cut.

    A tile has ``features`` x ``pixels`` results. Pixels are the rows of ``groups`` warpgroups (64
    each) and features a multiple of eight, or the other way round when ``swapped``. ``split``
    blocks of a cluster share k, ``share`` neighbouring tiles of features are computed by one
    cluster and share the loads of pixels. ``box`` is the block of images, rows and columns that
    lies in the pixels of a tile, at most as many; images and rows are 1 for a matrix. ``stages``
    slabs are held at a time, 0 for all.
    """

    features: int
    pixels: int
    groups: int
    split: int
    swapped: bool
    box: tuple[int, int, int]
    share: int = 1
    stages: int = 0

    def to_json(self) -> dict[str, object]:
        """The choice as JSON: what tells tiles of one layer apart."""
        return {
            "tile": [self.features, self.pixels],
            "split": self.split,
            "share": self.share,
            "stages": self.stages,
            "swapped": self.swapped,
            "box": list(self.box),
        }

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.split * self.share

    @property
    def columns(self) -> int:
        """Columns of a warpgroup's product."""
        return self.pixels if self.swapped else self.features

    @property
    def own(self) -> int:
        """Units of 16 x 8 results that a block finishes."""
        return -(-self.groups * 4 * (self.columns // 8) // self.split)

    def held(self, steps: int) -> int:
        """Slabs that a block holds at a time, of that many of the whole product."""
        slabs = -(-steps // self.split)
        return min(slabs, self.stages) if self.stages else slabs

    @property
    def parts_nbytes(self) -> int:
        """Shared memory for what other blocks send."""
        return self.own * self.split * 512 if self.split > 1 else 0

    def shared_nbytes(self, steps: int) -> int:
        """Dynamic shared memory for that many slabs of k, with room to begin at 1024."""
        slab = (self.features + self.pixels) * _DEPTH * 2 + 16
        return 1024 + self.held(steps) * slab + self.parts_nbytes + 8


@dataclass(frozen=True, slots=True)
class SplitWindow:
    """A convolution as a product: k runs over taps, then channels; ``pads`` are top and left."""

    taps: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)

    def settings(self) -> dict[str, int]:
        """The macros that say all this."""
        found = {"TAPS_W": self.taps[1]}
        for name, pair in (
            ("STRIDE", self.strides),
            ("DILATION", self.dilations),
            ("PAD", self.pads),
        ):
            found |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
        return found


@dataclass(frozen=True, slots=True)
class SplitTail:
    """What is done to the sums, and how its operands and its result are passed.

    ``kinds`` are those of `engine.ops.fused`. ``words`` numbers the "full" operands, from 1, and
    the result, 0, whose neighbouring even and odd columns are a word of memory.
    """

    epilogue: Expression
    kinds: tuple[str, ...]
    dtypes: tuple[DType, ...]
    words: frozenset[int] = frozenset()

    @property
    def held(self) -> list[int]:
        """The operands that are read ahead, two values in a word."""
        operands = enumerate(zip(self.kinds, self.dtypes), 1)
        return [p for p, (kind, dtype) in operands if kind in _PAIRED and dtype in _PACK]

    def function(self) -> str:
        """The C function ``ef_tail``; ValueError where CUDA C lacks a type or a function."""
        return HopperTail(self.epilogue, self.kinds, self.dtypes, "elements").function()

    def pointers(self) -> list[str]:
        """The C parameters that are pointers."""
        found = [f"const {storage_type(dtype)} *x{p}" for p, dtype in enumerate(self.dtypes, 1)]
        return [*found, f"{storage_type(self.epilogue.dtype)} *y"]

    def strides(self) -> list[str]:
        """The names of the strides."""
        return ["y_row", *(f"x{p}_row" for p, k in enumerate(self.kinds, 1) if k == "full")]

    def declarations(self, held: int) -> list[str]:
        """Loads that hold for the whole run, and room for what is read ahead."""
        found = [f"uint32_t x{place}_held[{max(held, 1)}][2];" for place in self.held]
        return found + [
            f"const {value_type(dtype)} x{place}_value = {read_text(dtype, f'x{place}[0]')};"
            for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1)
            if kind == "scalar"
        ]

    def ask(self) -> list[str]:
        """Reads ahead two neighbours of every operand that comes in words."""
        found = []
        for place in self.held:
            at, words = f"x{place} + column", "true"
            if self.kinds[place - 1] == "full":
                at = f"x{place} + (long long)row * x{place}_row + column"
                words = "true" if place in self.words else "false"
            found.append(f"x{place}_held[u][q] = 0;")
            found.append("if (row >= 0)")
            found.append(f"    x{place}_held[u][q] = ef_neighbours({at}, left, {words});")
        return found

    def results(self) -> list[str]:
        """The results of two neighbouring columns, stored."""
        lines: list[str] = []
        arguments: list[list[str]] = [["sum[0]"], ["sum[1]"]]
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            text, loads = self._operand(place, kind, dtype)
            lines += loads
            for e in range(2):
                arguments[e].append(text.replace("@E@", str(e)))
        values = [f"ef_tail({', '.join(items)})" for items in arguments]
        result = self.epilogue.dtype
        at = "(long long)row * y_row + column"
        if result in _PACK:
            word = f"ef_pack_{_PACK[result]}({', '.join(values)})"
            words = "true" if 0 in self.words else "false"
            return [*lines, f"ef_put(y + {at}, left, {words}, {word});"]
        for e, value in enumerate(values):
            lines.append(f"if (left > {e}) y[{at} + {e}] = {write_text(result, f'({value})')};")
        return lines

    def _operand(self, place: int, kind: str, dtype: DType) -> tuple[str, list[str]]:
        """The text of an operand's value for column @E@ of two, and what comes before it."""
        name = f"x{place}"
        if kind == "scalar":
            return f"{name}_value", []
        if kind == "row":
            return read_text(dtype, f"{name}[row]"), []
        if place in self.held:
            unpack = f"ef_unpack_{_PACK[dtype]}({name}_held[u][q], {name}_pair[0], {name}_pair[1]);"
            return f"{name}_pair[@E@]", [f"float {name}_pair[2]; {unpack}"]
        line = f"(long long)row * {name}_row + " if kind == "full" else ""
        return read_text(dtype, f"{name}[{line}ef_least(column + @E@, N - 1)]"), []


_PAIRED = ("column", "full")
#: Where two neighbours of a unit lie.
_PLACE = """\
const int pixel = SWAPPED ? c * 8 + lane / 4 : from * 16 + q * 8 + lane / 4;
const int feature = (SWAPPED ? from * 16 + q * 8 : c * 8) + lane % 4 * 2;
const int row = ef_row(at, pixel), column = at.feature + feature, left = N - column;"""


def check_split(tile: SplitTile, steps: int) -> None:
    """Raise ValueError for a tile that the kernel does not have."""
    rows = tile.features if tile.swapped else tile.pixels
    if rows != 64 * tile.groups or tile.groups not in (1, 2, 4):
        raise ValueError(f"{rows} rows are no 64 for each of {tile.groups} warpgroups (1, 2 or 4)")
    if tile.columns % 8 or not 8 <= tile.columns <= (128 if tile.groups > 2 else 256):
        raise ValueError(f"a product of {tile.columns} columns does not exist or does not fit")
    if tile.stages == 1 or tile.stages < 0:
        raise ValueError(f"a ring of {tile.stages} stages is too short")
    if not 1 <= tile.split <= steps or not 1 <= tile.cluster <= _MOST_BLOCKS:
        raise ValueError(
            f"{steps} steps of k cannot be split over {tile.split} blocks, or clusters of "
            f"{tile.cluster} blocks are too large"
        )
    images, high, wide = tile.box
    if min(tile.box) < 1 or images * high * wide > tile.pixels:
        raise ValueError(f"a box of {tile.box} pixels is none for a tile of {tile.pixels}")


def _settings(
    tile: SplitTile, blocks: int, window: SplitWindow | None, constant: bool, held: int
) -> str:
    taps = window.taps[0] * window.taps[1] if window else 1
    stages = tile.held(blocks * taps)
    named = {
        "FEATURES": tile.features,
        "PIXELS": tile.pixels,
        "GROUPS": tile.groups,
        "SPLIT": tile.split,
        "SHARE": tile.share,
        "STAGES": stages,
        "SWAPPED": int(tile.swapped),
        "BOX": tile.box[0] * tile.box[1] * tile.box[2],
        "BLOCKS": blocks,
        "TAPS": taps,
        "CONSTANT": int(constant),
        "HELD": held,
        "IMAGES": int(window is not None),
        "DIMENSIONS": f"__cluster_dims__({tile.cluster}, 1, 1)" if tile.cluster > 1 else "",
    }
    if window:
        named |= {**dict(zip(("TN", "TH", "TW"), tile.box)), **window.settings()}
    return "".join(f"#define {name} {value}\n" for name, value in named.items()) + SETTINGS


def split_kernel(
    dtype: DType,
    tail: SplitTail,
    tile: SplitTile,
    k: int,
    *,
    constant: bool,
    window: SplitWindow | None = None,
) -> DeviceKernel:
    """X [M, K] times the transpose of W [N, K], both of ``dtype`` (float16 or bfloat16).

    ``k`` is K, the channels of a ``window``; ``constant`` says that no kernel writes W, so that it
    is loaded before earlier kernels have ended. The grid is the tiles of features, rounded up to
    clusters, times the split, and the boxes of pixels. Raises ValueError for what the kernel cannot
    do.

    With a ``window`` X and the result are tensors of images, rows, columns and channels, and W is
    [N, taps * K].
    """
    blocks = -(-k // _DEPTH)
    steps = blocks * (window.taps[0] * window.taps[1] if window else 1)
    check_split(tile, steps)
    units = -(-tile.own // (tile.groups * 4))
    held = units if tile.split > 1 and 2 * units * len(tail.held) <= _MOST_HELD else 0
    parameters = ["const __grid_constant__ ef_map x", "const __grid_constant__ ef_map w"]
    extent = ["M"] if window is None else ["images", "height", "width"]
    parameters += [*tail.pointers(), *(f"int {name}" for name in extent), "int N", "int K"]
    parameters += [f"long long {name}" for name in tail.strides()]
    body = BODY
    for name, text in {
        "@PARAMETERS@": ", ".join(parameters),
        "@EXTENT@": ", ".join(extent),
        "@HELD@": joined(tail.declarations(held), 4),
        "@PLACE@": joined(_PLACE.splitlines(), 12),
        "@ASK@": joined(tail.ask(), 12),
        "@RESULT@": joined(tail.results(), 12),
    }.items():
        body = body.replace(name, text)
    head = [PRELUDE, _settings(tile, blocks, window, constant, held), HOPPER_PRELUDE, EXCHANGE]
    head += [wgmma_text(dtype, tile.columns), tail.function()]
    read = (tile.box[2],) if window is None else tile.box
    boxes = [(*read, _DEPTH), (tile.features, _DEPTH)]
    return DeviceKernel(
        "nvrtc",
        "hopper_split",
        "".join([*head, body]),
        tile.groups * 128 + (32 if tile.held(steps) < -(-steps // tile.split) else 0),
        shared_nbytes=tile.shared_nbytes(steps),
        waits=True,
        maps=tuple(TensorMapForm(dtype.value, box, 128) for box in boxes),
        cluster=tile.cluster,
    )
