"""`enginefarm bench`: times that add up, layers that are those of the plan, a peer in turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.plan.plan import open_plan
from tests.workers.real_engine import RealLine
from workers.bench_timing import Length, Summary, quantile, take_turns


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> RealLine:
    return RealLine(tmp_path_factory.mktemp("bench"))


def test_latencies_are_ordered_and_counted(line: RealLine, tmp_path: Path) -> None:
    export = tmp_path / "bench.json"
    words = ("--iterations", 12, "--batch", 3, "--contexts", 2, "--export", export)
    found = line.outcome("bench", line.plan, *words)
    latency = found["latency"]
    assert latency["runs"] == 24
    order = ("least", "median", "p90", "p99")
    assert sorted(order, key=latency.__getitem__) == list(order)
    assert 0 < latency["per_second"] <= 2.1 / latency["least"]
    assert found["inputs"] == {"x": [3, 3, 16, 16]}
    assert json.loads(export.read_bytes()) == found


def test_layers_are_those_of_the_plan_and_their_shares_add_up(line: RealLine) -> None:
    layers = line.outcome("bench", line.plan, "--iterations", 2, "--layers")["layers"]
    known = {layer.name: layer.tactic for layer in open_plan(line.plan).program.layers}
    assert {item["layer"]: item["tactic"] for item in layers} == known
    assert sum(item["share"] for item in layers) == pytest.approx(1)
    work = [item for item in layers if item["tactic"].startswith("c.")]
    assert work and all(item["flops"] >= 0 and item["nbytes"] > 0 for item in work)


def test_a_peer_is_measured_in_the_same_run(line: RealLine) -> None:
    words = ("--iterations", 8, "--rounds", 2, "--peer", "onnxruntime", "--threads", 1)
    peer = line.outcome("bench", line.plan, *words, "--model", line.network)["peer"]
    assert (peer["name"], peer["rounds"], peer["threads"]) == ("onnxruntime", 2, 1)
    assert peer["engine_median"] > 0 and peer["peer_median"] > 0 and peer["speed_ratio"] > 0
    assert "--model" in line.refused("bench", line.plan, *words, code=2)


def test_the_mode_says_whether_kernels_are_compiled(line: RealLine) -> None:
    found = line.outcome("bench", line.plan, "--iterations", 1, "--numpy")
    assert found["mode"] == "numpy"


def test_text_for_people_has_the_same_numbers(line: RealLine) -> None:
    out, _ = line.run("bench", line.plan, "--iterations", 3, "--layers")
    assert out.startswith("3 runs, ")
    assert "GFLOP/s" in out


def test_quantiles_lie_between_their_neighbours() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2
    assert quantile([1.0, 2.0], 0.9) == pytest.approx(1.9)
    assert quantile([5.0], 0.99) == 5
    summary = Summary.of([3.0, 1.0, 2.0], wall=6.0)
    assert (summary.least, summary.median, summary.per_second) == (1, 2, 0.5)


def test_turns_begin_with_another_call_each_round() -> None:
    seen: list[str] = []
    calls = (lambda: seen.append("a"), lambda: seen.append("b"))
    medians = take_turns(calls, 2, Length(iterations=2, warmup=0))
    assert "".join(seen) == "aabb" + "bbaa"
    assert [len(item) for item in medians] == [2, 2]
