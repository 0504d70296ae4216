"""Symbolic sizes on a GPU: every size of a profile finds its case, and every case is right."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.building import BuildOptions, optimise, read_model
from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.debug.interpret import interpret
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.lower.lowering import Case, UncompiledError, lower
from engine.ops.fused import FusedMatMul
from engine.plan.checking import check_program
from engine.plan.guards import hold
from engine.plan.plan import Plan, open_plan
from engine.plan.structure import ChooseStep, Guard
from engine.profile import parse_shapes, profile_symbols, tuned_points
from engine.runtime.cuda_engine import CudaEngine
from engine.tactics import Candidate
from engine.target import describe
from engine.tune import choosing
from engine.tune.choosing import TIE_SHARE, choose_all, identity, offers, points_of
from engine.tune.isolation import pin
from engine.tune.records import TimingRecord, layer_signature
from engine.tune.tuning import tuning_tasks
from tests.emulated_device import EmulatedDevice, image_of
from tests.engine.small_models import model

BODY = """(float16[N, 24] x, float16[N, 40] r) => (float16[] y) {
    a = MatMul (x, w) b = Add (a, r) y = Relu (b) }"""
WEIGHTS = {"w": np.random.default_rng(1).standard_normal((24, 40)).astype(np.float16)}
SHAPES: dict[str, Any] = {"x": ("N=1..8..32", 24), "r": ("N", 40)}
POINTS = (1, 8, 32)
#: A GPU whose kernels the emulated device can run: without boxes and clusters.
A100 = describe("cuda:sm80")


def prepared(level: int = 2, **details: Any) -> tuple[Graph, BuildOptions]:
    options = BuildOptions(
        target="cuda:sm80", level=level, tactics=("nvrtc",), profile=parse_shapes(SHAPES), **details
    )
    return optimise(read_model(model(BODY, weights=WEIGHTS), options)), options


def records_of(
    graph: Graph, options: BuildOptions, times: Callable[[int, int], float]
) -> list[TimingRecord]:
    """A record of every candidate of every layer; ``times`` takes the place of one and N."""
    symbols = profile_symbols(graph, options.profile)
    found = []
    for point in points_of(options, symbols, A100):
        for node in graph.nodes:
            signature, own = layer_signature(node, point)
            for place, offer in enumerate(offers(node, options.tactics, point, A100)):
                tactic, choice = offer.candidate.tactic, dict(offer.candidate.choice)
                time = times(place, point["N"])
                found.append(TimingRecord(signature, tactic, choice, own, {}, "", time, samples=20))
    return found


def served(cases: Sequence[Case], last: Candidate, size: int) -> Candidate:
    """The candidate that runs at a size."""
    found = (case.candidate for case in cases if hold(case.guards, {"N": size}))
    return next(found, last)


def test_the_points_of_a_profile() -> None:
    shapes: dict[str, Any] = {"x": ("N=0..8..32", "free")}
    graph = read_model(model("(float[N, free] x) => (float[] y) { y = Relu (x) }"), BuildOptions())
    profile = parse_shapes(shapes)
    symbols = profile_symbols(graph, profile)
    assert tuned_points(symbols, profile) == [
        {"N": 8, "free": 1},
        {"N": 1, "free": 1},
        {"N": 32, "free": 1},
    ]
    one = parse_shapes({"x": ("N=4..4..4", 3)})
    assert len(tuned_points(profile_symbols(graph, one), one)) == 1


def test_a_layer_is_a_task_per_point() -> None:
    graph, options = prepared()
    tasks = tuning_tasks(graph, options, ())
    # At 32 rows nvrtc has nothing but its last resort, which has no rival.
    assert [task.point["N"] for task in tasks] == [8, 1]
    assert len({task.signature for task in tasks}) == len(tasks)


def test_without_tuning_there_is_one_choice() -> None:
    graph, options = prepared(level=0)
    found = choose_all(graph, options, profile_symbols(graph, options.profile), ())
    assert found.last and not found.cases


def test_one_fastest_candidate_at_every_point_is_one_choice() -> None:
    graph, options = prepared()
    records = records_of(graph, options, lambda place, size: 100.0 * (1 + place))
    # The candidates of the points are the same, in the same order, for this layer of few columns.
    found = choose_all(graph, options, profile_symbols(graph, options.profile), records)
    for name, cases in found.cases.items():
        kinds = [identity(case.candidate) for case in cases]
        assert identity(found.last[name][0]) != kinds[-1]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 50), min_size=40, max_size=40), st.integers(1, 32))
def test_every_size_is_served_as_the_next_tuned_point(speeds: list[int], size: int) -> None:
    graph, options = prepared()
    key = functools.partial(_speed, speeds)
    records = records_of(graph, options, key)
    symbols = profile_symbols(graph, options.profile)
    found = choose_all(graph, options, symbols, records)
    tuned = next(point for point in POINTS if size <= point)
    for node in graph.nodes:
        if node.kind == "View":
            continue
        cases, last = found.cases.get(node.name, ()), found.last[node.name][0]
        assert not last.holds
        offered = [o.candidate for o in offers(node, options.tactics, {"N": tuned}, A100)]
        times = [key(place, tuned) for place in range(len(offered))]
        place = [identity(item) for item in offered].index(identity(served(cases, last, size)))
        assert times[place] <= min(times) * (1 + TIE_SHARE)


def _speed(speeds: Sequence[int], place: int, size: int) -> float:
    return 1000.0 * speeds[(7 * place + 13 * POINTS.index(size)) % len(speeds)]


def test_a_librarys_choice_serves_its_point_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, options = prepared()
    options = BuildOptions(
        target="cuda:sm80", level=2, tactics=("nvrtc", "cublaslt"), profile=options.profile
    )
    real = choosing.candidates

    def offered(node: Node, sources: Any, point: Any, target: Any) -> Any:
        if list(sources) == ["cublaslt"]:
            if not isinstance(node.op, FusedMatMul):
                return [], []
            (first, *_), _ = real(node, ("nvrtc",), {}, target)
            return [
                Candidate("cublaslt.test", {"a": 1}, lambda b, _, i: first.emit(b, node, i))
            ], []
        return real(node, [s for s in sources if s != "cublaslt"], point, target)

    monkeypatch.setattr(choosing, "candidates", offered)
    (product,) = (node for node in graph.nodes if isinstance(node.op, FusedMatMul))
    records = records_of(graph, options, lambda place, size: 1000.0 + place)
    records = [
        record if not record.tactic.startswith("cublaslt") else _faster(record)
        for record in records
    ]
    symbols = profile_symbols(graph, options.profile)
    found = choose_all(graph, options, symbols, records)
    cases, last = found.cases[product.name], found.last[product.name][0]
    for size in range(1, 33):
        is_library = served(cases, last, size).tactic == "cublaslt.test"
        assert is_library == (size in POINTS)
    lowered = lower(graph, symbols, found.last, emulated, cases=found.cases)
    check_program(lowered.program)
    assert any(isinstance(step, ChooseStep) for step in lowered.program.steps)
    _run(graph, lowered, (1, 2, 8, 31, 32))


def test_a_library_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of the installed version are its answer; of another one they are not."""
    graph, options = prepared()
    options = BuildOptions(
        target="cuda:sm80", level=2, tactics=("nvrtc", "cublaslt"), profile=options.profile
    )
    asked: list[str] = []
    real = choosing.candidates

    def offered(node: Node, sources: Any, point: Any, target: Any) -> Any:
        if list(sources) == ["cublaslt"]:
            asked.append(node.name)
            return [Candidate("cublaslt.test", {"version": 7}, lambda *_: None)], []
        return real(node, [s for s in sources if s != "cublaslt"], point, target)

    monkeypatch.setattr(choosing, "candidates", offered)
    monkeypatch.setattr(choosing, "installed_version", lambda name: 7)
    records = records_of(graph, options, lambda place, size: 1000.0 + place)
    asked.clear()
    tuning_tasks(graph, options, records)
    choose_all(graph, options, profile_symbols(graph, options.profile), records)
    assert asked == []
    tuning_tasks(graph, BuildOptions(**_fields(options, level=4)), records)
    assert asked
    asked.clear()
    monkeypatch.setattr(choosing, "installed_version", lambda name: 8)
    tuning_tasks(graph, options, records)
    assert asked


