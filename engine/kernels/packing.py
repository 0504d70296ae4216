"""Weight layouts that the kernels read: a closed set of NumPy packing functions, named in plans.

A recipe is a name and integer arguments; its result is a flat float32 array. Column tails are
padded with zeros up to the width of a panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from engine.kernels.kernel import Array
from engine.kernels.transforms import TRANSFORMS

__all__ = [
    "RECIPES",
    "pack",
    "pack_columns",
    "pack_filters",
    "pack_rows",
    "pack_winograd",
    "packed_columns_size",
]


class Recipe(Protocol):
    """How a weight is packed: an array and integer arguments to a flat contiguous array."""

    def __call__(self, weight: Array, *arguments: int) -> Array:
        """The packed weight; raises ValueError for a rank or argument that does not fit."""


def _checked(weight: Array, rank: int, width: int) -> Array:
    if weight.ndim != rank:
        raise ValueError(f"found a weight of rank {weight.ndim}, expected {rank}")
    if not 1 <= width <= 1024:
        raise ValueError(f"found a panel width of {width}, expected 1 to 1024")
    return weight


def packed_columns_size(rows: int, columns: int, width: int) -> int:
    """Elements of a packed matrix of ``rows`` x ``columns``."""
    return -(-columns // width) * rows * width


def pack_columns(weight: Array, *arguments: int) -> Array:
    """[..., K, N] to [..., ceil(N / width)][K][width]; the only argument is the width."""
    (width,) = arguments
    whole = weight.reshape(math.prod(weight.shape[:-2]), *weight.shape[-2:])
    matrix = _checked(whole, 3, width)
    batch, depth, columns = matrix.shape
    panels = -(-columns // width)
    packed = np.zeros((batch, panels, depth, width), weight.dtype)
    for panel in range(panels):
        part = matrix[:, :, panel * width : (panel + 1) * width]
        packed[:, panel, :, : part.shape[2]] = part
    return packed.reshape(-1)


def pack_rows(weight: Array, *arguments: int) -> Array:
    """[..., N, K], a transposed matrix, to the layout of `pack_columns`."""
    return pack_columns(np.swapaxes(weight, -1, -2), *arguments)


def pack_filters(weight: Array, *arguments: int) -> Array:
    """[N, C / groups, R, S] to [groups][ceil(N / groups / width)][R][S][C / groups][width].

    The arguments are the width and the number of groups.
    """
    width, groups = arguments
    _checked(weight, 4, width)
    outputs, inputs, height, breadth = weight.shape
    if groups < 1 or outputs % groups:
        raise ValueError(f"found {groups} groups, expected a divisor of {outputs} channels")
    matrix = weight.reshape(groups, outputs // groups, inputs, height, breadth)
    matrix = matrix.transpose(0, 3, 4, 2, 1)
    depth = math.prod((height, breadth, inputs))
    return pack_columns(matrix.reshape(groups, depth, outputs // groups), width)


def pack_winograd(weight: Array, *arguments: int) -> Array:
    """[N, C / groups, 3, 3] to [groups][t * t][ceil(N / groups / width)][C / groups][width].

    The arguments are the width, the outputs per tile side (2 or 4, t is 2 more) and the groups.
    """
    width, side, groups = arguments
    _checked(weight, 4, width)
    outputs, inputs = weight.shape[:2]
    if weight.shape[2:] != (3, 3) or side not in TRANSFORMS:
        raise ValueError(f"found filters {weight.shape[2:]} in tiles of {side}, expected 3 x 3")
    if groups < 1 or outputs % groups:
        raise ValueError(f"found {groups} groups, expected a divisor of {outputs} channels")
    matrix = np.kron(TRANSFORMS[side].filters, TRANSFORMS[side].filters).astype(weight.dtype)
    taps = weight.reshape(groups, outputs // groups, inputs, 9).transpose(0, 3, 2, 1)
    points = matrix @ taps.reshape(groups, 9, -1)
    return pack_columns(points.reshape(groups, len(matrix), inputs, outputs // groups), width)


RECIPES: Mapping[str, tuple[Recipe, int]] = {
    "columns": (pack_columns, 1),
    "rows": (pack_rows, 1),
    "filters": (pack_filters, 2),
    "winograd": (pack_winograd, 3),
}


def pack(name: str, weight: Array, arguments: Sequence[int]) -> Array:
    """Apply the recipe ``name``; raises ValueError when it is unknown or the arguments misfit."""
    if name not in RECIPES:
        raise ValueError(f"found packing {name!r}, expected one of {', '.join(RECIPES)}")
    function, count = RECIPES[name]
    if len(arguments) != count:
        raise ValueError(f"packing {name}: found {len(arguments)} arguments, expected {count}")
    return function(weight, *arguments)
