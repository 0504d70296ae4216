"""Region kernels: random regions in C against NumPy, and the regions that networks are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ir.types import Array, DType
from engine.kernels.region import RegionKernel
from engine.kernels.region_lowering import kernel_of, simplified
from engine.kernels.runner import Step
from engine.ops.expression import Expression, call, cast, constant, index, load
from engine.ops.region import Bound, Gather, Load, Region, Store
from engine.runtime.compilation import Function
from engine.runtime.compilation import load as compiled

F = DType.FLOAT32
SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reduced(name: str, node: Expression) -> Expression:
    return call(name, node)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def agree(check: Any, region: Region, arrays: Sequence[Array], tolerance: float = 1e-4) -> None:
    """C, twin and the region's meaning give the same outputs."""
    kernel, sizes = kernel_of(region)
    kernel = RegionKernel.from_json(json.loads(json.dumps(kernel.to_json())))
    numbers = [int(str(size)) for size in sizes]
    outputs = [np.zeros(shape, d.numpy) for d, shape in region.outputs()]
    operands = [*arrays, *outputs]
    compiled = check.run(kernel, operands, numbers)
    twins = check.twin(kernel, operands, numbers)
    meaning = region.meaning(*arrays)
    meanings = meaning if isinstance(meaning, tuple) else (meaning,)
    for found, twin, expected in zip(compiled, twins, meanings, strict=True):
        wide = np.float64 if DType.of(found.dtype).is_float else found.dtype
        np.testing.assert_allclose(
            found.astype(wide), twin.astype(wide), rtol=tolerance, atol=tolerance
        )
        reach = expected.reshape(-1)[: found.size]
        np.testing.assert_allclose(
            found.astype(wide), reach.astype(wide), rtol=tolerance, atol=tolerance
        )


@st.composite
def regions(draw: Any) -> tuple[Region, list[Array]]:
    """A region of broadcast and transposed reads, with or without row reductions."""
    sizes = st.sampled_from([1, 2, 3, 5, 16, 33, 70])
    space = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
    rank, seed = len(space), draw(st.integers(0, 99))
    loads, arrays = [], []
    for place in range(draw(st.integers(1, 3))):
        shape = [size if draw(st.booleans()) else 1 for size in space]
        turned = draw(st.permutations(range(rank)))
        strides = [0] * rank
        for axis, stride in zip(turned, contiguous([shape[a] for a in turned]), strict=True):
            strides[axis] = stride if shape[axis] > 1 else 0
        dtype = draw(st.sampled_from([F, F, DType.FLOAT16, DType.FLOAT64]))
        offset = draw(st.integers(0, 3))
        rng = np.random.default_rng(seed + place)
        data = rng.standard_normal(int(np.prod(shape)) + offset).astype(dtype.numpy)
        arrays.append(data)
        loads.append(Load(place, dtype, offset, tuple(strides)))
    values = [cast(load(place, item.dtype), F) for place, item in enumerate(loads)]
    nodes = [*values, constant(0.5, F), cast(index(draw(st.integers(0, rank - 1))), F)]
    reduces = draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        one, two = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
        names = ["add", "subtract", "max", "tanh", "select"] + ["row_sum", "row_max"] * reduces
        name = draw(st.sampled_from(names))
        if name == "select":
            nodes.append(call("select", call("less", one, two), two, one))
        elif name == "tanh" or name.startswith("row_"):
            nodes.append(call(name, call("tanh", one)))
        else:
            nodes.append(call(name, one, two))
    stores = [Store(nodes[-1], 0, space, 0, contiguous(space))]
    if draw(st.booleans()):
        order = draw(st.permutations(range(rank)))
        shape = tuple(space[axis] for axis in order)
        strides = dict(zip(order, contiguous(shape), strict=True))
        turned_store = tuple(strides[axis] for axis in range(rank))
        stores.append(Store(nodes[-2], 1, shape, 0, turned_store))
    used = {node.value for s in stores for node in _loads_of(s.value)}
    kept = [place for place in range(len(loads)) if place in used]
    return _renumbered(space, loads, stores, kept), [arrays[place] for place in kept]


def _loads_of(value: Expression) -> list[Expression]:
    from engine.ops.expression import order

    return [node for node in order(value) if node.function == "load"]


