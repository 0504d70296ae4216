"""What depthwise convolution and pooling share: windows over the pixels of float32 images.

A work item is one output row of a block of channels. Sums (or maxima) of the row are gathered in
scratch and then pass through the epilogue into the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.kernels.c_expression import PRELUDE
from engine.kernels.epilogue import Epilogue, print_epilogue
from engine.kernels.isa import Isa
from engine.kernels.kernel import Array, window

__all__ = [
    "BLOCK",
    "SIZES",
    "epilogue_extents",
    "epilogue_sizes",
    "epilogue_values",
    "image_extent",
    "print_windows",
    "taps",
]

#: Most channels of a work item; blocks are equal up to a multiple of 16.
BLOCK = 64
SIZES = (
    *("images", "height", "width", "channels", "kernel_height", "kernel_width"),
    *("out_height", "out_width", "stride_height", "stride_width"),
    *("dilation_height", "dilation_width", "pad_top", "pad_left", "pad_bottom", "pad_right"),
    *("x_image", "x_row", "x_column", "x_channel", "y_pixel"),
)

_HEAD = r"""
typedef float vector __attribute__((vector_size(@BYTES@), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(@BYTES@), aligned(4), may_alias));
EF_FUNCTION vector ef_load(const float *p) { return *(const vector *)p; }
/* Vectors over a count: the last overlaps the one before, so that no single channel is left. */
#define EF_VECTORS(c, count) \
  for (int64_t v = 0; count >= W && v < count && (c = v + W > count ? count - W : v, 1); v += W)
EF_FUNCTION void ef_store(float *p, vector v) { *(vector *)p = v; }
EF_FUNCTION vector ef_greater(vector a, vector b) {
  mask m = (mask)(a > b) | (mask)(a != a);
  return (vector)((m & (mask)a) | (~m & (mask)b));
}
"""

_BODY = r"""
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
  enum { W = @WIDTH@, BLOCK = @BLOCK@ };
@SIZES@
  float *const sums = (float *)scratch;
  const int64_t blocks = (channels + BLOCK - 1) / BLOCK;
  const int64_t block = blocks ? ((channels + blocks - 1) / blocks + 15) / 16 * 16 : BLOCK;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % blocks * block, line = item / blocks;
    const int64_t count = channels - first < block ? channels - first : block;
    const int64_t image = line / out_height, top = line % out_height * stride_height - pad_top;
    const float *x = (const float *)pointer[0] + image * x_image + first * x_channel;
    /* the rows of the window that lie in the image */
    int64_t r0 = top < 0 ? (-top + dilation_height - 1) / dilation_height : 0, r1 = kernel_height;
    while (r1 > r0 && top + (r1 - 1) * dilation_height >= height) --r1;
    if (r0 > r1) r0 = r1;
    for (int64_t ox = 0; ox < out_width; ++ox) {
      const int64_t left = ox * stride_width - pad_left;
      int64_t t0 = left < 0 ? (-left + dilation_width - 1) / dilation_width : 0, t1 = kernel_width;
      while (t1 > t0 && left + (t1 - 1) * dilation_width >= width) --t1;
      if (t0 > t1) t0 = t1;
      const float *corner = x + top * x_row + left * x_column;
      float *to = sums + ox * BLOCK;
@PIXEL@
    }
    const int64_t pixel = line * out_width;
    for (int64_t ox = 0; ox < out_width; ++ox) {
      const float *from = sums + ox * BLOCK;
      float *y = (float *)pointer[@OUTPUT@] + (pixel + ox) * y_pixel + first;
@OPERANDS@
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
      for (int64_t c = 0; c < count; ++c) {
        @STATEMENTS@
        y[c] = @VALUE@;
      }
    }
  }
}
"""


def print_windows(
    name: str, epilogue: Epilogue, isa: Isa, pixel: str, *, first_operand: int, constants: str = ""
) -> str:
    """The C file of a window kernel.

    ``pixel`` computes one output pixel of ``count`` channels into ``to`` from ``corner``, given the
    valid window rows r0 to r1 and columns t0 to t1. ``first_operand`` is the first epilogue
    operand's place.
    """
    names = [*SIZES, *epilogue_sizes(epilogue)]
    sizes = "\n".join(f"  const int64_t {n} = size[{i}];" for i, n in enumerate(names))
    loads, texts = [], ["from[c]"]
    for place, kind in enumerate(epilogue.operands):
        wide = " + first" if kind in ("column", "full") else ""
        step = f" + (pixel + ox) * e{place + 1}_pixel" if kind in ("row", "full") else ""
        source = f"(const float *)pointer[{first_operand + place}]{step}{wide}"
        loads.append(f"      const float *e{place + 1} = {source};")
        texts.append(f"e{place + 1}[{'c' if wide else '0'}]")
    statements, value = print_epilogue(epilogue.expression, texts)
    body = _HEAD + constants + _BODY
    marks = {
        "NAME": name,
        "BYTES": str(isa.vector_floats * 4),
        "WIDTH": str(isa.vector_floats),
        "BLOCK": str(BLOCK),
        "SIZES": sizes,
        "PIXEL": pixel,
        "OUTPUT": str(first_operand + len(epilogue.operands)),
        "OPERANDS": "\n".join(loads),
        "STATEMENTS": statements,
        "VALUE": value,
    }
    for key, text in marks.items():
        body = body.replace(f"@{key}@", text)
    return PRELUDE + body


def epilogue_sizes(epilogue: Epilogue) -> tuple[str, ...]:
    """The pixel stride of every epilogue operand, as `Convolution` has them."""
    return tuple(f"e{place}_pixel" for place in range(1, len(epilogue.operands) + 1))


def pixels(s: Mapping[str, int]) -> int:
    """How many output pixels there are."""
    return s["images"] * s["out_height"] * s["out_width"]


def epilogue_extents(epilogue: Epilogue, s: Mapping[str, int]) -> list[int]:
    """Reach of the epilogue's operands, then of the output."""
    found = []
    for place, kind in enumerate(epilogue.operands, 1):
        walk = (pixels(s) - 1) * s[f"e{place}_pixel"] if kind in ("row", "full") else 0
        found.append(walk + (s["channels"] if kind in ("column", "full") else 1))
    return [*found, (pixels(s) - 1) * s["y_pixel"] + s["channels"]]


