"""Convolution as an implicit matrix product, in Triton: the kernels' text and their constants.

Rows of the product are output pixels, columns are output channels, the depth runs over filter taps
and blocks of input channels. Three ways of reading the input:

- "boxes": a block of pixels TN x TH x TW is one box of a tensor map over (N, H, W, C). For each tap
  the box is shifted; what lies outside the tensor arrives as zeros, which is the padding. With
  strides the map has an axis for the remainder of each row by the stride, and remainders of columns
  lie along the channels, so that a box still holds neighbours.
- "gather": a block of pixels is any run of BM output pixels; each has its own address, and taps
  outside the image are masked. Serves every stride, dilation and padding on every GPU.
- "flat": as "gather", but the depth runs over (channel, tap row, tap column) as the filters lie in
  memory, each element with its own address: few channels, patches, NCHW.

Filters are [R * S * K, C] (or [K, depth] for "flat"). Where blocks are few, ``SPLITS`` blocks share
one tile: each writes its float32 sums, the last to arrive adds them in a fixed order and stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import indent
from typing import Any, Literal

from engine.cuda.kernel import Constant, DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.cuda.triton_expression import HELPERS, operand_text, print_expression
from engine.ir.types import DType
from engine.ops.expression import Expression, loads

__all__ = ["Method", "Operand", "Tile", "Window", "convolution_kernel"]

Method = Literal["boxes", "gather", "flat"]


@dataclass(frozen=True, slots=True)
class Tile:
    """What one block computes, and how.

    ``box`` is the block of output pixels (images, rows, columns); for "gather" and "flat" only
    their product counts. ``columns`` are output channels, ``depth`` the channels of one step.
    ``splits`` blocks share a tile's depth. With ``persistent`` a block computes several tiles, and
    the loads of the next begin before the last is stored. With ``swapped`` output channels are the
    rows of the product: a box of more than one axis reaches Hopper's matrix units from shared
    memory only as their second operand (Triton takes a reshaped first one through registers).
    """

    method: Method
    box: tuple[int, int, int]
    columns: int
    depth: int
    warps: int
    stages: int
    splits: int = 1
    persistent: bool = False
    swapped: bool = False

    @property
    def rows(self) -> int:
        """Output pixels of a block."""
        return self.box[0] * self.box[1] * self.box[2]

    def to_json(self) -> dict[str, Any]:
        """The tile as JSON."""
        return {**asdict(self), "box": list(self.box)}


@dataclass(frozen=True, slots=True)
class Window:
    """The sizes of a convolution that are known when it is compiled.

    ``channels`` and ``outputs`` are those of one group; ``pads`` are top and left. ``padded`` says
    whether a tap may lie outside the image.
    """

    channels: int
    outputs: int
    groups: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    padded: bool

    @property
    def is_strided(self) -> bool:
        """Whether a step of the output is more than one pixel of the input."""
        return self.strides != (1, 1)

    def steps(self, tile: Tile) -> int:
        """Steps over the depth."""
        taps = self.taps[0] * self.taps[1]
        if tile.method == "flat":
            return -(-self.channels * taps // tile.depth)
        return taps * -(-self.channels // tile.depth)


@dataclass(frozen=True, slots=True)
class Operand:
    """An extra operand of the epilogue; ``kind`` as in `engine.ops.fused`.

    ``boxed`` says that a "full" operand is read through a tensor map.
    """

    kind: str
    dtype: DType
    boxed: bool = False


_HEAD = """
@triton.jit
def convolution(
    x, w, y, # <parameters>
    # <sizes>
    # <constants>
):
    BM: tl.constexpr = TN * TH * TW
    COLUMN_TILES: tl.constexpr = (K + BN - 1) // BN
    if WAITS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