def _faster(record: TimingRecord) -> TimingRecord:
    return TimingRecord.from_json({**record.to_json(), "time_ns": 10.0})


def test_a_candidate_with_conditions_serves_only_where_they_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, options = prepared()
    real = choosing.candidates
    limit = Guard("<=", symbol("N"), 5)

    def offered(node: Node, sources: Any, point: Any, target: Any) -> Any:
        found, refused = real(node, sources, point, target)
        first = found[0]
        bounded = Candidate(first.tactic, {"bounded": 5}, first.emit, holds=(limit,))
        return [bounded, *found], refused

    monkeypatch.setattr(choosing, "candidates", offered)
    symbols = profile_symbols(graph, options.profile)
    found = choose_all(graph, BuildOptions(**_fields(options, level=0)), symbols, ())
    for node in graph.nodes:
        if node.kind == "View":
            continue
        cases, last = found.cases[node.name], found.last[node.name][0]
        assert not last.holds
        for size in range(1, 33):
            assert bool(served(cases, last, size).holds) == (size <= 5)


def _fields(options: BuildOptions, **changes: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in BuildOptions.__dataclass_fields__} | changes


def emulated(kernels: Sequence[DeviceKernel]) -> list[Compiled | Failure]:
    return [
        Compiled(image_of(k), k.entry, k.threads, k.shared_nbytes, waits=k.waits) for k in kernels
    ]


