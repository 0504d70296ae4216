from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import shape_inference

from engine.plan.arena import ALIGNMENT, Arena, Request, plan_arena

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NETWORKS = {
    "resnet50": LIGHT / "light_resnet50.onnx",
    "densenet121": LIGHT / "light_densenet121.onnx",
    "inception_v1": LIGHT / "light_inception_v1.onnx",
    "inception_v2": LIGHT / "light_inception_v2.onnx",
    "squeezenet": LIGHT / "light_squeezenet.onnx",
    "shufflenet": LIGHT / "light_shufflenet.onnx",
    "bert_base": Path(__file__).parents[3] / "benchmarks/models/bert_base.onnx",
}

requests = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 12)), max_size=40
).map(lambda rows: [Request(i, n, first, first + more) for i, (n, first, more) in enumerate(rows)])


def check(found: list[Request], arena: Arena) -> None:
    placed = [(r, arena.offsets[r.id]) for r in found]
    for index, (left, begin) in enumerate(placed):
        assert begin % ALIGNMENT == 0
        assert 0 <= begin <= begin + left.nbytes <= arena.nbytes
        for right, other in placed[:index]:
            if left.first <= right.last and right.first <= left.last:
                apart = begin + left.nbytes <= other or other + right.nbytes <= begin
                assert apart or not left.nbytes or not right.nbytes


@given(requests)
def test_what_is_alive_together_never_overlaps(found: list[Request]) -> None:
    arena = plan_arena(found)
    check(found, arena)
    alive = [
        sum(-(-r.nbytes // 256) * 256 for r in found if r.first <= step <= r.last)
        for step in range(50)
    ]
    assert arena.lower_bound == max(alive)
    assert arena.lower_bound <= arena.nbytes
    assert plan_arena(found) == arena


def test_disjoint_lifetimes_share_memory() -> None:
    arena = plan_arena([Request(7, 1000, 0, 1), Request(8, 900, 2, 3)])
    assert arena == Arena({7: 0, 8: 0}, 1024, 1024)


@pytest.mark.parametrize(
    "wrong",
    [[Request(0, -1, 0, 0)], [Request(0, 1, 2, 1)], [Request(0, 1, 0, 0), Request(0, 1, 1, 1)]],
)
def test_nonsense_is_refused(wrong: list[Request]) -> None:
    with pytest.raises(ValueError, match=r"memory requests|negative size"):
        plan_arena(wrong)


def live_ranges(path: Path) -> list[Request]:
    """A request for each intermediate tensor of a network, as its shapes say (symbols are 1)."""
    model = shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    kept = {item.name for item in [*graph.input, *graph.output, *graph.initializer]}
    sizes = {}
    for item in graph.value_info:
        kind = item.type.tensor_type
        elements = [dim.dim_value or 1 for dim in kind.shape.dim]
        width = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        sizes[item.name] = int(np.prod(elements, dtype=np.int64)) * width
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, node in enumerate(graph.node):
        if node.op_type not in ("Constant", "ConstantOfShape"):
            for name in (*node.input, *node.output):
                if name in sizes and name not in kept:
                    first.setdefault(name, step)
                    last[name] = step
    return [Request(i, sizes[name], first[name], last[name]) for i, name in enumerate(first)]


@pytest.mark.parametrize("name", NETWORKS)
def test_arenas_of_networks_are_close_to_the_least_possible(name: str) -> None:
    if not NETWORKS[name].exists():
        pytest.skip(f"{NETWORKS[name]} is not there")
    found = live_ranges(NETWORKS[name])
    assert len(found) > 20
    started = time.process_time()
    arena = plan_arena(found)
    elapsed = time.process_time() - started
    check(found, arena)
    assert arena.nbytes <= 1.05 * arena.lower_bound
    assert elapsed < 1


def test_a_hard_case_is_planned_in_bounded_time() -> None:
    random = np.random.default_rng(0)
    rows = [(int(n), int(f), int(m)) for n, f, m in random.integers(1, [10**6, 900, 60], (1000, 3))]
    found = [Request(i, n, f, f + m) for i, (n, f, m) in enumerate(rows)]
    started = time.process_time()
    arena = plan_arena(found)
    assert time.process_time() - started < 5
    check(found, arena)
    assert arena.nbytes <= 1.25 * arena.lower_bound