"""

_TILE = """
group = pid // COLUMN_TILES % GROUPS
column = pid % COLUMN_TILES * BN
tile = pid // (COLUMN_TILES * GROUPS)
"""

#: Where a block's pixels lie, and what the loop over the depth needs of them.
_PLACE_BOXES = """
w0 = tile % tiles_w * TW
h0 = tile // tiles_w % tiles_h * TH
n0 = tile // (tiles_w * tiles_h) * TN
"""
_PLACE_ROWS = """
points = tile * BM + tl.arange(0, BM)
inside = points < images * out_height * out_width
image = points // (out_height * out_width)
rest = points % (out_height * out_width)
top = rest // out_width * SH - PT
left = rest % out_width * SW - PL
lanes = column + tl.arange(0, BN)
depth = tl.arange(0, BK)
"""
_PLACE_GATHER = """
place = image.to(tl.int64) * (height * width * PIXEL) + (top * width + left) * PIXEL
sources = x + group * C + place
filters = w + (group * K + lanes) * C
"""
_PLACE_FLAT = """
place = image.to(tl.int64) * image_stride + (top * row_stride + left * COLUMN)
sources = x + group * C * channel_stride + place
filters = w + (group * K + lanes) * LENGTH
"""

_DOT_BOXES = """
tap = step // BLOCKS
c = step % BLOCKS * BK
r = tap // S * DH - PT
s = tap % S * DW - PL
if SH * SW == 1:
    a = x.load([n0, h0 + r, w0 + s, group * C + c])
