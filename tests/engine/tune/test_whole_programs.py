"""Whole programs are measured last: which ones, what decides, and that records suffice again."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine import building
from engine.building import BuildOptions, optimise, read_model
from engine.errors import DeviceError
from engine.ir.graph import Graph, Node
from engine.ops.fused import FusedMatMul
from engine.plan.lanes import lane_of
from engine.plan.report import plan_text
from engine.profile import parse_shapes, profile_symbols
from engine.tactics import Candidate
from engine.tune import choosing, device_measuring, whole_programs
from engine.tune.contest import Contest, Outcome
from engine.tune.device_measuring import DeviceMeasurer
from engine.tune.records import TimingRecord, layer_signature
from engine.tune.whole_programs import (
    TACTIC,
    Making,
    choose_program,
    lower_chosen,
    measure_programs,
    unmeasured_programs,
    whole_signature,
)
from tests.emulated_device import EmulatedDevice
from tests.engine.small_models import model
from tests.engine.tune.test_cases import emulated

BODY = """(float16[N, 24] x) => (float16[] y) {
    a = MatMul (x, w) b = Softmax (a) c = MatMul (b, v) y = Relu (c) }"""
_RANDOM = np.random.default_rng(1)
WEIGHTS = {
    "w": _RANDOM.standard_normal((24, 40)).astype(np.float16),
    "v": _RANDOM.standard_normal((40, 16)).astype(np.float16),
}
OPTIONS = BuildOptions(
    target="cuda:sm90",
    level=2,
    tactics=("nvrtc", "cublaslt"),
    profile=parse_shapes({"x": ("N=1..4..8", 24)}),
)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """A graph whose products a library offers to compute, too; by nvrtc's second kernel."""
    real = choosing.candidates

    def offered(node: Node, sources: Any, point: Any, target: Any) -> Any:
        if list(sources) == ["cublaslt"]:
            if not isinstance(node.op, FusedMatMul):
                return [], []
            found, _ = real(node, ("nvrtc",), {}, target)
            emit = found[-1].emit
            return [Candidate("cublaslt.test", {}, lambda b, _, layer: emit(b, node, layer))], []
        return real(node, [s for s in sources if s != "cublaslt"], point, target)

    monkeypatch.setattr(choosing, "candidates", offered)
    return optimise(read_model(model(BODY, weights=WEIGHTS), OPTIONS))


def layer_records(graph: Graph, *, library_ns: float = 10.0) -> list[TimingRecord]:
    """Records by which a library computes every product at the usual size."""
    found = []
    for node in graph.nodes:
        if node.kind == "View":
            continue
        signature, own = layer_signature(node, {"N": 4})
        offered = choosing.offers(node, OPTIONS.tactics, {"N": 4}, choosing.describe("cuda:sm90"))
        for place, item in enumerate(offered):
            library = item.candidate.tactic.startswith("cublaslt")
            time = library_ns if library else 100.0 + 10 * place
            tactic, choice = item.candidate.tactic, dict(item.candidate.choice)
            found.append(TimingRecord(signature, tactic, choice, own, {}, "", time, samples=20))
    return found


class Stopwatch:
    """Measures contests by numbers given beforehand, in the order of the entrants."""

    def __init__(self, *times: float) -> None:
        self.times, self.contests = times, list[Contest]()

    def __call__(self, contest: Contest) -> list[Outcome]:
        self.contests.append(contest)
        assert len(contest.entrants) == len(self.times)
        return [Outcome((time,) * 20) for time in self.times]


def measured(graph: Graph, records: list[TimingRecord], watch: Any) -> list[TimingRecord]:
    return measure_programs(graph, OPTIONS, records, emulated, watch, "none")


def chosen(graph: Graph, records: list[TimingRecord]) -> tuple[tuple[str, ...], bool]:
    symbols = profile_symbols(graph, OPTIONS.profile)
    making = choose_program(graph, OPTIONS, symbols, records, {})
    assert not making.branches
    return making.sources, making.early


@pytest.mark.parametrize(
    ("times", "sources", "early"),
    [
        ((1000.0, 1200.0, 1300.0), {"nvrtc", "cublaslt"}, True),
        ((1000.0, 900.0, 1300.0), {"nvrtc", "cublaslt"}, False),
        ((1000.0, 1200.0, 900.0), {"nvrtc"}, True),
        ((1000.0, 1200.0, 1010.0), {"nvrtc"}, True),
        ((1000.0, 1005.0, 1300.0), {"nvrtc", "cublaslt"}, True),
    ],
    ids=["as chosen", "without overlap", "without libraries", "a tie", "a tie of overlap"],
)
def test_the_fastest_program_is_chosen_and_fewer_libraries_win_ties(
    graph: Graph, times: tuple[float, ...], sources: set[str], early: bool
) -> None:
    records = layer_records(graph)
    assert chosen(graph, records) == (OPTIONS.tactics, True)
    watch = Stopwatch(*times)
    fresh = measured(graph, records, watch)
    assert [record.tactic for record in fresh] == [TACTIC] * 3
    assert {record.signature for record in fresh} == {whole_signature(graph, OPTIONS)}
    found, overlaps = chosen(graph, [*records, *fresh])
    assert (set(found), overlaps) == (sources, early)
    assert chosen(graph, [*fresh[::-1], *records[::-1]]) == (found, overlaps)