def image_extent(s: Mapping[str, int]) -> int:
    """Reach of the input."""
    if 0 in (s["height"], s["width"]):
        return 0
    rows = (s["images"] - 1) * s["x_image"] + (s["height"] - 1) * s["x_row"]
    return rows + (s["width"] - 1) * s["x_column"] + (s["channels"] - 1) * s["x_channel"] + 1


def check_sizes(s: Mapping[str, int]) -> None:
    """Raise ValueError for sizes that would divide by zero or overflow a window's place."""
    for name in ("dilation_height", "dilation_width"):
        if not 1 <= s[name] <= 1 << 31:
            raise ValueError(f"size {name} is {s[name]}, expected 1 to 2**31")
    for name in SIZES[:16]:
        if s[name] > 1 << 31:
            raise ValueError(f"size {name} is {s[name]}, expected at most 2**31")


def taps(x: Array, s: Mapping[str, int], outside: float) -> Array:
    """All windows of an image operand: [images, out_height, out_width, taps, channels]."""
    strides = (s["x_image"], s["x_row"], s["x_column"], s["x_channel"])
    shape = (s["images"], s["height"], s["width"], s["channels"])
    high = (s["out_height"] - 1) * s["stride_height"]
    high += (s["kernel_height"] - 1) * s["dilation_height"] + 1
    wide = (s["out_width"] - 1) * s["stride_width"]
    wide += (s["kernel_width"] - 1) * s["dilation_width"] + 1
    padded = np.full((shape[0], high, wide, shape[3]), outside, np.float32)
    if 0 not in shape:
        used = window(x, shape, strides)
        top, left = s["pad_top"], s["pad_left"]
        used = used[:, : max(0, high - top), : max(0, wide - left)]
        padded[:, top : top + used.shape[1], left : left + used.shape[2]] = used
    parts = []
    for r in range(s["kernel_height"]):
        for t in range(s["kernel_width"]):
            part = padded[:, r * s["dilation_height"] :: max(1, s["stride_height"])]
            part = part[:, :, t * s["dilation_width"] :: max(1, s["stride_width"])]
            parts.append(part[:, : s["out_height"], : s["out_width"]])
    return np.stack(parts, 3)


def epilogue_values(
    epilogue: Epilogue, operands: Sequence[Array], s: Mapping[str, int], sums: Array
) -> None:
    """Apply the epilogue to sums [pixels, channels] and write the last operand."""
    count, channels = pixels(s), s["channels"]
    values = [sums.reshape(count, channels)]
    first = len(operands) - 1 - len(epilogue.operands)
    for place, kind in enumerate(epilogue.operands, 1):
        stride = s[f"e{place}_pixel"] if kind in ("row", "full") else 0
        wide = channels if kind in ("column", "full") else 1
        values.append(window(operands[first + place - 1], (count, wide), (stride, 1)))
    y = window(operands[-1], (count, channels), (s["y_pixel"], 1))
    y[...] = epilogue.evaluate(values)
