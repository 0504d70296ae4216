"""The transforms of Winograd's minimal filtering F(m x m, 3 x 3), m = 2 or 4, as matrices and as C.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015, with the points
0, 1, -1, (2, -2,) infinity. A tile of (m + 2) squared inputs gives m squared outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.kernels.kernel import Array

__all__ = ["TRANSFORMS", "Transform", "print_transform"]


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """Matrices of F(m, 3): of the inputs [t, t], the filters [t, 3], the outputs [m, t]."""

    inputs: Array
    filters: Array
    outputs: Array
    input_lines: Sequence[str]
    output_lines: Sequence[str]


_TWO = Transform(
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    filters=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float64),
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    input_lines=("x0 - x2", "x1 + x2", "x2 - x1", "x1 - x3"),
    output_lines=("x0 + x1 + x2", "x1 - x2 - x3"),
)
_FOUR = Transform(
    inputs=np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        np.float64,
    ),
    filters=np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        np.float64,
    ),
    outputs=np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        np.float64,
    ),
    input_lines=(
        "4.0f * x0 + (x4 - 5.0f * x2)",
        "(x4 - 4.0f * x2) + (x3 - 4.0f * x1)",
        "(x4 - 4.0f * x2) - (x3 - 4.0f * x1)",
        "(x4 - x2) + 2.0f * (x3 - x1)",
        "(x4 - x2) - 2.0f * (x3 - x1)",
        "4.0f * x1 + (x5 - 5.0f * x3)",
    ),
    output_lines=(
        "x0 + (x1 + x2) + (x3 + x4)",
        "(x1 - x2) + 2.0f * (x3 - x4)",
        "(x1 + x2) + 4.0f * (x3 + x4)",
        "(x1 - x2) + 8.0f * (x3 - x4) + x5",
    ),
)
#: The transform for m outputs per side.
TRANSFORMS: Mapping[int, Transform] = {2: _TWO, 4: _FOUR}


def print_transform(lines: Sequence[str], size: int, load: str, store: str) -> str:
    """Statements that apply one-dimensional ``lines`` to the columns, then the rows, of a tile.

    ``load`` and ``store`` are C with {i} and {j} for the place in the tile; the store has {value}.
    """
    text = []
    for j in range(size):
        names = ", ".join(f"x{i} = {load.format(i=i, j=j)}" for i in range(size))
        text.append(f"    {{ const vector {names};")
        text.extend(f"      t[{i}][{j}] = {line};" for i, line in enumerate(lines))
        text.append("    }")
    for i in range(len(lines)):
        names = ", ".join(f"x{j} = t[{i}][{j}]" for j in range(size))
        text.append(f"    {{ const vector {names};")
        for j, line in enumerate(lines):
            text.append("      " + store.format(i=i, j=j, value=line))
        text.append("    }")
    return "\n".join(text)