def test_measured_programs_are_not_measured_again_until_choices_change(graph: Graph) -> None:
    records = layer_records(graph)
    watch = Stopwatch(3.0, 2.0, 1.0)
    fresh = measured(graph, records, watch)
    known = [TimingRecord.from_json(record.to_json()) for record in (*records, *fresh)]
    assert unmeasured_programs(graph, OPTIONS, known) == []
    assert measured(graph, known, watch) == [] and len(watch.contests) == 1
    slower = [*layer_records(graph, library_ns=1e6), *fresh]
    assert unmeasured_programs(graph, OPTIONS, slower)


def test_a_program_without_overlap_has_no_kernel_that_begins_early(graph: Graph) -> None:
    symbols = profile_symbols(graph, OPTIONS.profile)
    for early in (True, False):
        lowered, failed = lower_chosen(
            graph, OPTIONS, symbols, [], emulated, Making(("nvrtc",), early), memo={}
        )
        assert not failed
        assert any(function.waits for function in lowered.program.functions) == early


def test_nothing_is_measured_on_a_processor_and_at_low_levels(graph: Graph) -> None:
    for options in (dataclasses.replace(OPTIONS, level=1), BuildOptions(level=3)):
        assert unmeasured_programs(graph, options, []) == []


def test_a_failed_measurement_leaves_the_program_as_chosen(graph: Graph) -> None:
    def fails(contest: Contest) -> Sequence[Outcome]:
        raise DeviceError("the device is full")

    records = layer_records(graph)
    fresh = measured(graph, records, fails)
    assert {(record.status, record.reason) for record in fresh} == {
        ("failed", "the device is full")
    }
    assert chosen(graph, [*records, *fresh]) == (OPTIONS.tactics, True)
    assert unmeasured_programs(graph, OPTIONS, [*records, *fresh]) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")
def test_programs_run_at_the_usual_sizes_and_agree(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_measuring, "MOST_COPIES", 2)
    monkeypatch.setattr(device_measuring, "MOST_RUNS", 4)
    measurer = DeviceMeasurer(EmulatedDevice(), emulated)

    def measure(contest: Contest) -> list[Outcome]:
        return measurer.measure(dataclasses.replace(contest, samples=2))

    fresh = measured(graph, layer_records(graph), measure)
    assert [record.status for record in fresh] == ["ok"] * 3, [r.reason for r in fresh]
    assert all(record.point == {"N": 4} and record.time_ns > 0 for record in fresh)


BRANCHES = """(float16[N, 24] x, float16[N, 24] s) => (float16[] y) {
    a = MatMul (x, w) b = Softmax (a) c = MatMul (b, v) d = Softmax (s)
    y = Concat <axis=1> (c, d) }"""


@pytest.fixture
def parted() -> Graph:
    """A graph in which a softmax may run beside two products."""
    return optimise(read_model(model(BRANCHES, weights=WEIGHTS), PARTED))


PARTED = dataclasses.replace(
    OPTIONS,
    tactics=("nvrtc",),
    profile=parse_shapes({"x": ("N=1..4..8", 24), "s": ("N", 24)}),
)


def parted_records(graph: Graph, time: float) -> list[TimingRecord]:
    """Records of every layer at every point, all of which take the same time."""
    found = []
    nodes = [node for node in graph.nodes if node.kind != "View"]
    target = choosing.describe("cuda:sm90")
    for node, size in itertools.product(nodes, (1, 4, 8)):
        signature, own = layer_signature(node, {"N": size})
        for item in choosing.offers(node, PARTED.tactics, {"N": size}, target):
            tactic, choice = item.candidate.tactic, dict(item.candidate.choice)
            found.append(TimingRecord(signature, tactic, choice, own, {}, "", time, samples=20))
    return found


