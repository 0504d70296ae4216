"""Maximum and average pooling over float32 images of any layout into channels-last ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from engine.kernels import windows
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa
from engine.kernels.kernel import (
    Array,
    Kernel,
    refuse_others,
    register,
    take_boolean,
    take_choice,
)

__all__ = ["Pooling", "candidates"]

FUNCTIONS = ("max", "average")

_PIXEL = r"""
      int64_t c = 0;
@SCALE@
@VECTORS@
      for (; c < count; ++c) {
        float sum = @START@;
        for (int64_t r = r0; r < r1; ++r)
          for (int64_t t = t0; t < t1; ++t) {
            const float value = corner[r * dilation_height * x_row
                                       + t * dilation_width * x_column + c * x_channel];
            sum = @SCALAR@;
          }
        to[c] = sum@TIMES@;
      }"""

_VECTORS = r"""
      EF_VECTORS(c, count) {
        vector sum = @START@ - (vector){};
        for (int64_t r = r0; r < r1; ++r)
          for (int64_t t = t0; t < t1; ++t) {
            const vector value = ef_load(corner + r * dilation_height * x_row
                                         + t * dilation_width * x_column + c);
            sum = @VECTOR@;
          }
        ef_store(to + c, sum@TIMES@);
      }
      if (count >= W) c = count;"""

# The window positions that count: those in the image, or in the padded image as well.
_INSIDE = "      const float scale = 1.0f / (float)((r1 - r0) * (t1 - t0));"
_PADDED = r"""
      int64_t rows = kernel_height, columns = kernel_width;
      while (rows && top + (rows - 1) * dilation_height >= height + pad_bottom) --rows;
      while (columns && left + (columns - 1) * dilation_width >= width + pad_right) --columns;
      const float scale = 1.0f / (float)(rows * columns);"""


@register
@dataclass(frozen=True, slots=True)
class Pooling(Kernel):
    """The maximum or mean of windows: input, epilogue operands, output.

    ``adjacent`` says that the input's channels are adjacent (x_channel is 1); ``padded`` that an
    average counts padding. The maximum of no element is minus infinity, the average NaN.
    """

    kind: ClassVar[str] = "pooling"

    function: str
    padded: bool = False
    adjacent: bool = True
    epilogue: Epilogue = IDENTITY

    def to_json(self) -> dict[str, object]:
        """Function, flags and epilogue."""
        return {
            "function": self.function,
            "padded": self.padded,
            "adjacent": self.adjacent,
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, ("function", "padded", "adjacent", "epilogue"))
        return cls(
            take_choice(fields, "function", FUNCTIONS),
            take_boolean(fields, "padded"),
            take_boolean(fields, "adjacent"),
            Epilogue.from_json(fields.get("epilogue")),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Input, epilogue operands, output."""
        return ("float32",) * (len(self.epilogue.operands) + 2)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Dimensions and strides, then the pixel stride of each epilogue operand."""
        return (*windows.SIZES, *windows.epilogue_sizes(self.epilogue))

    def _checked(self, sizes: Sequence[int]) -> dict[str, int]:
        s = self.named(sizes)
        windows.check_sizes(s)
        return {**s, "x_channel": 1} if self.adjacent else s

    def items(self, sizes: Sequence[int]) -> int:
        """Output rows times blocks of channels."""
        s = self._checked(sizes)
        rows = s["images"] * s["out_height"] if s["out_width"] else 0
        return rows * -(-s["channels"] // windows.BLOCK)

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Reach of every operand in elements."""
        s = self._checked(sizes)
        if windows.pixels(s) * s["channels"] == 0:
            return (0,) * self.operand_count
        return (windows.image_extent(s), *windows.epilogue_extents(self.epilogue, s))

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """The results of one row before the epilogue."""
        return self._checked(sizes)["out_width"] * windows.BLOCK * 4

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """One operation per element of each window; every operand once."""
        s = self._checked(sizes)
        elements = windows.pixels(s) * s["channels"] * s["kernel_height"] * s["kernel_width"]
        return float(elements), 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C text for an instruction set."""
        largest = self.function == "max"
        scale = _PADDED if self.padded else _INSIDE
        pixel = _PIXEL.replace("@VECTORS@", _VECTORS if self.adjacent else "")
        marks = {
            "SCALE": "" if largest else scale,
            "TIMES": "" if largest else " * scale",
            "START": "-INFINITY" if largest else "0.0f",
            "SCALAR": "ef_maximum(value, sum)" if largest else "sum + value",
            "VECTOR": "ef_greater(value, sum)" if largest else "sum + value",
        }
        for key, text in marks.items():
            pixel = pixel.replace(f"@{key}@", text)
        if self.adjacent:
            pixel = pixel.replace(" * x_channel", "")
        return windows.print_windows(name, self.epilogue, isa, pixel, first_operand=1)

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """Maximum or mean over stacked windows."""
        s = self._checked(sizes)
        if windows.pixels(s) * s["channels"] == 0:
            return
        if self.function == "max":
            found = windows.taps(operands[0], s, -np.inf)
            result = found.max(axis=3, initial=-np.inf)
        else:
            found = windows.taps(operands[0], s, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                result = found.sum(axis=3) * (np.float32(1) / self._counts(s))[..., None]
        windows.epilogue_values(self.epilogue, operands, s, result)

    def _counts(self, s: Mapping[str, int]) -> Array:
        """How many window positions count, [out_height, out_width]."""
        counts = []
        for axis, before, after in (("height", "top", "bottom"), ("width", "left", "right")):
            first = np.arange(s[f"out_{axis}"]) * s[f"stride_{axis}"] - s[f"pad_{before}"]
            steps = np.arange(s[f"kernel_{axis}"]) * s[f"dilation_{axis}"]
            places = first[:, None] + steps
            more = s[f"pad_{after}"] if self.padded else 0
            inside = (places < s[axis] + more) & ((places >= 0) | self.padded)
            counts.append(inside.sum(axis=1))
        rows, columns = counts
        result: Array = (rows[:, None] * columns).astype(np.float32)
        return result


def candidates(
    function: str, *, padded: bool = False, adjacent: bool = True, epilogue: Epilogue = IDENTITY
) -> list[Pooling]:
    """Parameter sets worth measuring: there is one."""
    return [Pooling(function, padded, adjacent, epilogue)]
