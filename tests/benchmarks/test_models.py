"""The benchmark networks: the same weights each time, and outputs that depend on the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import batch_norm, models, weights

SMALL = ("shufflenet", "squeezenet")
LARGE = tuple(sorted(set(models.NAMES) - set(SMALL)))
EACH = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def run(path: Path, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("name", EACH)
def test_outputs_are_finite_and_depend_on_the_input_so_that_a_constant_answer_fails(
    name: str,
) -> None:
    path = models.load(name, None)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    runs = [session.run(None, models.inputs(name, 1, seed)) for seed in range(8)]
    for outputs in zip(*runs, strict=True):
        constant = sum(outputs) / len(outputs)
        assert models.error(outputs, outputs) == 0
        assert models.error([constant] * len(outputs), outputs) >= 1


@pytest.mark.parametrize("name", EACH)
def test_a_batch_of_two_gives_what_two_single_runs_give(name: str) -> None:
    feeds = [models.inputs(name, 1, seed) for seed in range(2)]
    both = {key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]}
    single = [run(models.load(name, 1), feed) for feed in feeds]
    for batch in (2, None):
        together = run(models.load(name, batch), both)
        for index, output in enumerate(together):
            found = [output[:1], output[1:]]
            assert models.error(found, [outputs[index] for outputs in single]) < 1e-3


@pytest.mark.parametrize("name", models.NAMES)
def test_a_fixed_batch_leaves_no_symbol_at_the_edges(name: str) -> None:
    model = models.graph(name)
    models.set_batch(model, 4)
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        assert sizes[0].dim_value == 4
        assert all(size.dim_value > 0 for size in sizes)


@pytest.mark.parametrize("name", models.NAMES)
def test_inputs_fit_the_graph_and_follow_the_seed(name: str) -> None:
    feeds = models.inputs(name, 2, 5)
    wanted = [value.name for value in models.graph(name).graph.input]
    assert sorted(feeds) == sorted(wanted)
    again, other = models.inputs(name, 2, 5), models.inputs(name, 2, 6)
    first = wanted[0]
    assert feeds[first].tobytes() == again[first].tobytes() != other[first].tobytes()


@pytest.mark.parametrize("name", models.NAMES)
def test_every_weight_has_a_kind_and_every_stored_graph_is_small(name: str) -> None:
    model = models.graph(name)
    reads = weights.readers(model.graph)
    found = [weights.kind_of(tensor, reads)[0] for tensor in weights.weights(model.graph)]
    assert "kernel" in found
    assert models.NETWORKS[name].graph.stat().st_size < 1_000_000


def test_weights_are_he_normal_and_the_same_on_every_call() -> None:
    model = models.graph("squeezenet")
    reads = weights.readers(model.graph)
    kernel = max(weights.weights(model.graph), key=lambda tensor: int(np.prod(tensor.dims)))

    def made(seed: str) -> weights.Float32:
        return weights.values(kernel, seed=seed, gain=2.0, reads=reads, statistics={})

    assert made("a").tobytes() == made("a").tobytes() != made("b").tobytes()
    fan_in = int(np.prod(kernel.dims[1:]))
    assert made("a").std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.02)


def test_the_stored_statistics_are_those_of_the_present_weights() -> None:
    stored = np.load(models.FOLDER / "shufflenet_batch_norm.npy").astype(np.float32)
    found = batch_norm.measured("shufflenet").astype(np.float32)
    assert found.shape == stored.shape
    deviation = np.sqrt(stored[1]) + 1e-3
    assert np.abs((found[0] - stored[0]) / deviation).max() < 0.01
    assert found[1] == pytest.approx(stored[1], rel=0.02, abs=1e-3)


def test_a_second_load_reuses_the_weights_of_the_first(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = models.load("squeezenet")
    assert private_cache in first.parents

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights were made again")

    monkeypatch.setattr(weights, "values", refuse)
    assert models.load("squeezenet") == first
    assert models.load("squeezenet", 2).parent == first.parent
    stored = onnx.load(first)
    assert not weights.weights(stored.graph)
    assert not [path for path in first.parent.parent.iterdir() if path.name.startswith(".")]


def test_an_unknown_network_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no network is called 'resnet'.*resnet50"):
        models.load("resnet")