def _renumbered(space: Any, loads: Any, stores: Any, kept: list[int]) -> Region:
    """Only the loads that are used, so that every operand of the kernel is read."""
    from engine.ops.expression import substitute

    places = {old: new for new, old in enumerate(kept)}
    chosen = tuple(
        Load(places[old], loads[old].dtype, loads[old].offset, loads[old].strides) for old in kept
    )
    swaps = {old: load(new, loads[old].dtype) for old, new in places.items()}
    made = tuple(
        Store(substitute(s.value, swaps), s.output, s.shape, s.offset, s.strides) for s in stores
    )
    return Region(space, chosen, made)


@SETTINGS
@given(made=regions())
def test_all_printers_agree_on_random_regions(check: Any, made: tuple[Region, list[Array]]) -> None:
    agree(check, *made, tolerance=2e-3)


@SETTINGS
@given(made=regions())
def test_a_region_comes_back_from_json(made: tuple[Region, list[Array]]) -> None:
    region = made[0]
    assert Region.from_attributes(json.loads(json.dumps(region.attributes()))) == region


def softmax(scores: Expression) -> Expression:
    e = call("exp", call("subtract", scores, reduced("row_max", scores)))
    return call("divide", e, reduced("row_sum", e))


def test_softmax_with_a_mask(check: Any, normal: Any) -> None:
    shape = (2, 3, 5, 37)
    scores = call("add", call("multiply", load(0, F), constant(0.125, F)), load(1, F))
    mask = Load(1, F, 0, (37, 0, 0, 1))
    loads = (Load(0, F, 0, contiguous(shape)), mask)
    region = Region(shape, loads, (Store(softmax(scores), 0, shape, 0, contiguous(shape)),))
    x, m = normal(1, *shape), normal(2, 2, 1, 1, 37)
    agree(check, region, [x, m], 1e-5)
    z = np.exp(x / 8 + m)
    np.testing.assert_allclose(region.meaning(x, m), z / z.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("width", [1, 17, 768, 2500])
def test_layer_normalisation_with_a_residual_and_two_outputs(
    check: Any, normal: Any, width: int
) -> None:
    total = call("add", load(0, F), load(1, F))
    share = constant(1 / width, F)
    centred = call("subtract", total, call("multiply", reduced("row_sum", total), share))
    square = call("multiply", centred, centred)
    variance = call("multiply", reduced("row_sum", square), share)
    scale = call("rsqrt", call("add", variance, constant(1e-5, F)))
    y = call("add", call("multiply", call("multiply", centred, scale), load(2, F)), load(3, F))
    strides, column = (width, 1), (0, 1)
    loads = [Load(0, F, 0, strides), Load(1, F, 0, strides)]
    loads += [Load(2, F, 0, column), Load(3, F, 0, column)]
    shape = (6, width)
    stores = (Store(y, 0, shape, 0, strides), Store(total, 1, shape, 0, strides))
    region = Region(shape, tuple(loads), stores)
    arrays = [normal(1, *shape), normal(2, *shape), normal(3, width), normal(4, width)]
    agree(check, region, arrays)
    s = arrays[0] + arrays[1]
    normed = (s - s.mean(-1, keepdims=True)) / np.sqrt(s.var(-1, keepdims=True) + 1e-5)
    found, kept = region.meaning(*arrays)
    np.testing.assert_allclose(found, normed * arrays[2] + arrays[3], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(kept, s)


@pytest.mark.parametrize("channels", [3, 64, 100])
def test_the_mean_over_a_strided_axis_goes_by_columns(
    check: Any, normal: Any, channels: int
) -> None:
    mean = call("multiply", reduced("row_sum", load(0, F)), constant(1 / 49, F))
    read = Load(0, F, 0, (49 * channels, 1, channels))
    store = Store(mean, 0, (2, channels), 0, (channels, 1, 0))
    region = Region((2, channels, 49), (read,), (store,))
    assert kernel_of(region)[0].layout == "columns"
    x = normal(1, 2, 49, channels)
    agree(check, region, [x])
    np.testing.assert_allclose(region.meaning(x), x.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["row_sum", "row_prod", "row_max", "row_min"])
@pytest.mark.parametrize("dtype", [F, DType.FLOAT64, DType.FLOAT16, DType.INT32, DType.UINT8])
def test_every_reduction(check: Any, name: str, dtype: DType) -> None:
    rng = np.random.default_rng(3)
    x = rng.random((4, 1300)) * 0.002 + 0.999 if dtype.is_float else rng.integers(1, 200, (4, 1300))
    x = x.astype(dtype.numpy)
    store = Store(reduced(name, load(0, dtype)), 0, (4,), 0, (1, 0))
    region = Region((4, 1300), (Load(0, dtype, 0, (1300, 1)),), (store,))
    agree(check, region, [x], 1e-2 if dtype is DType.FLOAT16 else 1e-4)


def test_embedding_rows_are_gathered_and_bad_indices_stay_inside(check: Any, normal: Any) -> None:
    indices = np.array([3, -1, 9, 12, -50], np.int64)
    loads = (
        Load(0, DType.INT64, 0, (1, 0)),
        Load(1, F, 0, (0, 1), Gather(0, 8, 10)),
        Load(2, F, 0, (8, 1)),
    )
    value = call("add", load(1, F), load(2, F))
    region = Region((5, 8), loads, (Store(value, 0, (5, 8), 0, (8, 1)),))
    table, places = normal(1, 10, 8), normal(2, 5, 8)
    agree(check, region, [indices, table, places])
    expected = table[[3, 9, 9, 9, 0]] + places
    np.testing.assert_array_equal(region.meaning(indices, table, places), expected)


def test_padding_and_slices(check: Any, normal: Any) -> None:
    bounds = (Bound(0, 1, 5), Bound(1, 2, 5))
    read = Load(0, F, 0, (3 * 20, 20, 1), None, bounds, -1.5)
    region = Region((6, 7, 20), (read,), (Store(load(0, F), 0, (6, 7, 20), 0, (140, 20, 1)),))
    x = normal(1, 4, 3, 20)
    agree(check, region, [x])
    expected = np.pad(x, ((1, 1), (2, 2), (0, 0)), constant_values=-1.5)
    np.testing.assert_array_equal(region.meaning(x), expected)
    inner = Load(0, F, 0, (5, 1), None, (Bound(1, 3, 8),), 7.0)
    region = Region((4, 12), (inner,), (Store(load(0, F), 0, (4, 12), 0, (12, 1)),))
    x = normal(2, 4, 5)
    agree(check, region, [x])
    part = Region((4, 5), (Load(0, F, 0, (5, 1)),), (Store(load(0, F), 0, (4, 9), 2, (9, 1)),))
    agree(check, part, [x])
    np.testing.assert_array_equal(part.meaning(x)[:, 2:7], x)


def test_axes_merge_where_every_stride_allows_it() -> None:
    n = symbol("n")
    strides = (12 * 4096, 4096, 64, 1)
    bias = Load(1, F, 0, (0, 0, 64, 1))
    value = call("add", load(0, F), load(1, F))
    store = Store(value, 0, (n, 12, 64, 64), 0, strides)
    region = Region((n, 12, 64, 64), (Load(0, F, 0, strides), bias), (store,))
    merged = simplified(region)
    assert merged.space == (n * 12, 4096)
    assert merged.loads[1].strides == (0, 1)
    alone = Region(
        (n, 12, 64, 64), (Load(0, F, 0, strides),), (Store(load(0, F), 0, (), 0, strides),)
    )
    assert simplified(alone).space == (n * 49152,)


def test_symbols_get_their_values_from_the_inputs(normal: Any) -> None:
    n = symbol("n")
    store = Store(call("exp", load(0, F)), 0, (n, 6), 0, (6, 1))
    region = Region((n, 6), (Load(0, F, 0, (6, 1)),), (store,), ((n * 2, 3),))
    x = normal(1, 8, 3)
    np.testing.assert_array_equal(region.meaning(x), np.exp(x.reshape(4, 6)))
    kernel, sizes = kernel_of(region)
    assert kernel.items([evaluate(size, {"n": 4}) for size in sizes]) == 1
    with pytest.raises(ValueError, match="has the size 9"):
        region.meaning(normal(1, 9, 3))


def small() -> Region:
    return Region((4,), (Load(0, F, 0, (1,)),), (Store(load(0, F), 0, (4,), 0, (1,)),), ((4,),))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("space",), []),
        (("space",), [[["+"]]]),
        (("space", 0), True),
        (("space", 0), 2**80),
        (("loads", 0, "operand"), -1),
        (("loads", 0, "operand"), 5),
        (("loads", 0, "strides"), [1, 1]),
        (("loads", 0, "dtype"), "float31"),
        (("loads", 0, "gather"), {"load": 0, "stride": 1, "bound": 1}),
        (("loads", 0, "bounds"), [[3, 0, 1]]),
        (("loads", 0, "extra"), 1),
        (("stores",), []),
        (("stores", 0, "value"), [["load", "float32", 4]]),
        (("stores", 0, "value"), [["index", "int64", 4]]),
        (("stores", 0, "output"), 3),
        (("stores", 0, "strides"), [0]),
    ],
)
def test_hostile_regions_are_refused(path: tuple[Any, ...], value: Any) -> None:
    fields = json.loads(json.dumps(small().attributes()))
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r"\w"):
        Region.from_attributes(fields)