else:
    r += SH * PT
    s += SW * PL
    near = s % SW * PIXEL + group * C + c
    a = x.load([n0, h0 + r // SH - PT, r % SH, w0 + s // SW - PL, near])
b = w.load([(tap * GROUPS + group) * K + column, c])
if SWAPPED:
    acc = tl.dot(b, a.reshape(BM, BK).T, acc)
else:
    acc = tl.dot(a.reshape(BM, BK), b.T, acc)
"""
_DOT_GATHER = """
tap = step // BLOCKS
c = step % BLOCKS * BK
r = tap // S * DH
s = tap % S * DW
reach = inside
if PADDED:
    reach &= (top + r >= 0) & (top + r < height) & (left + s >= 0) & (left + s < width)
near = sources + ((r * width + s) * PIXEL + c)
if C % BK == 0:
    a = tl.load(near[:, None] + depth[None, :], mask=reach[:, None], other=0.0)
else:
    within = c + depth < C
    reach = reach[:, None] & within[None, :]
    a = tl.load(near[:, None] + depth[None, :], mask=reach, other=0.0)
taps = filters + (tap * (GROUPS * K * C) + c)
if K % BN == 0 and C % BK == 0:
    b = tl.load(taps[None, :] + depth[:, None])
elif C % BK == 0:
    b = tl.load(taps[None, :] + depth[:, None], mask=(lanes < K)[None, :], other=0.0)
else:
    wanted = (lanes < K)[None, :] & (c + depth < C)[:, None]
    b = tl.load(taps[None, :] + depth[:, None], mask=wanted, other=0.0)
acc = tl.dot(a, b, acc)
"""
_DOT_FLAT = """
k = step * BK + depth
c = k // (R * S)
r = k // S % R * DH
s = k % S * DW
steps = c * channel_stride + r * row_stride + s * COLUMN
within = k < C * R * S
reach = inside[:, None] & within[None, :]
if PADDED:
    y_in = (top[:, None] + r[None, :] >= 0) & (top[:, None] + r[None, :] < height)
    x_in = (left[:, None] + s[None, :] >= 0) & (left[:, None] + s[None, :] < width)
    reach &= y_in & x_in
if PADDED or C * R * S % BK != 0:
    a = tl.load(sources[:, None] + steps[None, :], mask=reach, other=0.0)
else:
    a = tl.load(sources[:, None] + steps[None, :], mask=inside[:, None], other=0.0)
wanted = (lanes < K)[None, :] & within[:, None]
b = tl.load(filters[None, :] + k[:, None], mask=wanted, other=0.0)
acc = tl.dot(a, b, acc)
"""

_LOOP = """
acc = tl.zeros((BN, BM) if SWAPPED else (BM, BN), dtype=tl.float32)
for step in tl.range(first, last):
"""
_UNSWAP = """
if SWAPPED:
    acc = acc.T
"""
_SHARED = """
offsets = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
shares = partial + pid.to(tl.int64) * (SPLITS * BM * BN) + offsets
tl.store(shares + split * (BM * BN), acc)
tl.debug_barrier()
arrived = tl.atomic_add(counters + pid, 1, sem="acq_rel")
if arrived == SPLITS - 1:
    tl.store(counters + pid, 0)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for part in tl.static_range(SPLITS):
        acc += tl.load(shares + part * (BM * BN), cache_modifier=".cg")
"""

#: Which pixels a block's rows are, for operands and results that are addressed one by one.
_PIXELS_BOXES = """
row = tl.arange(0, BM)
image = n0 + row // (TH * TW)
high = h0 + row // TW % TH
wide = w0 + row % TW
inside = (image < images) & (high < out_height) & (wide < out_width)
rows = (image.to(tl.int64) * out_height + high) * out_width + wide
"""
_PIXELS_POINTS = """
rows = points.to(tl.int64)
"""
_CHANNELS = """
columns = column + tl.arange(0, BN)
exists = columns < K
columns += group * K
"""


def _lines(text: str, depth: int) -> str:
    return indent(text.strip("\n") + "\n", "    " * depth)


def _needs_pixels(operands: Sequence[Operand], boxed: bool) -> bool:
    single = any(
        item.kind == "row" or (item.kind == "full" and not item.boxed) for item in operands
    )
    return single or not boxed


def _finish(method: Method, epilogue: Expression, operands: Sequence[Operand], boxed: bool) -> str:
    """The end of a tile: operands, the epilogue, the store."""
    text = ""
    if _needs_pixels(operands, boxed):
        text += (_PIXELS_BOXES if method == "boxes" else _PIXELS_POINTS).strip("\n") + "\n"
    text += _CHANNELS.strip("\n") + "\n"
    read = loads(epilogue)
    texts = ["acc"]
    for index, item in enumerate(operands, 1):
        texts.append(f"v{index}")
        if index not in read:
            continue
        if item.boxed:
            found = f"p{index}.load([n0, h0, w0, group * K + column]).reshape(BM, BN)"
        else:
            found = operand_text(
                item.kind,
                f"p{index}",
                item.dtype,
                stride=f"PIXEL{index}",
                row_mask="inside",
                column_mask="exists",
            )
        text += f"v{index} = {found}\n"
    lines, value = print_expression(epilogue, texts)
    text += "".join(f"{line}\n" for line in lines)
    text += f"value = tl.broadcast_to({value}, (BM, BN))\n"
    if boxed:
        return text + "y.store([n0, h0, w0, group * K + column], value.reshape(TN, TH, TW, BN))\n"
    text += "places = y + rows[:, None] * Y_PIXEL + columns[None, :]\n"
    return text + "tl.store(places, value, mask=inside[:, None] & exists[None, :])\n"


def _body(tile: Tile, epilogue: Expression, operands: Sequence[Operand], boxed: bool) -> str:
    place = {
        "boxes": _PLACE_BOXES,
        "gather": _PLACE_ROWS + _PLACE_GATHER,
        "flat": _PLACE_ROWS + _PLACE_FLAT,
    }[tile.method]
    dot = {"boxes": _DOT_BOXES, "gather": _DOT_GATHER, "flat": _DOT_FLAT}[tile.method]
    finish = _finish(tile.method, epilogue, operands, boxed)
    text, depth = "", 1
    if tile.persistent:
        count = "tiles * COLUMN_TILES * GROUPS"
        text += (
            f"    for pid in tl.range(tl.program_id(0), {count}, tl.num_programs(0), "
            "flatten=True):\n"
        )
        depth = 2
    else:
        text += "    pid = tl.program_id(0)\n"
    text += _lines(_TILE, depth) + _lines(place.replace("\n\n", "\n"), depth)
    if tile.splits > 1:
        text += _lines("split = tl.program_id(1)", depth)
        text += _lines("first = split * PART\nlast = tl.minimum(first + PART, STEPS)", depth)
        loop = _LOOP
    else:
        loop = _LOOP.replace("first, last", "0, STEPS")
    text += _lines(loop, depth) + _lines(dot, depth + 1) + _lines(_UNSWAP, depth)
    if tile.splits > 1:
        return text + _lines(_SHARED, depth) + _lines(finish, depth + 1)
    return text + _lines(finish, depth)


def _signature(
    tile: Tile,
    operands: Sequence[Operand],
    elements: tuple[DType, DType],
    boxed: bool,
    strided: bool,
) -> list[tuple[str, str]]:
    """Run-time parameters in order: tensors, then sizes."""
    images, height, width = tile.box
    source, result = (ELEMENT_NAMES[item] for item in elements)
    pixels = f"{images}, {height}, {width}"
    found: list[tuple[str, str]] = []
    if tile.method == "boxes":
        box = f"{images}, {height}, 1, {width}" if strided else pixels
        found.append(("x", f"tensordesc<{source}[{box}, {tile.depth}]>"))
        found.append(("w", f"tensordesc<{source}[{tile.columns}, {tile.depth}]>"))
    else:
        found += [("x", f"*{source}"), ("w", f"*{source}")]
    whole = f"[{pixels}, {tile.columns}]>"
    found.append(("y", f"tensordesc<{result}{whole}" if boxed else f"*{result}"))
    for index, item in enumerate(operands, 1):
        element = ELEMENT_NAMES[item.dtype]
        form = f"tensordesc<{element}{whole}" if item.boxed else f"*{element}"
        found.append((f"p{index}", form))
    if tile.splits > 1:
        found += [("partial", "*fp32"), ("counters", "*i32")]
    if tile.method == "boxes":
        sizes = ["tiles_h", "tiles_w"] + ["tiles"] * tile.persistent
        if _needs_pixels(operands, boxed):
            sizes += ["images", "out_height", "out_width"]
    else:
        sizes = ["images", "out_height", "out_width", "height", "width"]
        if tile.method == "flat":
            sizes += ["image_stride", "row_stride", "channel_stride"]
    return found + [(name, "i32") for name in sizes]


def _constants(
    window: Window, tile: Tile, pixels: Mapping[str, int], waits: bool
) -> dict[str, Constant]:
    found: dict[str, Constant] = dict(zip(("TN", "TH", "TW"), tile.box))
    found |= {"BN": tile.columns, "BK": tile.depth, "C": window.channels, "K": window.outputs}
    found |= {"GROUPS": window.groups, "R": window.taps[0], "S": window.taps[1]}
    found |= {"SH": window.strides[0], "SW": window.strides[1]}
    found |= {"DH": window.dilations[0], "DW": window.dilations[1]}
    found |= {"PT": window.pads[0], "PL": window.pads[1], "PADDED": window.padded}
    steps = window.steps(tile)
    found |= {"BLOCKS": -(-window.channels // tile.depth), "STEPS": steps}
    found |= {"SWAPPED": tile.swapped, "SPLITS": tile.splits, "PART": -(-steps // tile.splits)}
    return {**found, **pixels, "WAITS": waits}


def convolution_kernel(
    window: Window,
    tile: Tile,
    epilogue: Expression,
    operands: Sequence[Operand],
    elements: tuple[DType, DType],
    *,
    boxed: bool,
    pixels: Mapping[str, int],
    aligned: Sequence[str],
    waits: bool,
) -> DeviceKernel:
    """The kernel of one tile.

    ``epilogue`` reads the float32 sums as load 0 and the operands after them; ``elements`` are the
    types of input and result; ``boxed`` says that the result is stored through a tensor map.
    ``pixels`` are elements between pixels: "PIXEL" of the input, "Y_PIXEL" of the result,
    "PIXEL1", ... of full operands, "COLUMN" and "LENGTH" (of one filter) for "flat". ``aligned``
    are pointers and sizes that are multiples of 16.
    """
    signature = _signature(tile, operands, elements, boxed, window.is_strided)
    constants = _constants(window, tile, pixels, waits)
    names = [name for name, _ in signature]
    head = _HEAD.replace("x, w, y, # <parameters>", ", ".join(names) + ",")
    head = head.replace("    # <sizes>\n", "")
    typed = "".join(f"    {name}: tl.constexpr,\n" for name in constants)
    head = head.replace("    # <constants>\n", typed)
    source = "import triton\nimport triton.language as tl\n\n" + HELPERS
    source += "\n" + head + _body(tile, epilogue, operands, boxed)
    return DeviceKernel(
        compiler="triton",
        entry="convolution",
        source=source,
        threads=32 * tile.warps,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        aligned=tuple(name for name in names if name in aligned),
        stages=tile.stages,
        waits=waits,
    )
