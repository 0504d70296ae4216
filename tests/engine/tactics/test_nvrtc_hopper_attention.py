"""Hopper's attention against its meaning, under a model of the hardware."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_attention import HopperAttentionTile
from engine.cuda.hopper_attention_loop import HopperLoopTile
from engine.cuda.kernel import Compiled
from engine.ir.sizes import Dim, symbol
from engine.ir.types import DType
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.tactics.nvrtc_hopper_attention import NvrtcHopperAttention, _form
from engine.tactics.tactic import Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
from tests.engine.cuda.test_hopper_gemm import listing
from tests.hopper_shim import run_layer

FOUND = describe("cuda:sm90")
assert isinstance(FOUND, CudaTarget)
TARGET = FOUND
HALF, BRAIN, FULL = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


def random(*shape: int, seed: int = 0, dtype: DType = HALF) -> np.ndarray:
    found = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return found.astype(np.float32).astype(dtype.numpy)


def packed(
    batch: Dim,
    heads: int,
    rows: Dim,
    head: int,
    *,
    dtype: DType = HALF,
    group: int = 1,
    scale: float | None = None,
    **details: Any,
) -> FusedAttention:
    """Attention over [batch, rows, (heads + 2 heads / group) head], heads merged as written."""
    shared = heads // group
    width = (heads + 2 * shared) * head
    places = (0, heads, heads + shared)
    parts = [HeadAccess(first * head, rows * width, head, width) for first in places]
    shapes: list[tuple[Dim, ...]] = [(batch, rows, width)] * 3
    shapes += [details.pop("mask_shape")] if "mask_shape" in details else []
    return FusedAttention(
        head,
        scale or head**-0.5,
        (batch, heads, rows, rows),
        *parts,
        HeadAccess(0, rows * heads * head, head, heads * head),
        (batch, rows, heads * head),
        tuple(shapes),
        group=group,
        dtype=dtype,
        **details,
    )


def check(
    op: FusedAttention,
    feeds: Sequence[np.ndarray],
    tile: HopperAttentionTile | HopperLoopTile,
    *,
    dims: Sequence[Sequence[Dim]] | None = None,
    point: Mapping[str, int] | None = None,
    keys: int = 0,
) -> np.ndarray:
    """The kernel's result, which is near the meaning; ``keys`` where they are a symbol."""
    given = [layers.feed(a, d) for a, d in zip(feeds, dims or [a.shape for a in feeds])]
    graph, node = layers.layer(op, given)
    fixed = op.sizes[3]
    form = _form(node, fixed if isinstance(fixed, int) else keys)
    tactic = NvrtcHopperAttention()
    if isinstance(tile, HopperLoopTile):
        form = replace(form, columns=tile.columns)
        candidate = tactic._loop_candidate(form, tile, op.sizes[3])
    else:
        candidate = tactic._candidate(form, tile, op.sizes[3])
    found = run_layer(graph, node, candidate, point or {})
    with np.errstate(invalid="ignore"):
        (expected,) = layers.meaning(node)
    tolerance = 2e-2 if op.dtype is BRAIN else 3e-3
    wide = expected.astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), wide, rtol=tolerance, atol=tolerance)
    return found


ONE, TURNS, PAIR = (
    HopperAttentionTile(1, 1, 1),
    HopperAttentionTile(1, 4, 1),
    HopperAttentionTile(2, 1, 1),
)


@pytest.mark.parametrize("tile", [TURNS, PAIR], ids=["turns", "pair"])
def test_more_queries_than_tiles_hold(tile: HopperAttentionTile) -> None:
    """ViT's 197 tokens: the last tile has five rows, the last keys fill no product."""
    x = random(1, 197, 2 * 3 * 64)
    check(packed(1, 2, 197, 64), [x, x, x], tile)


def test_the_last_rows_of_a_tile_fill_half_a_warp_and_more() -> None:
    for rows in (90, 21):
        x = random(2, rows, 3 * 64)
        check(packed(2, 1, rows, 64), [x, x, x], replace(TURNS, tiles=2))


@pytest.mark.parametrize(("rows", "past"), [(128, 0), (150, 64), (150, 7)])
def test_queries_see_no_later_keys(rows: int, past: int) -> None:
    x = random(1, rows, 3 * 64)
    check(packed(1, 1, rows, 64, causal=True, past=past), [x, x, x], TURNS)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_keys_are_hidden(causal: bool) -> None:
    """By a value per key: of each sample and head, some are infinite, some all but that."""
    batch, heads, rows = 2, 2, 77
    x = random(batch, rows, 3 * heads * 64)
    mask = random(batch, heads, 1, rows, seed=1)
    mask[0, :, :, 40:] = -65504
    mask[1, :, :, 5:30] = -np.inf
    details = {"mask": "key", "mask_shape": mask.shape, "causal": causal}
    access = HeadAccess(0, heads * rows, rows, 0)
    op = packed(batch, heads, rows, 64, mask_access=access, **details)
    check(op, [x, x, x, mask], PAIR)


