"""reshape, swap of two channel axes, reshape => one channel shuffle."""

from __future__ import annotations

from engine.fusions.fusion import Match, Refused, fusion, only_user
from engine.ir.graph import Graph, Node
from engine.ops.channels_last import ChannelShuffle

__all__ = ["channel_shuffle"]


@fusion("reshape(swap(reshape(x))) => channel_shuffle(x)", "Transpose")
def channel_shuffle(graph: Graph, node: Node) -> Match | Refused | None:
    """ShuffleNet's form: [N, C, H, W] as [N, g, C/g, H, W], axes 1 and 2 swapped, and back."""
    if tuple(getattr(node.op, "perm", None) or ()) != (0, 2, 1, 3, 4):
        return None
    inner = node.inputs[0]
    before = inner.producer if inner is not None else None
    after = only_user(graph, node.outputs[0])
    if before is None or after is None or before.kind != "View" or after.kind != "View":
        return None
    source, output = before.inputs[0], after.outputs[0]
    assert inner is not None and source is not None
    if source.type != output.type or len(source.tensor.dims) != 4:
        return None
    groups = inner.tensor.dims[1]
    if not isinstance(groups, int) or inner.tensor.dims[3:] != source.tensor.dims[2:]:
        return Refused("the number of groups is not known")
    return Match(ChannelShuffle(groups), [source], output, [before, node, after])
