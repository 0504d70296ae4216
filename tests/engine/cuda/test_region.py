"""Region kernels in CUDA C: every form against the meaning, under the host shim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cuda.region import Generated, RegionChoice, generate
from engine.cuda.region_choices import choices
from engine.ir.sizes import Dim, evaluate, symbol
from engine.ir.types import Array, DType
from engine.kernels.region_lowering import simplified
from engine.ops.expression import Expression, call, cast, constant, index, load
from engine.ops.region import Bound, Gather, Load, Region, Store
from engine.target import CudaTarget, describe
from tests.cuda_shim import run_kernel
from tests.engine.kernels.test_region import contiguous, regions

F, H, B = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
H200 = describe("cuda:sm90")
assert isinstance(H200, CudaTarget)


def launch(
    made: Generated, arrays: Sequence[Array], outputs: Sequence[Array], point: Mapping[str, int]
) -> None:
    grid = [evaluate(size, point) for size in made.grid]
    scalars = [
        (item.kind, evaluate(item.value, point))
        for item in made.scalars
        if not isinstance(item.value, float)
    ]
    run_kernel(made.kernel, grid, [*(arrays[i] for i in made.inputs), *outputs, *scalars])


def agree(
    region: Region,
    arrays: Sequence[Array],
    tolerance: float,
    wanted: Sequence[RegionChoice] | None = None,
    point: Mapping[str, int] | None = None,
    **options: Any,
) -> None:
    """The kernels of some choices (of those offered, if none are given) and the meaning agree."""
    bound = region.bind(dict(point or {}))
    meaning = bound.meaning(*arrays)
    expected = meaning if isinstance(meaning, tuple) else (meaning,)
    short = simplified(region)
    assert isinstance(H200, CudaTarget)
    for choice in wanted or choices(short, point or {}, H200):
        made = generate(short, choice, **options)
        outputs = [np.zeros_like(item) for item in expected]
        launch(made, arrays, outputs, point or {})
        for found, item in zip(outputs, expected, strict=True):
            wide = np.float64 if DType.of(found.dtype).is_float else found.dtype
            np.testing.assert_allclose(
                found.astype(wide), item.astype(wide), rtol=tolerance, atol=tolerance,
                err_msg=str(choice),
            )  # fmt: skip


def random_array(seed: int, dtype: DType, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype.numpy)


@settings(max_examples=12, deadline=None)
@given(made=regions(), pick=st.integers(0, 3))
def test_random_regions(made: tuple[Region, list[Array]], pick: int) -> None:
    region, arrays = made
    assert isinstance(H200, CudaTarget)
    offered = choices(simplified(region), {}, H200)
    for choice in offered:
        generate(simplified(region), choice)  # no choice that is offered is refused
    agree(region, arrays, 2e-3, [offered[pick % len(offered)]])


def layer_norm(rows: Dim, width: int, dtype: DType) -> Region:
    """Residual and layer normalisation, widened to float32, with the sum as a second output."""
    total = call("add", cast(load(0, dtype), F), cast(load(1, dtype), F))
    share = constant(width, F)
    centred = call("subtract", total, call("divide", call("row_sum", total), share))
    square = call("divide", call("row_sum", call("multiply", centred, centred)), share)
    root = call("sqrt", call("add", square, constant(1e-5, F)))
    value = call("multiply", call("divide", centred, root), cast(load(2, dtype), F))
    value = call("add", value, cast(load(3, dtype), F))
    near, flat = (width, 1), (0, 1)
    reads = tuple(Load(i, dtype, 0, near if i < 2 else flat) for i in range(4))
    stores = tuple(
        Store(cast(item, dtype), place, (rows, width), 0, near)
        for place, item in enumerate((value, total))
    )
    return Region((rows, width), reads, stores, ((rows, width),) * 2 + ((width,),) * 2)


@pytest.mark.parametrize(
    ("rows", "width", "dtype"), [(5, 96, H), (3, 768, H), (2, 197, B), (2, 1000, F), (1, 1, F)]
)
def test_layer_normalisation(rows: int, width: int, dtype: DType) -> None:
    arrays = [random_array(i, dtype, rows, width) for i in (0, 1)]
    arrays += [random_array(i, dtype, width) for i in (2, 3)]
    tolerance = {H: 4e-3, B: 3e-2, F: 2e-5}[dtype]
    agree(layer_norm(rows, width, dtype), arrays, tolerance, constants=frozenset({2, 3}))


def test_rows_of_a_profile_run_by_one_kernel() -> None:
    n = symbol("n")
    region = layer_norm(n, 64, H)
    choice = RegionChoice("rows", 128, 8, 1, 8)
    made = generate(simplified(region), choice, ranges={"n": (1, 4096)})
    assert [item.kind for item in made.scalars] == ["i32"]
    for rows in (1, 16, 33):
        arrays = [random_array(i, H, rows, 64) for i in (0, 1)] + [
            random_array(i, H, 64) for i in (2, 3)
        ]
        agree(region, arrays, 4e-3, [choice], {"n": rows}, ranges={"n": (1, 4096)})


@pytest.mark.parametrize(
    "choice",
    [
        RegionChoice("rows", 32, 8, 1, 16, 2),
        RegionChoice("rows", 64, 4, 1, 32, 4),
        RegionChoice("rows", 64, 2, 1, 64, 2),
    ],
)
def test_rows_taken_at_once(choice: RegionChoice) -> None:
    n = symbol("n")
    region = layer_norm(n, 128, H)
    weights = [random_array(i, H, 128) for i in (2, 3)]
    for rows in (1, 7, 20):  # the last block lacks some
        arrays = [random_array(i, H, rows, 128) for i in (0, 1)]
        options = {"constants": frozenset({2, 3}), "ranges": {"n": (1, 4096)}}
        agree(region, [*arrays, *weights], 4e-3, [choice], {"n": rows}, **options)


def test_gathered_rows_taken_at_once() -> None:
    rows = Load(1, H, 0, (0, 1), gather=Gather(0, 64, 9))
    total = cast(load(1, H), F)
    value = call("subtract", total, call("row_max", total))
    shape = (6, 64)
    store = Store(cast(value, H), 0, shape, 0, (64, 1))
    largest = Store(cast(call("row_max", total), H), 1, (6,), 0, (1, 0))
    region = Region(shape, (Load(0, DType.INT64, 0, (1, 0)), rows), (store, largest))
    arrays = [np.array([3, 0, 8, -1, 5, 3]), random_array(1, H, 9, 64)]
    agree(region, arrays, 0, [RegionChoice("rows", 32, 8, 1, 8, 4)])


def test_many_rows_are_taken_several_at_once_by_blocks_of_several() -> None:
    assert isinstance(H200, CudaTarget)
    found = choices(simplified(layer_norm(16384, 384, H)), {}, H200)
    assert any(choice.rows > 1 for choice in found)
    # Blocks begin one after another: with one row each that alone would take 21 us.
    assert all(choice.rows * choice.threads >= 2 * choice.lanes for choice in found)
    few = choices(simplified(layer_norm(128, 384, H)), {}, H200)
    assert all(choice.rows == 1 and "rows" not in choice.to_json() for choice in few)


def softmax(scores: Expression) -> Expression:
    e = call("exp", call("subtract", scores, call("row_max", scores)))
    return call("divide", e, call("row_sum", e))


@pytest.mark.parametrize(
    "choice",
    [
        RegionChoice("rows", 64, 1, 7, 8),
        RegionChoice("rows", 96, 1, 1, 96),
        RegionChoice("rows", 512, 1, 1, 512),
        RegionChoice("rows", 32, 1, 7, 8, 2),
        RegionChoice("rows", 64, 1, 1, 64, 4),
        RegionChoice("passes", 64, 1, 3, 64),
        RegionChoice("passes", 32, 1, 2, 4),
    ],
)
def test_softmax_with_a_mask(choice: RegionChoice) -> None:
    shape = (2, 3, 5, 50)
    scores = call("multiply", cast(load(0, H), F), constant(0.125, F))
    scores = call("add", scores, load(1, F))
    mask = Load(1, F, 0, (50, 0, 0, 1))
    store = Store(cast(softmax(scores), H), 0, shape, 0, contiguous(shape))
    region = Region(shape, (Load(0, H, 0, contiguous(shape)), mask), (store,))
    agree(region, [random_array(1, H, *shape), random_array(2, F, 2, 1, 1, 50)], 1e-3, [choice])


def test_rows_of_a_symbolic_length() -> None:
    s = symbol("s")
    store = Store(softmax(load(0, F)), 0, (4, s), 0, (s, 1))
    region = Region((4, s), (Load(0, F, 0, (s, 1)),), (store,), ((4, s),))
    ranges = {"s": (1.0, 100.0)}
    for length in (1, 37, 100):
        x = random_array(length, F, 4, length)
        for choice in (RegionChoice("rows", 64, 1, 1, 32), RegionChoice("passes", 64, 1, 1, 64)):
            agree(region, [x], 1e-5, [choice], {"s": length}, ranges=ranges)


@pytest.mark.parametrize("dtype", [F, H, DType.FLOAT64, DType.INT64, DType.INT8, DType.UINT32])
def test_every_reduction(dtype: DType) -> None:
    rng = np.random.default_rng(3)
    x = rng.random((4, 130)) * 0.02 + 0.99 if dtype.is_float else rng.integers(-9, 200, (4, 130))
    with np.errstate(all="ignore"):
        x = x.astype(dtype.numpy)
    names = ("row_sum", "row_prod", "row_max", "row_min")
    stores = [
        Store(call(name, load(0, dtype)), place, (4,), 0, (1, 0))
        for place, name in enumerate(names)
    ]
    region = Region((4, 130), (Load(0, dtype, 0, (130, 1)),), tuple(stores))
    agree(region, [x], 5e-3 if dtype is H else 1e-4, [RegionChoice("rows", 64, 2, 9, 8)])
    agree(region, [x], 5e-3 if dtype is H else 1e-4, [RegionChoice("rows", 384, 1, 1, 384)])


@pytest.mark.parametrize("name", ["row_max", "row_min", "row_sum"])
def test_one_nan_makes_its_row_nan(name: str) -> None:
    x = random_array(1, F, 3, 150)
    x[1, 149], x[2, 7] = np.nan, np.inf
    store = Store(call(name, load(0, F)), 0, (3,), 0, (1, 0))
    agree(Region((3, 150), (Load(0, F, 0, (150, 1)),), (store,)), [x], 1e-4)


def test_columns() -> None:
    shape, length = (2, 48), 37
    value = call("multiply", call("row_sum", cast(load(0, H), F)), constant(1 / length, F))
    store = Store(cast(call("add", value, load(1, F)), H), 0, shape, 0, (48, 1, 0))
    reads = (Load(0, H, 0, (48 * length, 1, 48)), Load(1, F, 0, (0, 1, 0)))
    region = Region((*shape, length), reads, (store,))
    arrays = [random_array(1, H, 2, length, 48), random_array(2, F, 48)]
    assert isinstance(H200, CudaTarget)
    assert {item.form for item in choices(region, {}, H200)} == {"columns"}
    chosen = [RegionChoice("columns", 64, 8, 4, 16), RegionChoice("columns", 32, 1, 1, 1)]
    agree(region, arrays, 2e-3, chosen)


def test_embedding_rows_are_gathered_and_bad_indices_stay_inside() -> None:
    indices = np.array([3, -1, 9, 12, -50], np.int64)
    reads = (
        Load(0, DType.INT64, 0, (1, 0)),
        Load(1, H, 0, (0, 1), Gather(0, 8, 10)),
        Load(2, H, 0, (8, 1)),
    )
    value = cast(call("add", cast(load(1, H), F), cast(load(2, H), F)), H)
    region = Region((5, 8), reads, (Store(value, 0, (5, 8), 0, (8, 1)),))
    arrays = [indices, random_array(1, H, 10, 8), random_array(2, H, 5, 8)]
    agree(region, arrays, 0)
    agree(region, arrays, 0, [RegionChoice("flat", 32, 8, 2)], constants=frozenset({1}))
    along = Region(
        (3, 16),
        (Load(0, DType.INT64, 0, (0, 1)), Load(1, F, 0, (20, 0), Gather(0, 1, 20))),
        (Store(load(1, F), 0, (3, 16), 0, (16, 1)),),
    )
    arrays = [np.arange(-8, 8), random_array(1, F, 3, 20)]
    agree(along, arrays, 0, [RegionChoice("flat", 32, 4, 1), RegionChoice("flat", 32, 1, 2)])


def test_padding_and_slices() -> None:
    bounds = (Bound(0, 1, 5), Bound(1, 2, 5))
    read = Load(0, H, 0, (3 * 24, 24, 1), None, bounds, -1.5)
    region = Region((6, 7, 24), (read,), (Store(load(0, H), 0, (6, 7, 24), 0, (168, 24, 1)),))
    agree(region, [random_array(1, H, 4, 3, 24)], 0)
    for low, high, width in ((3, 8, 1), (4, 8, 4)):
        inner = Load(0, F, 0, (high - low, 1), None, (Bound(1, low, high),), 7.0)
        region = Region((4, 12), (inner,), (Store(load(0, F), 0, (4, 12), 0, (12, 1)),))
        agree(region, [random_array(2, F, 4, high - low)], 0, [RegionChoice("flat", 32, width, 2)])
    for offset in (2, 4):
        store = Store(load(0, F), 0, (4, 16), offset, (16, 1))
        part = Region((4, 8), (Load(0, F, 0, (8, 1)),), (store,))
        agree(part, [random_array(3, F, 4, 8)], 0)


@pytest.mark.parametrize("size", [1, 7, 8, 2051])
def test_a_last_vector_may_be_incomplete(size: int) -> None:
    n = symbol("n")
    value = call("max", cast(load(0, H), F), cast(load(1, DType.UINT8), F))
    reads = (Load(0, H, 0, (1,)), Load(1, DType.UINT8, 0, (1,)))
    stores = (
        Store(cast(value, H), 0, (n,), 0, (1,)),
        Store(call("greater", value, load(2, F)), 1, (n,), 0, (1,)),
    )
    region = Region((n,), (*reads, Load(2, F, 0, (0,))), stores, ((n,), (n,), ()))
    arrays = [random_array(1, H, size), np.arange(size).astype(np.uint8), np.float32([1.5])]
    arrays[2] = arrays[2].reshape(())
    for choice in (RegionChoice("flat", 64, 8, 1), RegionChoice("flat", 128, 16, 2)):
        agree(region, arrays, 0, [choice], {"n": size})


def test_indices_and_stores_that_turn_axes() -> None:
    shape = (3, 4, 8)
    value = call("add", cast(index(1), F), call("multiply", cast(index(2), F), load(0, F)))
    stores = (
        Store(value, 0, (8, 3, 4), 0, (4, 1, 12)),
        Store(cast(index(0), DType.INT32), 1, (3, 4), 0, (4, 1, 0)),
    )
    region = Region(shape, (Load(0, F, 0, (0, 8, 1)),), stores)
    for choice in (RegionChoice("flat", 32, 4, 2), RegionChoice("flat", 32, 1, 1)):
        made = generate(region, choice)
        x = random_array(1, F, 4, 8)
        expected = region.meaning(x)
        outputs = [np.zeros_like(item) for item in expected]
        launch(made, [x], outputs, {})
        for found, item in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(found, item)


def test_large_tensors_are_indexed_with_64_bits() -> None:
    n = symbol("n")
    region = Region((n, 8), (Load(0, F, 0, (8, 1)),), (Store(load(0, F), 0, (n, 8), 0, (8, 1)),))
    choice = RegionChoice("flat", 32, 4, 1)
    short, long = (
        generate(simplified(region), choice, ranges={"n": (1, most)}) for most in (1e6, 1e9)
    )
    assert {item.kind for item in short.scalars} == {"i32"}
    assert [item.kind for item in long.scalars] == ["i64"]
    assert [item.kind for item in generate(simplified(region), choice).scalars] == ["i64"]
    agree(region, [random_array(1, F, 5, 8)], 0, [choice], {"n": 5}, ranges={"n": (1, 1e9)})


def test_choices_that_do_not_fit_are_refused() -> None:
    region = layer_norm(4, 30, H)
    for choice in (
        RegionChoice("flat", 32, 1),
        RegionChoice("rows", 32, 8, 1, 32),
        RegionChoice("rows", 64, 1, 1, 33),
        RegionChoice("columns", 32, 1),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            generate(region, choice)
    strange = Region(
        (4,),
        (Load(0, DType.FLOAT8E4M3FN, 0, (1,)),),
        (Store(load(0, DType.FLOAT8E4M3FN), 0, (4,), 0, (1,)),),
    )
    with pytest.raises(ValueError, match="float8e4m3fn"):
        generate(strange, RegionChoice("flat", 32, 1))