def _run(graph: Graph, lowered: Any, sizes: Sequence[int]) -> None:
    """The program on an emulated GPU against the graph's meaning, at each size."""
    if shutil.which("g++") is None:
        pytest.skip("the shim needs g++")
    weights = Plan(lowered.program, lowered.packed).arrays()
    images = {name: image.tobytes() for name, image in lowered.images.items()}
    context = CudaEngine(lowered.program, weights, images, device=EmulatedDevice()).create_context()
    for size in sizes:
        random = np.random.default_rng(size)
        feeds = {
            "x": random.standard_normal((size, 24)).astype(np.float16),
            "r": random.standard_normal((size, 40)).astype(np.float16),
        }
        wanted = interpret(graph, feeds)["y"].astype(np.float32)
        found = context.run(feeds)["y"].astype(np.float32)
        np.testing.assert_allclose(found, wanted, atol=2e-2, rtol=1e-2)


def test_every_size_of_the_profile_is_right_through_a_plan_file(tmp_path: Any) -> None:
    graph, options = prepared()
    speeds = [(place * 29) % 41 + 1 for place in range(40)]
    records = records_of(graph, options, functools.partial(_speed, speeds))
    symbols = profile_symbols(graph, options.profile)
    found = choose_all(graph, options, symbols, records)
    assert found.cases
    lowered = lower(graph, symbols, found.last, emulated, cases=found.cases)
    Plan(lowered.program, lowered.packed, images=lowered.images).save(tmp_path / "cases.engine")
    assert open_plan(tmp_path / "cases.engine").program == lowered.program
    _run(graph, lowered, (1, 2, 7, 8, 9, 31, 32))


def test_a_kernel_that_does_not_compile_makes_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, options = prepared(level=0)
    symbols = profile_symbols(graph, options.profile)
    first = choose_all(graph, options, symbols, ())

    def refusing(kernels: Sequence[DeviceKernel]) -> list[Compiled | Failure]:
        made = emulated(kernels)
        return [Failure("it spills"), *made[1:]]

    with pytest.raises(UncompiledError, match="it spills") as caught:
        lower(graph, symbols, first.last, refusing)
    ((name, tactic, choice),) = caught.value.attempts
    assert identity(first.last[name][0]) == (tactic, choice)
    second = choose_all(graph, options, symbols, (), caught.value.attempts)
    assert identity(second.last[name][0]) != (tactic, choice)
    others = set(first.last) - {name}
    assert all(identity(first.last[n][0]) == identity(second.last[n][0]) for n in others)


def test_a_pinned_node_has_numbers_for_sizes_and_the_same_constants() -> None:
    graph, _ = prepared()
    (product,) = (node for node in graph.nodes if isinstance(node.op, FusedMatMul))
    pinned = pin(product, {"N": 5})
    assert [str(value.type) for value in pinned.outputs] == ["float16[5, 40]"]
    for one, other in zip(product.inputs, pinned.inputs):
        assert one is not None and other is not None and one is not other
        assert one.constant is other.constant and one.origin == other.origin