@pytest.mark.parametrize("guarded", [False, True], ids=["nan", "zero"])
def test_queries_that_see_nothing(guarded: bool) -> None:
    x = random(2, 20, 3 * 64)
    mask = np.zeros((2, 1, 1, 20), np.float32)
    mask[0] = -np.inf
    mask[1] = np.finfo(np.float32).min
    details = {"mask": "key", "mask_shape": mask.shape, "guarded": guarded}
    op = packed(2, 1, 20, 64, mask_access=HeadAccess(0, 20, 0, 0), **details)
    found = check(op, [x, x, x, mask], ONE)
    assert (found[0] == 0).all() if guarded else np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("head", [40, 80, 128])
def test_heads_of_other_sizes_in_groups(head: int) -> None:
    x = random(1, 70, 4 * head, dtype=BRAIN if head == 40 else HALF)
    dtype = DType.of(x.dtype)
    check(packed(1, 2, 70, head, group=2, dtype=dtype), [x, x, x], replace(TURNS, tiles=2))


def test_scores_of_any_size_and_values_that_are_not_finite() -> None:
    """No power overflows, and what lies past the keys of a sample never counts."""
    x = random(2, 75, 3 * 64)
    x[:, :, :64] *= 40
    x[1] = np.nan
    found = check(packed(2, 1, 75, 64, scale=1.5), [x, x, x], PAIR)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_all_keys_there_can_be() -> None:
    q, k = random(1, 40, 2, 64), random(1, 2, 256, 64, seed=1)
    rows, cache = HeadAccess(0, 40 * 128, 64, 128), HeadAccess(0, 2 * 256 * 64, 256 * 64, 64)
    sizes, shapes = (1, 2, 40, 256), (q.shape, k.shape, k.shape)
    op = FusedAttention(64, 0.125, sizes, rows, cache, cache, rows, q.shape, shapes, dtype=HALF)
    check(op, [q, k, random(1, 2, 256, 64, seed=2)], ONE)


@pytest.mark.parametrize("rows", [61, 128, 9])
def test_open_sizes(rows: int) -> None:
    """One kernel for up to 128 tokens of any number of samples."""
    batch, length = symbol("batch"), symbol("rows")
    x = random(2, rows, 3 * 64)
    for causal in (False, True):
        op = packed(batch, 1, length, 64, causal=causal)
        dims = [(batch, length, 3 * 64)] * 3
        check(op, [x] * 3, TURNS, dims=dims, point={"batch": 2, "rows": rows}, keys=100)


LOOPS = [HopperLoopTile(2, 32, 2, 1), HopperLoopTile(1, 48, 3, 1), HopperLoopTile(3, 16, 4, 1)]


@pytest.mark.parametrize(
    ("tile", "past"),
    [(LOOPS[0], None), (LOOPS[0], 0), (LOOPS[1], 13), (LOOPS[2], None), (LOOPS[2], 0)],
    ids=str,
)
def test_blocks_of_keys(tile: HopperLoopTile, past: int | None) -> None:
    """The ring turns more than once, a warpgroup has no queries, the last block is not full."""
    x = random(1, 150, 3 * 64)
    causal = past is not None
    check(packed(1, 1, 150, 64, causal=causal, past=past or 0), [x, x, x], tile)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_hidden_blocks_of_keys(causal: bool) -> None:
    """The first blocks are hidden, or all but that; scores fall and rise from block to block."""
    batch, rows = 3, 90
    x = random(batch, rows, 3 * 64)
    x[2] *= 6
    mask = np.zeros((batch, 1, 1, rows), np.float32)
    mask[0, ..., :70] = -np.inf
    mask[1, ..., :40] = -500
    mask[1, ..., 40:60] = -np.inf
    details = {"mask": "key", "mask_shape": mask.shape, "causal": causal, "guarded": True}
    op = packed(batch, 1, rows, 64, mask_access=HeadAccess(0, rows, 0, 0), **details)
    check(op, [x, x, x, mask], replace(LOOPS[0], most_keys=96))


@pytest.mark.parametrize("head", [40, 128])
def test_blocks_of_keys_of_other_heads(head: int) -> None:
    x = random(1, 100, 4 * head, dtype=BRAIN if head == 40 else HALF)
    op = packed(1, 2, 100, head, group=2, dtype=DType.of(x.dtype))
    check(op, [x, x, x], LOOPS[0])


