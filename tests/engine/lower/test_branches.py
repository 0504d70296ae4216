"""Branches of a graph on lanes: which, how many, and programs that compute the same with them."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from engine.building import BuildOptions, optimise, read_model
from engine.cuda.c_prelude import PRELUDE
from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Graph, Node, Value
from engine.ir.sizes import symbol
from engine.ir.types import DType, TensorType
from engine.lower.branches import LEAST_NS, Work, branch_lanes
from engine.lower.builder import ProgramBuilder
from engine.lower.lowering import Lowered, lower
from engine.lower.quiet import hold_back
from engine.ops.reference import Reference
from engine.plan.device import ClearStep, LaunchStep, LibraryStep
from engine.plan.encoding import program_to_json
from engine.plan.lanes import lane_of
from engine.plan.plan import Plan
from engine.plan.structure import ChooseStep, Guard
from engine.profile import parse_shapes, profile_symbols
from engine.runtime.cuda_engine import CudaEngine
from engine.tune.choosing import choose_all
from tests.emulated_plans import emulated_gpu, kept_as_source
from tests.engine.small_models import model

KIND = TensorType(DType.FLOAT32, (4,))


def graph_of(text: str) -> Graph:
    """A graph from ``a: x; b: a; c: a b``: nodes with what they read; x, y, z are inputs."""
    graph = Graph()
    values = {name: Value(name, KIND) for name in "xyz"}
    graph.inputs = list(values.values())
    for line in text.split(";"):
        name, _, reads = line.strip().partition(":")
        values[name] = Value(name, KIND)
        inputs = [values[read] for read in reads.split()]
        graph.nodes.append(Node(Reference(operator="Test"), inputs, [values[name]], name=name))
    return graph


def lanes(text: str, **times: Any) -> tuple[dict[str, int], set[str]]:
    """Lanes of a graph's nodes, which take 10 us unless given; None for those without a step."""
    graph = graph_of(text)
    works = {node.name: times.get(node.name, 10_000) for node in graph.nodes}
    known = {
        name: time if isinstance(time, Work) else Work(time)
        for name, time in works.items()
        if time is not None
    }
    found, crossing = branch_lanes(graph, known)
    return found, set(crossing)


def test_the_shorter_branch_goes_aside_and_the_longer_one_stays() -> None:
    block = "a: x; l: a; m: a; n: m; j: n l"
    assert lanes(block) == ({"l": 1}, {"a", "l"})
    assert lanes(block, l=40_000) == ({"m": 1, "n": 1}, {"a", "n"})
    assert lanes(block, l=20_000, m=10_000, n=10_000) == ({"l": 1}, {"a", "l"})


def test_chains_and_values_that_are_read_again_later_have_no_branches() -> None:
    assert lanes("a: x; b: a; c: b") == ({}, set())
    assert lanes("a: x; b: a; c: b a; d: c; e: d c a") == ({}, set())


def test_blocks_one_after_the_other_use_the_same_lane() -> None:
    found, _ = lanes("a: x; l: a; m: a; n: m; j: n l; k: j; o: j; p: o; q: p k")
    assert found == {"l": 1, "k": 1}


def test_branches_begin_at_the_beginning_and_need_not_meet() -> None:
    assert lanes("a: x; b: y; c: b; d: a c") == ({"a": 1}, {"a"})
    assert lanes("a: x; b: a; c: a; d: c") == ({"b": 1}, {"a"})


def test_there_are_three_lanes_beside_the_main_one() -> None:
    found, _ = lanes("a: x; b: a; c: a; d: a; e: a; f: a; g: b c d e f", f=30_000, e=20_000)
    assert found == {"e": 1, "b": 2, "c": 3}


def test_branches_inside_of_branches_have_lanes_of_their_own() -> None:
    text = "a: x; b: a; c: b; d: b; e: c d; f: e; g: a; h: g; i: g; j: h i; k: f j"
    found, _ = lanes(text)
    assert found == {"d": 2, "g": 1, "h": 1, "i": 3, "j": 1}


def test_the_host_and_what_is_short_stay_where_they_are() -> None:
    block = "a: x; l: a; m: a; n: m; j: n l"
    assert lanes(block, l=LEAST_NS - 1) == ({}, set())
    assert lanes(block, l=LEAST_NS)[0] == {"l": 1}
    assert lanes(block, l=0)[0] == {"l": 1}  # never measured
    for name in ("l", "n"):
        assert lanes(block, **{name: Work(10_000, host=True)}) == ({}, set())
    assert lanes(block, a=Work(10_000, host=True), j=Work(1, host=True))[0] == {"l": 1}


def test_nodes_without_steps_pass_on_what_they_read() -> None:
    block = "a: x; v: a; l: v; m: a; n: m; w: l; j: n w"
    assert lanes(block, v=None, w=None) == ({"l": 1}, {"a", "l"})
    assert lanes("a: x; l: a; m: a; n: m; j: n l", l=None) == ({}, set())


BODY = """(float16[N, 24] x, float16[N, 24] s) => (float16[] y) {
    a = MatMul (x, w) b = Softmax (a) c = MatMul (b, v) d = MatMul (b, u) e = Softmax (d)
    f = MatMul (e, t) g = Add (c, f) h = Softmax (s) y = Concat <axis=1> (g, h) }"""
