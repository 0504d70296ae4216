"""The NHWC form of Resize and Upsample."""

from __future__ import annotations

from typing import Any

from engine.ir.graph import Node, Value
from engine.ir.types import Array
from engine.ops.resize_pixels import ResizePixels

__all__ = ["resize_pixels"]

#: What needs nothing but sizes and scales.
_COORDINATES = (
    *("half_pixel", "asymmetric", "tf_half_pixel_for_nn", "pytorch_half_pixel", "align_corners"),
)


def resize_pixels(node: Node, x: Value) -> ResizePixels | None:
    """The operator over NHWC that a node is, or None where only its own form says it all."""
    op: Any = node.op
    mode = str(getattr(op, "mode", "nearest"))
    mode = "linear" if mode == "bilinear" else mode
    if mode not in ("nearest", "linear") or getattr(op, "axes", None) is not None:
        return None
    if getattr(op, "antialias", 0) or getattr(op, "exclude_outside", 0):
        return None
    if getattr(op, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    coordinates, rounding = "asymmetric", "before_11"
    if node.kind == "Resize" and hasattr(op, "nearest_mode"):
        coordinates, rounding = str(op.coordinate_transformation_mode), str(op.nearest_mode)
    if coordinates not in _COORDINATES:
        return None
    ratios = _ratios(node, x)
    if ratios is None:
        return None
    scales, sizes = ratios
    if rounding == "before_11" and sizes:
        return None
    return ResizePixels(mode, coordinates, rounding, scales, sizes)


def _ratios(node: Node, x: Value) -> tuple[tuple[float, float], tuple[int, ...]] | None:
    """The scales of height and width, and their sizes where those are what is given."""
    if hasattr(node.op, "scales"):
        found = [float(item) for item in node.op.scales]
        return _spatial(found)
    places = {1: 1} if not hasattr(node.op, "nearest_mode") else {2: 2, 3: 3}
    given = {place: _constant(node, place) for place in places}
    sizes = given.get(3)
    if sizes is not None:
        old, new = x.tensor.dims, [int(item) for item in sizes]
        known = [item for item in old[2:] if isinstance(item, int) and item > 0]
        if len(new) != 4 or len(known) != 2 or old[1] != new[1] or old[0] != new[0]:
            return None
        return (new[2] / known[0], new[3] / known[1]), (new[2], new[3])
    scales = given.get(2, given.get(1))
    return None if scales is None else _spatial([float(item) for item in scales])


def _spatial(scales: list[float]) -> tuple[tuple[float, float], tuple[int, ...]] | None:
    if len(scales) != 4 or scales[:2] != [1.0, 1.0]:
        return None
    return (scales[2], scales[3]), ()


def _constant(node: Node, place: int) -> Array | None:
    value = node.inputs[place] if len(node.inputs) > place else None
    if value is None or value.constant is None or not value.constant.size:
        return None
    return value.constant.reshape(-1)