def test_a_region_never_reads_or_writes_outside_its_arrays() -> None:
    region = Region((4,), (Load(0, F, 2, (1,)),), (Store(load(0, F), 0, (4,), 0, (1,)),))
    with pytest.raises(ValueError, match="reaches elements 2 to 5 of 4"):
        region.meaning(np.zeros(4, np.float32))
    kernel, sizes = kernel_of(region)
    assert kernel.extents(sizes) == (6, 4)


def test_a_row_may_be_read_backwards_but_not_from_before_its_array(check: Any) -> None:
    def backwards(offset: int) -> Any:
        item = Load(0, F, offset, (-1,))
        return kernel_of(Region((4,), (item,), (Store(load(0, F), 0, (4,), 0, (1,)),)))

    kernel, sizes = backwards(3)
    assert kernel.extents(sizes) == (4, 4)
    x = np.arange(4, dtype=np.float32)
    found = check.agree(kernel, [x, np.zeros(4, np.float32)], sizes)
    np.testing.assert_array_equal(found, x[::-1])
    kernel, sizes = backwards(2)
    with pytest.raises(ValueError, match="1 elements before its operand"):
        kernel.extents(sizes)


def test_a_gather_from_nothing_is_refused() -> None:
    loads = (Load(0, DType.INT64, 0, (1,)), Load(1, F, 0, (0,), Gather(0, 1, 0)))
    region = Region((2,), loads, (Store(load(1, F), 0, (2,), 0, (1,)),))
    kernel, sizes = kernel_of(region)
    with pytest.raises(ValueError, match="gather from nothing"):
        kernel.extents(sizes)


