"""Attention on Hopper by generated CUDA C: all keys at once up to 256, more of them in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.cuda.hopper_attention import (
    MOST_KEYS,
    HopperAttentionForm,
    HopperAttentionTile,
    hopper_attention_kernel,
    ranked_attention_tiles,
)
from engine.cuda.hopper_attention_loop import (
    HopperLoopTile,
    hopper_attention_loop_kernel,
    ranked_loop_tiles,
)
from engine.cuda.hopper_prelude import hopper_target
from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Node
from engine.ir.sizes import Dim, ceildiv, evaluate, modulo
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused_attention import DTYPES, FusedAttention
from engine.plan.device import Parameter, Pointer, Scalar, TensorMap
from engine.plan.structure import Guard
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import Target

__all__ = ["NvrtcHopperAttention"]

#: Below this many queries most of every product is thrown away.
_LEAST_QUERIES = 9
#: From so many keys on blocks of them are worth measuring; candidates of that beside others.
_LEAST_LOOP = 128
_SOME = 2


class NvrtcHopperAttention:
    """Serves FusedAttention in 16-bit floats: no mask, one value per key, causal or both."""

    name = "nvrtc.hopper_attention"
    kinds = ("FusedAttention",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per way of cutting that is worth measuring."""
        hopper = hopper_target(target)
        if isinstance(hopper, str):
            return Refusal(self.name, hopper)
        reason = _reason(node)
        if reason:
            return Refusal(self.name, reason)
        op = node.op
        assert isinstance(op, FusedAttention)
        batch, heads, queries, keys = (evaluate(dim, point) for dim in op.sizes)
        if min(batch, heads, keys) < 1 or queries < _LEAST_QUERIES:
            return Refusal(self.name, f"it is for {_LEAST_QUERIES} queries and more")
        form = _form(node, keys)
        found = []
        if keys <= MOST_KEYS:
            whole = ranked_attention_tiles(form, batch * heads, queries, hopper)
            found += [self._candidate(form, tile, op.sizes[3]) for tile in whole]
        if keys > _LEAST_LOOP or not isinstance(op.sizes[3], int):
            loops = ranked_loop_tiles(form, batch * heads, queries, keys, hopper)
            found += [
                self._loop_candidate(replace(form, columns=tile.columns), tile, op.sizes[3])
                for tile in (loops if keys > MOST_KEYS else loops[:_SOME])
            ]
        return found or Refusal(self.name, "heads and a mask of this size do not fit shared memory")

    def _candidate(
        self, form: HopperAttentionForm, tile: HopperAttentionTile, keys: Dim
    ) -> Candidate:
        kernel = hopper_attention_kernel(form, tile)
        return Candidate(
            self.name,
            {**tile.to_json(), "columns": form.columns},
            lambda builder, node, layer: _emit(
                builder, node, layer, kernel, 64 * tile.groups * tile.tiles
            ),
            holds=() if isinstance(keys, int) else (Guard("<=", keys, form.columns),),
        )

    def _loop_candidate(
        self, form: HopperAttentionForm, tile: HopperLoopTile, keys: Dim
    ) -> Candidate:
        kernel = hopper_attention_loop_kernel(form, tile)
        bounded = tile.most_keys > 0 and not isinstance(keys, int)
        return Candidate(
            self.name,
            tile.to_json(),
            lambda builder, node, layer: _emit(builder, node, layer, kernel, 64 * tile.groups),
            holds=(Guard("<=", keys, tile.most_keys),) if bounded else (),
        )