@pytest.mark.parametrize(
    ("times", "branches"),
    [((1000.0, 1000.0, 900.0), True), ((1000.0, 1000.0, 995.0), False), ((9.0, 9.0, 10.0), False)],
    ids=["faster", "a tie", "slower"],
)
def test_branches_run_side_by_side_when_that_is_measured_faster(
    parted: Graph, times: tuple[float, ...], branches: bool
) -> None:
    records = parted_records(parted, 5000.0)
    watch = Stopwatch(*times)
    fresh = measure_programs(parted, PARTED, records, emulated, watch, "none")
    (name,) = [node.name for node in parted.nodes if node.inputs[0] is parted.inputs[1]]
    assert [record.choice.get("branches") for record in fresh] == [None, None, {name: 1}]
    programs = [entrant.program for entrant in watch.contests[0].entrants]
    found = [sorted({lane_of(step) for step in program.steps}) for program in programs]
    assert found == [[0], [0], [0, 1]]
    symbols = profile_symbols(parted, PARTED.profile)
    known = [TimingRecord.from_json(record.to_json()) for record in (*records, *fresh)]
    assert choose_program(parted, PARTED, symbols, known, {}).branches == branches
    assert unmeasured_programs(parted, PARTED, known) == []


def test_short_layers_are_not_tried_side_by_side(parted: Graph) -> None:
    watch = Stopwatch(1.0, 1.0)
    records = parted_records(parted, 100.0)
    assert len(measure_programs(parted, PARTED, records, emulated, watch, "none")) == 2


def test_programs_with_branches_are_the_first_to_be_left_out_when_memory_is_short(
    parted: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = parted_records(parted, 5000.0)
    fitting = iter([False, True])
    monkeypatch.setattr(whole_programs, "_fit", lambda *_: next(fitting))
    watch = Stopwatch(1.0, 1.0)
    fresh = measure_programs(parted, PARTED, records, emulated, watch, "none")
    assert [record.choice.get("branches") for record in fresh] == [None, None]


def test_a_plan_names_the_layers_on_other_streams(
    parted: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "device_compiler", lambda target: emulated)
    records = parted_records(parted, 5000.0)
    plain = building.assemble_plan(parted, PARTED, records)
    fresh = measure_programs(parted, PARTED, records, emulated, Stopwatch(9.0, 9.0, 5.0), "none")
    plan = building.assemble_plan(parted, PARTED, [*records, *fresh])
    (decision,) = [item for item in plan.decisions if item["rule"] == "branches"]
    (name,) = decision["nodes"]
    aside = [layer for layer in plan.program.layers if layer.name == name]
    assert decision["made"] and len(aside) == 1
    assert not any(isinstance(node.op, FusedMatMul) for node in parted.nodes if node.name == name)
    assert " on lane 1" in plan_text(plan) and " on lane " not in plan_text(plain)
    assert not [item for item in plain.decisions if item["rule"] == "branches"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")
@pytest.mark.parametrize("latest_first", [False, True])
def test_programs_with_branches_are_measured_and_agree(
    parted: Graph, monkeypatch: pytest.MonkeyPatch, latest_first: bool
) -> None:
    monkeypatch.setattr(device_measuring, "MOST_COPIES", 2)
    monkeypatch.setattr(device_measuring, "MOST_RUNS", 4)
    device = EmulatedDevice(latest_first=latest_first)
    measurer = DeviceMeasurer(device, emulated)

    def measure(contest: Contest) -> list[Outcome]:
        return measurer.measure(dataclasses.replace(contest, samples=2))

    records = parted_records(parted, 5000.0)
    fresh = measure_programs(parted, PARTED, records, emulated, measure, "none")
    assert [record.status for record in fresh] == ["ok"] * 3, [r.reason for r in fresh]
    assert device.counts["captured wait"] > 0 == device.counts["refused"]


def test_branches_are_tried_as_chosen_and_with_the_fewest_libraries(
    parted: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four different programs, two of them with branches as well."""
    tactics = ("nvrtc", "cublaslt", "cudnn")
    options = dataclasses.replace(PARTED, tactics=tactics)
    real = whole_programs.choose_all

    def chosen_of(*given: Any, allowed: Any, **details: Any) -> Any:
        choices = real(*given, allowed=("nvrtc",), **details)
        for name, source in zip(choices.last, [item for item in allowed if item != "nvrtc"]):
            candidate, time = choices.last[name]
            choices.last[name] = dataclasses.replace(candidate, tactic=f"{source}.test"), time
        return choices

    monkeypatch.setattr(whole_programs, "choose_all", chosen_of)
    found = unmeasured_programs(parted, options, parted_records(parted, 5000.0))
    libraries = [item.libraries for item in found if not item.branches]
    assert libraries == [
        ("cublaslt", "cudnn"),
        ("cublaslt", "cudnn"),
        ("cublaslt",),
        ("cudnn",),
        (),
    ]
    assert [item.libraries for item in found if item.branches] == [("cublaslt", "cudnn"), ()]
    assert [item.branches for item in found] == [False] * 5 + [True] * 2
