"""Depthwise convolution over channels-last float32 images, with a fused epilogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from engine.kernels import windows
from engine.kernels.epilogue import IDENTITY, Epilogue
from engine.kernels.isa import Isa
from engine.kernels.kernel import Array, Kernel, refuse_others, register, take_integer

__all__ = ["Depthwise", "candidates"]

_PIXEL = r"""
      int64_t c = 0;
      if (r0 == 0 && r1 == KERNEL_HEIGHT && t0 == 0 && t1 == KERNEL_WIDTH) {
@QUICK@
      } else {
        EF_VECTORS(c, count) {
          vector sum = {};
          for (int64_t r = r0; r < r1; ++r)
            for (int64_t t = t0; t < t1; ++t)
              sum += ef_load(corner + r * dilation_height * x_row
                             + t * dilation_width * x_column + c)
                     * ef_load(filters + (r * KERNEL_WIDTH + t) * channels + first + c);
          ef_store(to + c, sum);
        }
      }
      if (count >= W) c = count;
      for (; c < count; ++c) {
        float sum = 0.0f;
        for (int64_t r = r0; r < r1; ++r)
          for (int64_t t = t0; t < t1; ++t)
            sum += corner[r * dilation_height * x_row + t * dilation_width * x_column + c]
                   * filters[(r * KERNEL_WIDTH + t) * channels + first + c];
        to[c] = sum;
      }"""


@register
@dataclass(frozen=True, slots=True)
class Depthwise(Kernel):
    """One filter per channel: input, filters [taps, channels], epilogue operands, output.

    The channels of the input, the filters and the output are adjacent. The sizes kernel_height and
    kernel_width must be the compiled ones.
    """

    kind: ClassVar[str] = "depthwise"

    kernel_height: int
    kernel_width: int
    epilogue: Epilogue = IDENTITY

    def to_json(self) -> dict[str, object]:
        """Filter size and epilogue."""
        return {
            "kernel_height": self.kernel_height,
            "kernel_width": self.kernel_width,
            "epilogue": self.epilogue.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        """Read and check; raises ValueError naming the field at fault."""
        refuse_others(fields, ("kernel_height", "kernel_width", "epilogue"))
        return cls(
            take_integer(fields, "kernel_height", 1, 31),
            take_integer(fields, "kernel_width", 1, 31),
            Epilogue.from_json(fields.get("epilogue")),
        )

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        """Input, filters, epilogue operands, output."""
        return ("float32",) * (len(self.epilogue.operands) + 3)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Dimensions and strides, then the pixel stride of each epilogue operand."""
        return (*windows.SIZES, *windows.epilogue_sizes(self.epilogue))

    def _checked(self, sizes: Sequence[int]) -> dict[str, int]:
        s = self.named(sizes)
        windows.check_sizes(s)
        if (s["kernel_height"], s["kernel_width"]) != (self.kernel_height, self.kernel_width):
            raise ValueError(
                f"depthwise: a {s['kernel_height']} x {s['kernel_width']} filter, expected "
                f"{self.kernel_height} x {self.kernel_width}"
            )
        return {**s, "x_channel": 1}

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
        filters = self.kernel_height * self.kernel_width * s["channels"]
        return (windows.image_extent(s), filters, *windows.epilogue_extents(self.epilogue, s))

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        """The sums of one row."""
        return self._checked(sizes)["out_width"] * windows.BLOCK * 4

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        """Two operations per tap; every operand once."""
        s = self._checked(sizes)
        products = windows.pixels(s) * s["channels"] * self.kernel_height * self.kernel_width
        return 2.0 * products, 4.0 * sum(self.extents(sizes))

    def source(self, name: str, isa: Isa) -> str:
        """The C text for an instruction set."""
        constants = (
            f"enum {{ KERNEL_HEIGHT = {self.kernel_height}, KERNEL_WIDTH = {self.kernel_width} }};"
        )
        pixel = "      const float *filters = (const float *)pointer[1];"
        pixel += _PIXEL.replace("@QUICK@", self._quick())
        return windows.print_windows(
            name, self.epilogue, isa, pixel, first_operand=2, constants=constants
        )

    def _quick(self) -> str:
        """All taps lie in the image: the loop over taps written out, several sums at once."""
        lines = ["EF_VECTORS(c, count) {", "vector s0 = {}, s1 = {};"]
        number = 0
        for r in range(self.kernel_height):
            lines.append(f"{{ const float *row = corner + {r} * dilation_height * x_row + c;")
            lines.append(
                f"const float *f = filters + {r * self.kernel_width} * channels + first + c;"
            )
            for t in range(self.kernel_width):
                step = f"{t} * dilation_width * x_column" if t else "0"
                lines.append(
                    f"s{number % 2} += ef_load(row + {step}) * ef_load(f + {t} * channels);"
                )
                number += 1
            lines.append("}")
        return "\n".join([*lines, "ef_store(to + c, s0 + s1);", "}"])

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        """The sum over taps of shifted images."""
        s = self._checked(sizes)
        if windows.pixels(s) * s["channels"] == 0:
            return
        count = self.kernel_height * self.kernel_width
        filters = operands[1][: count * s["channels"]].reshape(count, s["channels"])
        found = windows.taps(operands[0], s, 0.0)
        sums = np.einsum("abctd,td->abcd", found, filters)
        windows.epilogue_values(self.epilogue, operands, s, sums)


def candidates(
    kernel_height: int, kernel_width: int, epilogue: Epilogue = IDENTITY
) -> list[Depthwise]:
    """Parameter sets worth measuring: there is one."""
    return [Depthwise(kernel_height, kernel_width, epilogue)]