def _reason(node: Node) -> str:
    """Why the kernel cannot compute this attention, or nothing."""
    op = node.op
    assert isinstance(op, FusedAttention)
    query, key, value = (item for item in node.inputs[:3] if item is not None)
    dtypes = {item.tensor.dtype for item in (query, key, value, node.outputs[0])}
    if len(dtypes) != 1 or not dtypes <= {DType.FLOAT16, DType.BFLOAT16}:
        return "queries, keys, values and result are not all float16 or all bfloat16"
    if op.mask == "full":
        return "the mask has a value per query and key"
    if op.position != "none":
        return "how many keys are seen depends on a position"
    if not isinstance(op.past, int) or op.past < 0:
        return f"the keys before the first query are {op.past}, expected a number"
    if op.head_size % 8 or op.head_size > 128:
        return f"heads have {op.head_size} elements, expected a multiple of 8 up to 128"
    if not (math.isfinite(op.scale) and op.scale > 0):
        return f"the scale is {op.scale}, expected a positive number"
    if op.mask == "key":
        mask = node.inputs[3]
        assert mask is not None
        if mask.tensor.dtype not in DTYPES:
            return f"the mask is {mask.tensor.dtype.value}, expected a float"
    for which, name in enumerate(("queries", "keys", "values", "results")):
        if not _boxable(op, which):
            return f"{name} lie where no tensor map describes them"
    return ""


def _view(op: FusedAttention, which: int) -> tuple[Dim, tuple[Dim, Dim, Dim], tuple[Dim, Dim, Dim]]:
    """Offset, sizes and strides (batch, heads, rows) of queries, keys, values or the result."""
    batch, heads, queries, keys = op.sizes
    of_keys = which in (1, 2)
    access = (op.query, op.key, op.value, op.out)[which]
    first, second = batch, ceildiv(heads, op.group) if of_keys else heads
    third = keys if of_keys else queries
    # Along an axis of one place any step will do.
    steps = (
        8 if first == 1 else access.batch,
        8 if second == 1 else access.head,
        8 if third == 1 else access.row,
    )
    return access.offset, (first, second, third), steps


def _boxable(op: FusedAttention, which: int) -> bool:
    """Whether strides and offset are positive multiples of 16 bytes."""
    offset, _, steps = _view(op, which)
    return all(modulo(item, 8) == 0 for item in (offset, *steps)) and 0 not in steps


def _form(node: Node, keys: int) -> HopperAttentionForm:
    op = node.op
    assert isinstance(op, FusedAttention)
    query, mask = node.inputs[0], node.inputs[3] if op.mask == "key" else None
    assert query is not None
    _, _, queries, fixed = op.sizes
    # A product of open size has room for a little more than it is measured with.
    columns = -(-keys // 8) * 8 if isinstance(fixed, int) else -(-keys // 64) * 64
    return HopperAttentionForm(
        query.tensor.dtype,
        op.head_size,
        op.scale,
        queries if isinstance(queries, int) else 0,
        fixed if isinstance(fixed, int) else 0,
        columns,
        group=op.group,
        mask=None if mask is None else mask.tensor.dtype,
        causal=op.causal,
        past=op.past if op.causal and isinstance(op.past, int) else 0,
        guarded=op.guarded,
    )


def _emit(
    builder: ProgramBuilder, node: Node, layer: int, kernel: DeviceKernel, covered: int
) -> None:
    """One launch; ``covered`` are queries of a block."""
    op = node.op
    assert isinstance(op, FusedAttention)
    batch, heads, queries, keys = op.sizes
    parameters: list[Parameter] = []
    for which, value in enumerate((*node.inputs[:3], node.outputs[0])):
        assert value is not None
        offset, sizes, steps = _view(op, which)
        whole, strides = (*sizes, op.head_size), (*steps, 1)
        slot = builder.slot(value)
        parameters.append(TensorMap(slot, offset, whole, strides, which, writes=which == 3))
    mask = node.inputs[3] if op.mask == "key" else None
    if mask is not None:
        parameters.append(Pointer(builder.slot(mask), op.mask_access.offset))
    parameters += [Scalar("i32", queries), Scalar("i32", keys)]
    if mask is not None:
        access = op.mask_access
        parameters += [Scalar("i64", access.batch), Scalar("i64", access.head)]
    builder.launch(kernel, (ceildiv(queries, covered), heads, batch), parameters, layer)


register(NvrtcHopperAttention())
