"""Hopper's attention against its meaning, under a model of the hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.hopper_attention import HopperAttentionTile, hopper_attention_kernel
from engine.cuda.kernel import Compiled
from engine.ir.sizes import Dim, symbol
from engine.ir.types import DType
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.tactics.nvrtc_hopper_attention import NvrtcHopperAttention, _form
from engine.tactics.tactic import Refusal
from engine.target import CudaTarget, describe
from tests import cuda_layer as layers
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
    tile: HopperAttentionTile,
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
    candidate = NvrtcHopperAttention()._candidate(form, tile, op.sizes[3])
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


@pytest.mark.parametrize("past", [0, 64, 7])
@pytest.mark.parametrize("rows", [128, 150])
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


@pytest.mark.parametrize("head", [32, 40, 80, 128])
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


def offered(op: FusedAttention, *, point: Mapping[str, int] | None = None, target: Any = TARGET,
            dtype: DType = HALF, mask: Any = None) -> Any:  # fmt: skip
    empty = [np.broadcast_to(np.zeros((), dtype.numpy), [1 for _ in dims]) for dims in op.operands]
    feeds = [layers.feed(array, dims) for array, dims in zip(empty, op.operands)]
    _, node = layers.layer(op, feeds)
    return NvrtcHopperAttention().offers(node, point or {}, target)


def test_what_is_not_served_says_why() -> None:
    rows = symbol("rows")
    odd = replace(packed(1, 2, 64, 64), key=HeadAccess(3, 64 * 384, 64, 384))
    full = {"mask": "full", "mask_shape": (1, 1, 64, 64), "mask_access": HeadAccess(0, 0, 0, 64)}
    cases = {
        "no CUDA device": offered(packed(1, 2, 64, 64), target=describe("cpu")),
        "capability 9.0": offered(packed(1, 2, 64, 64), target=describe("cuda:sm100")),
        "not all float16": offered(packed(1, 2, 64, 64, dtype=FULL)),
        "value per query and key": offered(packed(1, 2, 64, 64, **full)),
        "up to 256 keys, not for 257": offered(packed(1, 2, 257, 64)),
        "not for 300": offered(packed(1, 2, rows, 64), point={"rows": 300}),
        "9 queries and more": offered(packed(1, 2, 8, 64)),
        "multiple of 8 up to 128": offered(packed(1, 2, 64, 136)),
        "expected a positive number": offered(packed(1, 2, 64, 64, scale=-1.0)),
        "keys lie where no tensor map": offered(odd),
    }
    for words, found in cases.items():
        assert isinstance(found, Refusal) and words in found.reason, f"{words}: {found}"


@pytest.mark.parametrize("kind", ["none", "key", "causal", "wide"])
def test_the_offers_differ_fit_and_compile_without_spills(kind: str) -> None:
    rows = {"none": 197, "wide": 256}.get(kind, 128)
    details: dict[str, Any] = {"causal": kind == "causal"}
    if kind == "key":
        details |= {"mask": "key", "mask_shape": (32, 1, 1, rows)}
        details["mask_access"] = HeadAccess(0, rows, 0, 0)
    op = packed(32, 12, rows, 128 if kind == "wide" else 64, **details)
    found = offered(op)
    assert not isinstance(found, Refusal), found
    assert len({str(item.choice) for item in found}) == len(found) >= 3
    _, node = layers.layer(op, [layers.feed(np.zeros(dims, np.float16)) for dims in op.operands])
    form = _form(node, rows)
    tiles = [HopperAttentionTile(*(item.choice[name] for name in ("groups", "tiles", "resident")))
             for item in found]  # fmt: skip
    kernels = [hopper_attention_kernel(form, tile) for tile in tiles]
    for tile, kernel, result in zip(tiles, kernels, compile_kernels(kernels, (9, 0))):
        assert isinstance(result, Compiled), f"{tile}: {result}"
        assert result.waits and len(result.maps) == 4
        together = tile.resident
        assert together * (result.shared_nbytes + 1024) <= 228 << 10
        assert together * kernel.threads * -(-result.registers // 8) * 8 <= 65536
