"""conv(pad(x)) => conv(x) with wider padding, for zeros around height and width."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.fusions.fusion import Match, Refused, constant_number, fusion, only_user
from engine.ir.graph import Graph, Node

__all__ = ["pad_conv"]


@fusion("conv(pad(x, 0), w) => conv(x, w)", "Conv")
def pad_conv(graph: Graph, node: Node) -> Match | Refused | None:
    """The padding must be constant, of zeros, and not negative."""
    source = node.inputs[0]
    pad = source.producer if source is not None else None
    if pad is None or source is None or pad.kind != "Pad":
        return None
    if only_user(graph, source) is not node:
        return Refused("something else reads the padded tensor")
    op: Any = node.op
    if getattr(pad.op, "mode", "constant") != "constant" or op.auto_pad not in ("NOTSET", "VALID"):
        return Refused("the padding is no constant border, or the convolution pads by itself")
    amounts = pads_of(pad)
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = getattr(pad.op, "value", 0.0) if fill is None else constant_number(fill)
    if amounts is None or number != 0.0 or len(pad.inputs) > 3:
        return Refused("the amounts of padding are not known, or it is not of zeros")
    rank = len(amounts) // 2
    if any(amounts[:2]) or any(amounts[rank : rank + 2]) or min(amounts) < 0:
        return Refused("batch or channels are padded, or the tensor is cut")
    own = (
        list(op.pads or (0,) * (2 * (rank - 2)))
        if op.auto_pad == "NOTSET"
        else [0] * (2 * rank - 4)
    )
    extra = [*amounts[2:rank], *amounts[rank + 2 :]]
    wider = dataclasses.replace(
        op, pads=tuple(a + b for a, b in zip(own, extra)), auto_pad="NOTSET"
    )
    inputs = [pad.inputs[0], *node.inputs[1:]]
    return Match(wider, inputs, node.outputs[0], [pad, node])


def pads_of(pad: Node) -> list[int] | None:
    """The constant amounts of a Pad: before each axis, then after each."""
    amounts = getattr(pad.op, "pads", None)
    if amounts is not None:
        return [int(item) for item in amounts]
    given = pad.inputs[1].constant if len(pad.inputs) > 1 and pad.inputs[1] is not None else None
    return None if given is None else [int(item) for item in given.reshape(-1)]