_RANDOM = np.random.default_rng(1)
WEIGHTS = {
    name: _RANDOM.standard_normal(shape).astype(np.float16)
    for name, shape in {"w": (24, 40), "v": (40, 16), "u": (40, 32), "t": (32, 16)}.items()
}
OPTIONS = BuildOptions(
    target="cuda:sm100",
    tactics=("nvrtc",),
    profile=parse_shapes({"x": ("N=1..4..8", 24), "s": ("N", 24)}),
)


def lowered(branches: bool) -> Lowered:
    graph = optimise(read_model(model(BODY, weights=WEIGHTS), OPTIONS))
    symbols = profile_symbols(graph, OPTIONS.profile)
    chosen = choose_all(graph, OPTIONS, symbols, [], allowed=("nvrtc",), memo={})
    return lower(graph, symbols, chosen.last, kept_as_source, cases=chosen.cases, branches=branches)


def test_lowering_is_the_same_every_time_and_has_lanes_only_when_asked() -> None:
    texts = [json.dumps(program_to_json(lowered(on).program)) for on in (False, True, True)]
    assert texts[1] == texts[2] != texts[0]
    assert '"lane"' not in texts[0] and '"lane"' in texts[1]
    without = json.loads(texts[1])
    for step in without["steps"]:
        step.pop("lane", None)
    assert without == json.loads(texts[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")
@pytest.mark.parametrize("latest_first", [False, True])
def test_a_network_with_branches_computes_the_same(latest_first: bool) -> None:
    found: dict[bool, list[Any]] = {}
    for branches in (False, True):
        made = lowered(branches)
        device = emulated_gpu()
        device.latest_first = latest_first
        weights = Plan(made.program, made.packed).arrays()
        images = {name: image.tobytes() for name, image in made.images.items()}
        engine = CudaEngine(made.program, weights, images, device=device)
        with engine.create_context() as context:
            found[branches] = []
            for turn in range(3):
                for size in (4, 1, 8):
                    random = np.random.default_rng(10 * turn + size)
                    feeds = {
                        name: random.standard_normal((size, 24)).astype(np.float16)
                        for name in ("x", "s")
                    }
                    found[branches].append(context.run(feeds)["y"])
    for one, other in zip(found[False], found[True], strict=True):
        np.testing.assert_array_equal(one, other)


KERNEL = DeviceKernel("nvrtc", "k", PRELUDE + "void k() { ef_launch_dependents(); }", 32)
CUDNN = LibraryStep("cudnn", {}, (), (), None, 0)


def launch(lane: int = 0, grid: Any = 1) -> LaunchStep:
    return LaunchStep(0, (grid, 1, 1), (), 0, lane)


def held(*steps: Any, crossing: tuple[int, ...] = ()) -> list[str]:
    builder = ProgramBuilder(Graph(), device_kernels=[KERNEL])
    builder.steps[:] = steps
    replaced = hold_back(builder, crossing)
    assert set(replaced.values()) <= {0} and all(
        builder.device_kernels[new] == KERNEL.quiet() for new in replaced
    )
    assert [_lanes(step) for step in builder.steps] == [_lanes(step) for step in steps]
    return [_marked(step, replaced) for step in builder.steps]


def _lanes(step: Any) -> Any:
    if isinstance(step, ChooseStep):
        return [[_lanes(item) for item in chosen] for _, chosen in step.cases]
    return lane_of(step)


def _marked(step: Any, replaced: dict[int, int]) -> str:
    if isinstance(step, ChooseStep):
        return "/".join(_marked(item, replaced) for _, chosen in step.cases for item in chosen)
    if isinstance(step, LaunchStep):
        return "quiet" if step.function in replaced else "early"
    return "clear" if isinstance(step, ClearStep) else step.library


def test_without_cudnn_kernels_on_lanes_stay_as_they_are() -> None:
    assert held(launch(), launch(1), launch(), crossing=(0, 1)) == ["early"] * 3


def test_kernels_that_may_stand_in_front_of_cudnn_on_another_lane_end_first() -> None:
    steps = (launch(), launch(), launch(1), CUDNN, launch(), launch())
    expected = ["early", "quiet", "quiet", "cudnn", "early", "quiet"]
    assert held(*steps, crossing=(1, 2)) == expected
    aside = LibraryStep("cudnn", {}, (), (), None, 0, 1)
    assert held(launch(), launch(), aside, launch(), crossing=(0, 2)) == [
        *("quiet", "early", "cudnn", "quiet")
    ]


def test_neighbours_on_a_lane_are_neighbours_across_steps_of_others() -> None:
    steps = (launch(), launch(1), CUDNN, launch())
    assert held(*steps) == ["quiet", "quiet", "cudnn", "quiet"]


def test_steps_of_a_lane_in_cases_and_empty_launches_count() -> None:
    guards = (Guard("<=", symbol("N"), 4),)
    choose = ChooseStep(((guards, (launch(1),)), ((), (launch(1), ClearStep(0, 0, 1)))))
    steps = (launch(), launch(grid=symbol("N")), choose, CUDNN, launch())
    assert held(*steps, crossing=(1,)) == [
        *("quiet", "quiet", "quiet/quiet/clear", "cudnn", "quiet")
    ]
