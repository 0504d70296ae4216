"""Convolution regions become NHWC: convolutions, pooling and what moves channels around.

Each operator is rewritten between two transposes; `move_transposes` then cancels all but those at
the edges of a region.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.fusions.fusion import only_user
from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.types import DType, TensorType, is_bound
from engine.ops.channels_last import ChannelNorm, ChannelShuffle, Pool
from engine.ops.elementwise import ElementwiseOperator
from engine.ops.expression import call, cast, load
from engine.ops.fused import CONTRACTED, FusedConv
from engine.ops.operator import Operator, find
from engine.ops.pixel_blocks import BlocksToPixels
from engine.ops.sliding import Windows
from engine.passes.resize_layout import resize_pixels

__all__ = ["TO_NCHW", "TO_NHWC", "choose_layout"]

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)
#: An input with so few channels is read as it is by a direct convolution.
PLANAR_CHANNELS = 4


def choose_layout(graph: Graph) -> bool:
    """Rewrite every two-dimensional convolution of floats and what belongs to its region."""
    changed = False
    for node in list(graph.nodes):
        made = _channels_last(graph, node)
        if made is not None:
            op, inputs = made
            _between_transposes(graph, node, op, inputs)
            changed = True
    return changed


def _channels_last(graph: Graph, node: Node) -> tuple[Operator, list[Value]] | None:
    """The NHWC operator of a node and its further inputs, or None when it stays."""
    x = node.inputs[0] if node.inputs else None
    if x is None or not isinstance(x.type, TensorType) or x.type.dtype not in CONTRACTED:
        return None
    if not is_bound(x.type) or x.tensor.rank != 4 or not node.only_first_read:
        return None
    if node.kind == "Conv":
        return _conv(graph, node, x)
    if node.kind in ("MaxPool", "AveragePool"):
        return _pool(graph, node, x)
    if node.kind in ("GlobalAveragePool", "GlobalMaxPool") or _is_spatial_mean(node):
        return _global_pool(node, x)
    if node.kind == "ChannelShuffle":
        return ChannelShuffle(getattr(node.op, "groups", 1), 3), []
    if node.kind == "DepthToSpace" and _is_turned(x):
        return BlocksToPixels(getattr(node.op, "blocksize", 1), getattr(node.op, "mode", "DCR")), []
    if node.kind in ("Resize", "Upsample") and _is_turned(x):
        resized = resize_pixels(node, x)
        return None if resized is None else (resized, [])
    if node.kind == "LRN":
        keys = ("alpha", "beta", "bias", "size")
        return ChannelNorm(**{key: getattr(node.op, key) for key in keys}), []
    return None


def _resolved_pads(
    windows: Windows, sizes: Sequence[object], graph: Graph, node: Node
) -> tuple[int, ...] | None:
    if windows.auto_pad == "NOTSET":
        return windows.pads
    if windows.auto_pad == "VALID":
        return (0, 0, 0, 0)
    if not all(isinstance(size, int) for size in sizes):
        graph.decide("convolution in NHWC", node.sources, False, "auto_pad over symbolic sizes")
        return None
    before, after = windows.padding([size for size in sizes if isinstance(size, int)])
    return (*before, *after)


def _conv(graph: Graph, node: Node, x: Value) -> tuple[Operator, list[Value]] | None:
    w = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if w is None or w.tensor.shape is None or not all(isinstance(d, int) for d in w.tensor.shape):
        return None
    op = node.op
    if x.tensor.dims[1] != w.tensor.shape[1] * getattr(op, "group", 1):
        graph.decide("convolution in NHWC", node.sources, False, "its channels are not known")
        return None
    kernel = [int(d) for d in w.tensor.shape[2:]]  # type: ignore[arg-type]
    windows = Windows.of(
        kernel,
        strides=getattr(op, "strides", None),
        dilations=getattr(op, "dilations", None),
        pads=getattr(op, "pads", None),
        auto_pad=getattr(op, "auto_pad", "NOTSET"),
    )
    pads = _resolved_pads(windows, x.tensor.dims[2:], graph, node)
    if pads is None:
        return None
    total = load(0, DType.FLOAT32)
    if bias is not None:
        total = call("add", total, cast(load(1, bias.tensor.dtype), DType.FLOAT32))
    made = FusedConv(
        strides=windows.strides,
        pads=pads,
        dilations=windows.dilations,
        group=getattr(op, "group", 1),
        epilogue=cast(total, x.tensor.dtype),
        kinds=() if bias is None else ("column",),
    )
    return made, [w] if bias is None else [w, bias]


def _pool(graph: Graph, node: Node, x: Value) -> tuple[Operator, list[Value]] | None:
    op = node.op
    windows = Windows.of(
        op.kernel_shape,  # type: ignore[attr-defined]
        strides=getattr(op, "strides", None),
        dilations=getattr(op, "dilations", None),
        pads=getattr(op, "pads", None),
        auto_pad=getattr(op, "auto_pad", "NOTSET"),
        ceil=getattr(op, "ceil_mode", 0),
    )
    pads = _resolved_pads(windows, x.tensor.dims[2:], graph, node)
    if pads is None or len(windows.kernel) != 2:
        return None
    return Pool(
        kind="max" if node.kind == "MaxPool" else "average",
        kernel=windows.kernel,
        strides=windows.strides,
        pads=pads,
        dilations=windows.dilations,
        ceil=windows.ceil and windows.auto_pad == "NOTSET",
        counts_padding=bool(getattr(op, "count_include_pad", 0)),
    ), []


def _is_turned(x: Value) -> bool:
    """Whether a value was turned back from NHWC, or is made of such by elementwise operators."""
    maker = x.producer
    return maker is not None and (maker.kind == "Transpose" or _follows_turned(maker))


def _is_spatial_mean(node: Node) -> bool:
    """A mean over height and width that keeps its axes, of a tensor that is NHWC already."""
    if node.kind != "ReduceMean" or not getattr(node.op, "keepdims", 1):
        return False
    axes = getattr(node.op, "axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].constant
        axes = None if constant is None else constant.reshape(-1).tolist()
    above = node.inputs[0].producer if node.inputs[0] is not None else None
    turned = above is not None and (above.kind == "Transpose" or _follows_turned(above))
    return axes is not None and sorted(int(a) % 4 for a in axes) == [2, 3] and turned


def _follows_turned(node: Node) -> bool:
    """Whether an elementwise node works on a tensor that was turned back from NHWC."""
    if not isinstance(node.op, ElementwiseOperator):
        return False
    makers = [v.producer for v in node.inputs if v is not None and v.producer is not None]
    return any(m.kind == "Transpose" or _follows_turned(m) for m in makers)


def _global_pool(node: Node, x: Value) -> tuple[Operator, list[Value]] | None:
    height, width = x.tensor.dims[2:]
    if not (isinstance(height, int) and isinstance(width, int) and height * width > 0):
        return None
    kind = "max" if node.kind == "GlobalMaxPool" else "average"
    return Pool(kind=kind, kernel=(height, width)), []


def _between_transposes(graph: Graph, node: Node, op: Operator, others: Sequence[Value]) -> None:
    """Replace a node by: to NHWC, the new operator, back to NCHW."""
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    turned = transpose_before(graph, node, x, TO_NHWC)
    middle = Node(
        op,
        [turned, *others],
        [Value(graph.fresh_name(f"{output.name}.nhwc"), output.type)],
        name=graph.fresh_name(node.name),
        sources=node.sources,
    )
    graph.insert_before(node, middle)
    infer_node(graph, middle)
    back = transpose_before(graph, node, middle.outputs[0], TO_NCHW)
    graph.replace_value(output, back)
    graph.remove(node)


def transpose_before(graph: Graph, anchor: Node, value: Value, perm: Sequence[int]) -> Value:
    """A transposed copy of a value, made just before a node."""
    if value.constant is not None:
        return graph.constant(value.name, value.constant.transpose(perm).copy())
    op = find("", "Transpose", 13).from_attributes({"perm": tuple(perm)})
    result = Value(graph.fresh_name(f"{value.name}.turned"), value.type)
    node = Node(op, [value], [result], name=graph.fresh_name(f"{anchor.name}.transpose"))
    graph.insert_before(anchor, node)
    infer_node(graph, node)
    return result


def read_planar_inputs(graph: Graph) -> bool:
    """Let a convolution over few channels read an NCHW tensor directly."""
    changed = False
    for node in graph.nodes:
        op = node.op
        if not isinstance(op, FusedConv) or op.input_layout != "NHWC":
            continue
        x = node.inputs[0]
        above = x.producer if x is not None else None
        if above is None or above.kind != "Transpose" or _perm(above) != TO_NHWC:
            continue
        source = above.inputs[0]
        assert source is not None and x is not None
        channels = source.tensor.dims[1]
        if (
            isinstance(channels, int)
            and channels <= PLANAR_CHANNELS
            and only_user(graph, x) is node
        ):
            node.op = dataclasses.replace(op, input_layout="NCHW")
            node.set_input(0, source)
            changed = True
    return changed


def _perm(node: Node) -> tuple[int, ...]:
    return tuple(getattr(node.op, "perm", None) or ())