@pytest.mark.parametrize("name", ["rank", "inputs", "loads", "stores", "layout"])
def test_hostile_kernels_are_refused(name: str) -> None:
    kernel, _ = kernel_of(small())
    fields = json.loads(json.dumps(kernel.to_json()))
    for value in (None, -1, 99, "wrong", [{}], [[1]]):
        with pytest.raises(ValueError, match="field"):
            RegionKernel.from_json({**fields, name: value})


def test_outputs_may_be_written_over_inputs(check: Any, normal: Any) -> None:
    kernel, sizes = kernel_of(
        Region((300,), (Load(0, F, 0, (1,)),), (Store(call("tanh", load(0, F)), 0, (), 0, (1,)),))
    )
    x = normal(1, 300)
    expected = np.tanh(x)
    functions = compiled([Function("kernel", kernel.source("kernel", check.isa))], check.isa)
    pointers = [x.ctypes.data] * 2
    step = Step(functions["kernel"], pointers, sizes, kernel.items(sizes))
    check.runner.run(check.runner.prepare([step]))
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["row_max", "row_min", "row_sum"])
def test_one_nan_makes_its_row_nan(check: Any, normal: Any, name: str) -> None:
    x = normal(1, 3, 150)
    x[1, 149], x[2, 7] = np.nan, np.inf
    store = Store(reduced(name, load(0, F)), 0, (3,), 0, (1, 0))
    region = Region((3, 150), (Load(0, F, 0, (150, 1)),), (store,))
    agree(check, region, [x])
    assert np.isnan(region.meaning(x)).tolist() == [False, True, False]