@pytest.mark.parametrize("rows", [70, 200])
def test_blocks_of_any_number_of_keys(rows: int) -> None:
    batch, length = symbol("batch"), symbol("rows")
    x = random(2, rows, 3 * 64)
    op = packed(batch, 1, length, 64, causal=rows == 200)
    dims = [(batch, length, 3 * 64)] * 3
    check(op, [x] * 3, LOOPS[0], dims=dims, point={"batch": 2, "rows": rows}, keys=100)


def operands(op: FusedAttention) -> list[layers.Feed]:
    """Inputs of an operator without their data."""
    dtypes = [op.dtype] * 3 + [HALF] * (len(op.operands) - 3)
    return [
        layers.Feed(tuple(dims), np.zeros((), dtype.numpy))
        for dims, dtype in zip(op.operands, dtypes)
    ]


def offered(
    op: FusedAttention, *, point: Mapping[str, int] | None = None, target: Any = TARGET
) -> Any:
    _, node = layers.layer(op, operands(op))
    return NvrtcHopperAttention().offers(node, point or {}, target)


def test_what_is_not_served_says_why() -> None:
    wide = {"mask": "key", "mask_shape": (1, 65536), "mask_access": HeadAccess(0, 0, 0, 0)}
    many = packed(1, 1, 65536, 64, **wide)
    odd = replace(packed(1, 2, 64, 64), key=HeadAccess(3, 64 * 384, 64, 384))
    full = {"mask": "full", "mask_shape": (1, 1, 64, 64), "mask_access": HeadAccess(0, 0, 0, 64)}
    cases = {
        "no CUDA device": offered(packed(1, 2, 64, 64), target=describe("cpu")),
        "capability 9.0": offered(packed(1, 2, 64, 64), target=describe("cuda:sm100")),
        "not all float16": offered(packed(1, 2, 64, 64, dtype=FULL)),
        "value per query and key": offered(packed(1, 2, 64, 64, **full)),
        "do not fit shared memory": offered(many),
        "9 queries and more": offered(packed(1, 2, 8, 64)),
        "multiple of 8 up to 128": offered(packed(1, 2, 64, 136)),
        "expected a positive number": offered(packed(1, 2, 64, 64, scale=-1.0)),
        "keys lie where no tensor map": offered(odd),
    }
    for words, found in cases.items():
        assert isinstance(found, Refusal) and words in found.reason, f"{words}: {found}"


@pytest.mark.parametrize("kind", ["none", "causal", "wide", "long", "open"])
def test_the_offers_differ_fit_and_compile_without_spills(kind: str) -> None:
    rows: Any = {"none": 197, "wide": 256, "long": 1000, "open": symbol("rows")}.get(kind, 128)
    point = {"rows": 200}
    details: dict[str, Any] = {"causal": kind in ("causal", "long")}
    if kind in ("key", "open"):
        details |= {"mask": "key", "mask_shape": (32, 1, 1, rows)}
        details["mask_access"] = HeadAccess(0, rows, 0, 0)
    op = packed(32, 12, rows, 128 if kind == "wide" else 64, **details)
    found = offered(op, point=point)
    assert not isinstance(found, Refusal), found
    assert len({str(item.choice) for item in found}) == len(found) >= 3
    assert all(bool(item.holds) == (kind == "open") for item in found)
    graph, node = layers.layer(op, operands(op))
    kernels = [layers.emitted(graph, node, item).device_kernels[0] for item in found]
    for item, kernel, result in zip(found, kernels, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{item.choice}: {result}"
        assert result.waits and len(result.maps) == 4
        together = item.choice["resident"]
        assert together * (result.shared_nbytes + 1024) <= 228 << 10
        assert together * kernel.threads * -(-result.registers // 8) * 8 <= 65536


@pytest.mark.parametrize("rows", [197, 1000])
def test_the_machine_code_is_asynchronous(rows: int, tmp_path: Path) -> None:
    """Products follow each other without a wait; sums of one are under way while others begin."""
    op = packed(32, 12, rows, 64)
    found = offered(op)
    graph, node = layers.layer(op, operands(op))
    kernel = layers.emitted(graph, node, found[0]).device_kernels[0]
    text = listing(kernel, tmp_path)
    products = re.findall(r"HGMMA\.(\w+)\.F32 R\d+, (R|gdesc)", text)
    scores = {197: {"64x96x16": 4, "64x104x16": 4}, 1000: {"64x64x16": 4}}[rows]
    for shape, count in scores.items():
        assert products.count((shape, "gdesc")) == count
    assert products.count(("64x64x16", "R")) == {197: 13, 1000: 4}[rows]
    assert len(re.findall(r"WARPGROUP\.DEPBAR", text)) == {197: 3, 1000: 2}[rows]
    assert text.count(".tnspB") == {197: 13, 1000: 4}[rows]
    assert not re.search(r"\b(LDL|STL)\b", text), "registers were spilled"
