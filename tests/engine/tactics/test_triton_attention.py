"""Attention by Triton against its meaning in the interpreter; what compiles for which GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from engine.cuda.kernel import Compiled
from engine.cuda.triton_compiler import compile_triton
from engine.ir.graph import Graph, Node
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim, symbol
from engine.ir.types import DType, TensorType
from engine.lower.builder import ProgramBuilder
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.ops.operator import Operator
from engine.plan.device import LaunchStep
from engine.plan.structure import Slot, Symbol
from engine.tactics.tactic import Candidate, Refusal
from engine.tactics.triton_attention import (
    TritonAttention,
    TritonCacheUpdate,
    attention_tiles,
    decode_tiles,
    emit_attention,
)
from engine.target import CudaTarget, describe
from engine.templates.attention import AttentionForm, AttentionTile
from engine.templates.attention_decode import DecodeTile
from tests.triton_shim import run_layer, run_step

#: Its kernels do not wait for others: the interpreter knows no other kernels.
AMPERE = describe("cuda:sm80")
assert isinstance(AMPERE, CudaTarget)
NONE = HeadAccess(0, 0, 0, 0)


def packed(
    batch: Dim,
    heads: int,
    rows: Dim,
    head: int,
    *,
    dtype: DType = DType.FLOAT16,
    group: int = 1,
    **details: Any,
) -> FusedAttention:
    """Attention over [batch, rows, (heads + 2 heads / group) head], heads merged as written."""
    shared = heads // group
    width = (heads + 2 * shared) * head
    parts = [
        HeadAccess(first * head, rows * width, head, width)
        for first in (0, heads, heads + shared)
    ]  # fmt: skip
    shapes: list[tuple[Dim, ...]] = [(batch, rows, width)] * 3
    shapes += [details.pop("mask_shape")] if "mask_shape" in details else []
    shapes += [details.pop("position_shape")] if "position_shape" in details else []
    return FusedAttention(
        head,
        head**-0.5,
        (batch, heads, rows, rows),
        *parts,
        HeadAccess(0, rows * heads * head, head, heads * head),
        (batch, rows, heads * head),
        tuple(shapes),
        group=group,
        dtype=dtype,
        **details,
    )


def decoding(
    batch: Dim, heads: int, queries: int, keys: int, head: int, group: int = 1, **details: Any
) -> FusedAttention:
    """Few queries [batch, queries, heads, head] over caches [batch, heads / group, keys, head]."""
    shared = heads // group
    cache = (batch, shared, keys, head)
    access = HeadAccess(0, shared * keys * head, keys * head, head)
    rows = HeadAccess(0, queries * heads * head, head, heads * head)
    shapes = [(batch, queries, heads, head), cache, cache, *details.pop("shapes", [])]
    return FusedAttention(
        head,
        head**-0.5,
        (batch, heads, queries, keys),
        rows,
        access,
        access,
        rows,
        (batch, queries, heads, head),
        tuple(shapes),
        group=group,
        dtype=DType.FLOAT16,
        **details,
    )


def random(*shape: int, seed: int = 0, dtype: Any = np.float16) -> Any:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def layer(op: Operator, shapes: Sequence[tuple[Dim, ...]], feeds: Sequence[Any]) -> Graph:
    """A graph of one node; inputs that are the same array are one input."""
    graph = Graph("layer")
    values: dict[int, Any] = {}
    for shape, array in zip(shapes, feeds, strict=True):
        if id(array) not in values:
            kind = TensorType(DType.of(array.dtype), tuple(shape))
            values[id(array)] = graph.value(f"x{len(values)}", kind)
            graph.inputs.append(values[id(array)])
    count = 3 if isinstance(op, CachedAttention) else 1
    outputs = [graph.value(f"y{i}", TensorType(DType.FLOAT32, None)) for i in range(count)]
    node = graph.append(Node(op, [values[id(array)] for array in feeds], outputs, name="layer"))
    infer_node(graph, node)
    graph.outputs, graph.output_names = outputs, [value.name for value in outputs]
    return graph


def with_tile(tile: AttentionTile | DecodeTile, target: CudaTarget = AMPERE) -> Candidate:
    return Candidate(
        "triton.attention",
        tile.to_json(),
        lambda builder, node, index: emit_attention(builder, node, index, tile, target),
    )


def close(found: Any, wanted: Any, *, exact: bool = False) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    bound = 2e-5 if exact else 3e-3
    one, other = found.astype(np.float32), wanted.astype(np.float32)
    np.testing.assert_allclose(one, other, rtol=bound, atol=bound)


def check(
    op: FusedAttention,
    feeds: Sequence[Any],
    tile: AttentionTile | DecodeTile,
    known: Sequence[Symbol] = (),
    sizes: dict[str, int] | None = None,
) -> Any:
    graph = layer(op, op.operands, feeds)
    names = {id(array): array for array in feeds}
    given = {f"x{i}": array for i, array in enumerate(names.values())}
    (found,) = run_layer(graph, with_tile(tile), given, known, sizes)
    with np.errstate(invalid="ignore"):
        close(found, op.meaning(*feeds), exact=feeds[0].dtype == np.float32)
    return found


SINGLE = AttentionTile(16, 64, 4, 1, single=True)
STEPS = AttentionTile(16, 32, 4, 2)
TALL = AttentionTile(64, 32, 4, 2)


@pytest.mark.parametrize("tile", [SINGLE, STEPS, TALL], ids=["single", "steps", "tall"])
@pytest.mark.parametrize("kind", ["none", "causal", "past", "key", "full", "both"])
def test_masks_and_tails(tile: AttentionTile, kind: str) -> None:
    batch, heads, rows, head = 2, 2, 45, 16
    x = random(batch, rows, 3 * heads * head)
    hidden = np.random.default_rng(3).random((batch, 1, rows, rows)) < 0.3
    hidden[..., 0] = False
    details: dict[str, Any] = {"causal": kind in ("causal", "past", "both")}
    feeds = [x, x, x]
    if kind == "past":
        details["past"] = 7
    if kind in ("key", "both"):
        details |= {"mask": "key", "mask_shape": (batch, 1, 1, rows)}
        details["mask_access"] = HeadAccess(0, rows, 0, 0)
        mask = np.where(hidden[:, :, :1], np.float16(-np.inf), random(batch, 1, 1, rows, seed=4))
        feeds.append(mask.astype(np.float16))
    if kind == "full":
        details |= {"mask": "full", "mask_shape": (batch, 1, rows, rows)}
        details["mask_access"] = HeadAccess(0, rows * rows, 0, rows)
        feeds.append(np.where(hidden, np.float32(-65504), np.float32(0)))
    check(packed(batch, heads, rows, head, **details), feeds, tile)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("head", [32, 80])
def test_types_heads_and_groups(dtype: DType, head: int) -> None:
    x = random(1, 33, 8 * head, dtype=dtype.numpy)
    check(packed(1, 4, 33, head, group=2, dtype=dtype), [x, x, x], STEPS)


def test_the_result_may_be_wider_than_what_is_read() -> None:
    x = random(1, 20, 3 * 32)
    found = check(packed(1, 2, 20, 16, dtype=DType.FLOAT32), [x, x, x], SINGLE)
    assert found.dtype == np.float32


def test_open_sizes_are_passed_when_launched() -> None:
    batch, rows = symbol("batch"), symbol("rows")
    op = packed(batch, 2, rows, 16, causal=True)
    known = [
        Symbol("batch", 1, (2,), 4, ("input", "x0", 0)),
        Symbol("rows", 1, (37,), 64, ("input", "x0", 1)),
    ]
    x = random(2, 37, 96)
    check(op, [x, x, x], STEPS, known, {"batch": 2, "rows": 37})
    check(op, [x, x, x], SINGLE, known, {"batch": 2, "rows": 37})


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("tile", [SINGLE, STEPS, DecodeTile(32, 2, 4)])
def test_a_query_that_sees_no_key(tile: AttentionTile | DecodeTile, guarded: bool) -> None:
    x = random(2, 40, 96)
    mask = np.zeros((2, 40), np.float16)
    mask[1] = -np.inf
    details = {"mask": "key", "mask_access": HeadAccess(0, 40, 0, 0), "mask_shape": (2, 40)}
    found = check(packed(2, 2, 40, 16, guarded=guarded, **details), [x, x, x, mask], tile)
    assert np.isfinite(found[0]).all()
    assert (found[1] == 0).all() if guarded else np.isnan(found[1]).all()


DECODES = [
    DecodeTile(64, 1, 4),
    DecodeTile(32, 4, 4),
    DecodeTile(64, 2, 4, eager=True),
    DecodeTile(32, 1, 4, eager=True, stages=3),
    AttentionTile(16, 64, 4, 1),
]


@pytest.mark.parametrize("tile", DECODES, ids=lambda tile: str(tile.to_json()))
@pytest.mark.parametrize("kind", ["plain", "one", "batch", "causal", "masked"])
def test_few_queries_over_many_keys(tile: AttentionTile | DecodeTile, kind: str) -> None:
    batch, heads, queries, keys, head = 2, 2, 2, 150, 16
    q = random(batch, queries, heads, head)
    k, v = (random(batch, heads // 2, keys, head, seed=i) for i in (1, 2))
    feeds: list[Any] = [q, k, v]
    details: dict[str, Any] = {}
    if kind == "one":
        details = {"position": "one", "past": 1, "shapes": [(1,)]}
        feeds.append(np.array([40]))
    elif kind in ("batch", "causal"):
        details = {"position": "batch", "causal": kind == "causal", "shapes": [(batch,)]}
        feeds.append(np.array([149, 3], np.int32))
    elif kind == "masked":
        details = {"mask": "full", "mask_access": HeadAccess(0, 0, 0, keys)}
        details["shapes"] = [(queries, keys)]
        feeds.append(random(queries, keys, seed=9))
    check(decoding(batch, heads, queries, keys, head, group=2, **details), feeds, tile)


def cached(batch: int, heads: int, keys: int, head: int, places: str, group: int = 1) -> Any:
    """A decoding step whose queries and new rows lie in one tensor, and its feeds."""
    shared = heads // group
    width = (heads + 2 * shared) * head
    count = batch if places == "batch" else 1
    attention = decoding(
        batch, heads, 1, keys, head, group, position=places, guarded=True, shapes=[(count,)]
    )
    attention = replace(
        attention,
        query=HeadAccess(0, width, head, width),
        operands=((batch, width), *attention.operands[1:]),
    )
    cache, place = attention.operands[1], attention.operands[3]
    updates = [
        CacheUpdate(
            head,
            (batch, shared, 1),
            keys,
            attention.key,
            HeadAccess(first * head, width, head, 0),
            places,
            (cache, (batch, width), place),
        )
        for first in (heads, heads + shared)
    ]
    x = random(batch, width)
    caches = [random(batch, shared, keys, head, seed=i) for i in (1, 2)]
    at = np.array([5, keys - 1][:count])
    return CachedAttention(attention, *updates), [x, *caches, x, x, at, at]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("tile", DECODES[:4], ids=lambda tile: str(tile.to_json()))
@pytest.mark.parametrize(("places", "group"), [("one", 1), ("batch", 1), ("batch", 2)])
def test_a_decoding_step_updates_its_caches(
    tile: DecodeTile, places: str, group: int, in_place: bool
) -> None:
    op, feeds = cached(2, 4, 70, 16, places, group)
    wanted = op.meaning(*feeds)
    if in_place:  # what lies beyond the position may be anything
        for sample, at in enumerate(np.broadcast_to(feeds[5], 2)):
            for place in (1, 2):
                feeds[place][sample, :, at:] = np.nan
                wanted[place][sample, :, at + 1 :] = np.nan
    shapes = [op.attention.operands[i] for i in (0, 1, 2, 0, 0, 3, 3)]
    graph = layer(op, shapes, feeds)
    builder = ProgramBuilder(graph)
    node = graph.nodes[0]
    memory: dict[int, Any] = {}
    for value, array in zip(graph.inputs, [feeds[0], feeds[1], feeds[2], feeds[5]]):
        slot = builder.add_slot(Slot(value.type, "input", value.name))
        builder.set_slot(value, slot)
        memory[slot] = array.copy()
    for value, source in zip(node.outputs[1:], node.inputs[1:3]):
        alias = builder.slot(source) if in_place and source is not None else None
        builder.set_slot(value, builder.add_slot(Slot(value.type, "output", value.name, alias)))
    with_tile(tile).emit(builder, node, 0)
    for index, slot in enumerate(builder.slots):
        if index not in memory:
            assert isinstance(slot.type, TensorType)
            shape = [int(dim) for dim in slot.type.dims if isinstance(dim, int)]
            fill = 0 if slot.place == "zeros" else np.nan
            memory[index] = np.full(shape, fill, slot.type.dtype.numpy)
        if slot.alias is not None:
            memory[index] = memory[slot.alias]
    assert len(builder.steps) == (1 if in_place else 3)
    for step in builder.steps:
        assert isinstance(step, LaunchStep)
        run_step(step, builder.device_kernels[step.function], memory, {})
    found = [memory[builder.slot(value)] for value in node.outputs]
    close(found[0], wanted[0])
    for one, other in zip(found[1:], wanted[1:]):
        np.testing.assert_array_equal(one, other)
    assert not any(memory[i].any() for i, s in enumerate(builder.slots) if s.place == "zeros")


def test_new_rows_are_written_to_a_cache() -> None:
    rows = HeadAccess(32, 96, 16, 192)
    place = np.array([4, -3])
    op = CacheUpdate(
        16, (2, 2, 2), 20, HeadAccess(0, 640, 16, 32), rows, "batch",
        ((2, 20, 2, 16), (2, 2, 96), (2,)),
    )  # fmt: skip
    feeds = [random(2, 20, 2, 16), random(2, 2, 96, seed=1), place]
    graph = layer(op, op.operands, feeds)
    offered = TritonCacheUpdate().offers(graph.nodes[0], {}, AMPERE)
    assert not isinstance(offered, Refusal)
    (found,) = run_layer(graph, offered[0], {f"x{i}": a for i, a in enumerate(feeds)})
    np.testing.assert_array_equal(found, op.meaning(*feeds))


HALF = AttentionForm(DType.FLOAT16, DType.FLOAT16, 64, 0.125)


@pytest.mark.parametrize(("name", "waits"), [("sm80", False), ("sm90", True), ("sm100", True)])
def test_the_first_candidates_compile_without_spilling(name: str, waits: bool) -> None:
    target = describe(f"cuda:{name}")
    assert isinstance(target, CudaTarget)
    x = np.zeros((1, 128, 2304), np.float16)
    op = packed(1, 12, 128, 64, causal=True)
    step, feeds = cached(1, 12, 512, 64, "one")
    shapes = [step.attention.operands[i] for i in (0, 1, 2, 0, 0, 3, 3)]
    for graph in (layer(op, op.operands, [x, x, x]), layer(step, shapes, feeds)):
        node = graph.nodes[0]
        offered = TritonAttention().offers(node, {}, target)
        assert not isinstance(offered, Refusal)
        for candidate in offered[:2]:
            builder = ProgramBuilder(graph)
            candidate.emit(builder, node, 0)
            for kernel in builder.device_kernels:
                assert kernel.waits is waits
                result = compile_triton(kernel, target.capability)
                assert isinstance(result, Compiled), result
                assert result.spilled_nbytes == 0
                assert result.shared_nbytes <= target.shared_nbytes


def test_few_rows_get_many_blocks_and_many_rows_large_ones() -> None:
    target = describe("cuda:sm90")
    assert isinstance(target, CudaTarget)
    small = attention_tiles(HALF, 12, 128, 128, target)[0]
    large = attention_tiles(HALF, 12 * 128, 128, 128, target)[0]
    assert small.queries <= 32 and small.single
    assert large.queries >= 64
    one, many = (decode_tiles(HALF, rows, 512, target)[0] for rows in (12, 12 * 128))
    assert one.splits >= 4 and many.splits <= 2
    # A few blocks on each multiprocessor must keep enough on its way.
    middle = decode_tiles(HALF, 12 * 8, 512, target)
    assert all(tile.splits > 1 or tile.stages > 1 for tile in middle)
    assert len({tile.splits for tile in middle}) >= 3


def test_refusals_say_why() -> None:
    x = np.zeros((1, 8, 96), np.float16)
    op = packed(1, 2, 8, 16)
    node = layer(op, op.operands, [x, x, x]).nodes[0]
    refused = TritonAttention().offers(node, {}, describe("cpu"))
    assert isinstance(refused, Refusal) and "NVIDIA" in refused.reason
    negative = replace(op, causal=True, past=-1)
    node = layer(negative, op.operands, [x, x, x]).nodes[0]
    refused = TritonAttention().offers(node, {}, AMPERE)
    assert isinstance(refused, Refusal) and "no key" in refused.reason
