"""Meanings on the device: offered after a trial, run between graphs, nothing moved to the host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cuda.device import open_device
from engine.cuda.null_device import NullDevice
from engine.errors import DeviceMemoryError, KernelError, MissingExtraError, PlanCorruptError
from engine.ir.graph import Graph, Node
from engine.ir.infer import infer_node
from engine.ir.types import DType, TensorType
from engine.lower.lowering import lower
from engine.ops.operator import Operator, find
from engine.plan.operators import operator_to_json
from engine.plan.plan import Plan, open_plan
from engine.plan.report import plan_text, program_text, summary
from engine.plan.structure import HostStep, Program, Slot, Step
from engine.runtime.cuda_engine import CudaEngine
from engine.tactics import Refusal, candidates, cupy_meaning, restore
from engine.tactics.cupy_meaning import CupyMeaning, difference
from engine.target import describe
from tests.cuda_programs import KERNELS, VECTOR, N, program, scale, weight_slot
from tests.cupy_shim import OutOfMemoryError, installed
from tests.emulated_device import EmulatedDevice, image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}
TARGET = describe("cuda:sm90")
TACTIC = CupyMeaning()


def node_of(op: Operator, *kinds: TensorType) -> Node:
    graph = Graph("layer")
    for place, kind in enumerate(kinds):
        graph.inputs.append(graph.value(f"x{place}", kind))
    operands = [value.operand() for value in graph.inputs]
    outputs = [graph.value(f"y{i}", kind) for i, kind in enumerate(op.infer(*operands))]
    node = graph.append(Node(op, list(graph.inputs), outputs, name="layer"))
    graph.outputs, graph.output_names = outputs, [value.name for value in outputs]
    infer_node(graph, node)
    return node


def tensor(*dims: Any, dtype: DType = DType.FLOAT32) -> TensorType:
    return TensorType(dtype, dims)


CUMSUM = find("", "CumSum", 14)()
SOFTMAX = find("", "Softmax", 13)(axis=0)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A GPU that can be asked, with CuPy."""
    monkeypatch.setattr(cupy_meaning, "why_no_device", lambda target: "")
    monkeypatch.setattr("engine.cuda.device.open_device", lambda index: NullDevice())
    monkeypatch.setattr(cupy_meaning, "_ANSWERS", {})
    return installed(monkeypatch)


def reason(node: Node, target: Any = TARGET) -> str:
    answer = TACTIC.offers(node, {"N": 5}, target)
    assert isinstance(answer, Refusal)
    return answer.reason


def test_a_meaning_that_gives_the_same_on_the_device_is_offered(streams: list[int]) -> None:
    node = node_of(SOFTMAX, tensor(4, N))
    (candidate,) = TACTIC.offers(node, {"N": 5}, TARGET)  # type: ignore[misc]
    assert (candidate.tactic, dict(candidate.choice)) == ("cupy.meaning", {})
    offered, _ = candidates(node, ("cupy", "numpy"), {"N": 5}, TARGET)
    assert [item.tactic for item in offered] == ["cupy.meaning", "numpy.meaning"]


def test_a_trial_is_made_once_for_equal_layers(
    streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TACTIC.offers(node_of(SOFTMAX, tensor(4, 6)), {}, TARGET)
    monkeypatch.setattr(cupy_meaning, "_trial", lambda *_: pytest.fail("tried again"))
    assert TACTIC.offers(node_of(SOFTMAX, tensor(4, 6)), {}, TARGET)


def test_a_function_that_cupy_lacks_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, streams: list[int]
) -> None:
    installed(monkeypatch, missing=frozenset({"exp"}))
    found = reason(node_of(SOFTMAX, tensor(4, 6)))
    assert "Softmax by cupy.meaning failed on the GPU: TypeError" in found


def test_a_meaning_that_asks_for_an_array_of_the_host_is_refused_in_its_words(
    monkeypatch: pytest.MonkeyPatch, streams: list[int]
) -> None:
    monkeypatch.setattr(type(SOFTMAX), "meaning", lambda self, x: np.asarray(x))
    found = reason(node_of(SOFTMAX, tensor(4, 6)))
    assert "Implicit conversion to a NumPy array is not allowed" in found
    monkeypatch.setattr(type(SOFTMAX), "meaning", lambda self, x: np.zeros((2, 3), np.float32))
    found = reason(node_of(SOFTMAX, tensor(2, 3)))
    assert "its output 0 is ndarray on the host" in found


def test_a_wrong_result_is_a_reason(monkeypatch: pytest.MonkeyPatch, streams: list[int]) -> None:
    installed(monkeypatch, changed={"sum": lambda x, **more: np.sum(x, **more) * np.float32(1.01)})
    assert "is not what NumPy gives: the error is" in reason(node_of(SOFTMAX, tensor(4, 6)))


@pytest.mark.parametrize(
    ("op", "kind", "words"),
    [
        (SOFTMAX, tensor(4, 6, dtype=DType.BFLOAT16), "does not compute with bfloat16"),
        (find("", "RandomNormalLike", 1)(), tensor(4), "drawn by NumPy"),
    ],
)
def test_what_no_device_runs_is_refused_without_a_trial(
    op: Operator, kind: TensorType, words: str
) -> None:
    node = node_of(op, kind)
    assert words in reason(node)
    assert restore(node, "cupy.meaning", {}, TARGET) is None


def test_a_processor_is_refused_and_no_device_is_a_reason() -> None:
    node = node_of(SOFTMAX, tensor(4, 6))
    assert reason(node, describe("cpu")) == "the target is no GPU"
    assert "no device to ask" in reason(node, describe("cuda:sm80"))


def test_missing_cupy_is_a_reason(monkeypatch: pytest.MonkeyPatch, streams: list[int]) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'enginefarm[cupy]'" in reason(node_of(SOFTMAX, tensor(4, 6)))


def test_a_plan_is_assembled_without_a_device_and_says_where_it_runs(tmp_path: Path) -> None:
    node = node_of(SOFTMAX, tensor(4, 6))
    candidate = restore(node, "cupy.meaning", {}, TARGET)
    assert candidate is not None and candidate.tactic == "cupy.meaning"
    graph = Graph("layer")
    graph.nodes, graph.inputs = [node], list(node.inputs)  # type: ignore[arg-type]
    graph.outputs, graph.output_names = list(node.outputs), ["y"]
    lowered = lower(graph, (), {"layer": (candidate, 7)})
    plan = Plan(lowered.program, {}, TARGET.to_json())
    plan.save(tmp_path / "layer.engine")
    again = open_plan(tmp_path / "layer.engine")
    assert again.program == lowered.program
    assert again.requires == ["cupy"]
    assert summary(again)["steps"] == {"kernel": 0, "host": 0, "choice": 0, "cupy": 1}
    assert "%1 = Softmax(%0) by CuPy on the device, between graphs" in program_text(again.program)
    assert "0 kernel, 0 host, 1 by CuPy, 0 choices" in plan_text(again)


def through(op: Operator, *, weight: bool = False) -> Program:
    """y = 2 op(2 x + w) + w, or with the weight as a second input of op."""
    ports = [
        Slot(VECTOR, "input", "x"),
        weight_slot(),
        *(Slot(VECTOR, "arena"), Slot(VECTOR, "arena"), Slot(VECTOR, "output", "y")),
    ]
    inputs = (2, 1) if weight else (2,)
    steps: list[Step] = [
        scale(0, 1, 2, 2.0, 0),
        HostStep("cupy", operator_to_json(op), inputs, (3,), layer=1),
        scale(3, 1, 4, 2.0, 2),
    ]
    return program(ports, steps)


def engine_of(made: Program, device: Any) -> CudaEngine:
    return CudaEngine(made, {"w": W}, IMAGES, device=device)


def test_the_data_stay_on_the_device_and_graphs_end_around_the_step(streams: list[int]) -> None:
    device = EmulatedDevice(eager=True)
    x = np.arange(12, dtype=np.float32)
    first = 2 * x + np.resize(W, 12)
    expected = 2 * np.negative(first) + np.resize(W, 12)
    with engine_of(through(find("", "Neg", 13)()), device).create_context() as context:
        for _ in range(3):
            with device.counting() as counts:
                found = context.run({"x": x})["y"]
            np.testing.assert_allclose(found, expected)
            # One array in, one array out, and nothing between.
            assert (counts["upload"], counts["download"]) == (1, 1)
            x = x.copy()
        (bound,) = context._bound.values()
        assert bound.graphs == 2
        assert set(streams) == {context.stream.handle}
        context.synchronous = True
        np.testing.assert_allclose(context.run({"x": x})["y"], expected)


def test_weights_of_such_a_step_lie_on_the_device(streams: list[int]) -> None:
    made = engine_of(through(find("", "Add", 14)(), weight=True), EmulatedDevice(eager=True))
    assert made.device_weights == ["w"]
    x = np.arange(4, dtype=np.float32)
    found = made({"x": x})["y"]
    np.testing.assert_allclose(found, 2 * (2 * x + W + W) + W)


def test_missing_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    made = engine_of(through(find("", "Neg", 13)()), EmulatedDevice(eager=True))
    with pytest.raises(MissingExtraError, match=r"pip install 'enginefarm\[cupy\]'"):
        made({"x": np.ones(4, np.float32)})


def test_failures_of_a_step_name_its_layer(
    monkeypatch: pytest.MonkeyPatch, streams: list[int]
) -> None:
    op = find("", "Neg", 13)()

    def full(self: Operator, x: Any) -> Any:
        raise OutOfMemoryError("Out of memory allocating 48 bytes")

    made = engine_of(through(op), EmulatedDevice(eager=True))
    for meaning, kind, words in (
        (lambda self, x: x[:2], KernelError, r"made float32\[2\] as output 0, expected float32\[4"),
        (lambda self, x: np.asarray(x), KernelError, "'layer 1' .* failed on the GPU: TypeError"),
        (full, DeviceMemoryError, "'layer 1' .*too little free memory on the GPU"),
    ):
        monkeypatch.setattr(type(op), "meaning", meaning)
        with pytest.raises(kind, match=words):
            made({"x": np.ones(4, np.float32)})


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (Slot(VECTOR, "host"), "is no tensor in memory"),
        (Slot(TensorType(DType.BFLOAT16, (N,)), "arena"), "has elements of bfloat16"),
        (Slot(TensorType(DType.FLOAT8E5M2, (N,)), "arena"), "has elements of float8e5m2"),
    ],
)
def test_a_plan_with_an_impossible_step_is_refused(slot: Slot, words: str) -> None:
    made = through(find("", "Neg", 13)())
    slots = [*made.slots[:3], slot, *made.slots[4:]]
    with pytest.raises(PlanCorruptError, match=words):
        program(slots, made.steps[:2])


def test_differences_are_told_from_rounding() -> None:
    x = np.linspace(-3, 3, 100, dtype=np.float32)
    assert difference(x * np.float32(1 + 1e-6), x) == ""
    assert "error" in difference(x + np.float32(0.01), x)
    assert "expected float32[100]" in difference(x[:1], x)
    assert "1 of 2" in difference(np.array([1, 2]), np.array([1, 3]))
    holes = np.array([np.nan, np.inf, 1], np.float32)
    assert difference(holes.copy(), holes) == ""
    assert "other places" in difference(np.array([0, np.inf, 1], np.float32), holes)
    assert difference(np.zeros(0, np.float32), np.zeros(0, np.float32)) == ""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("op", "kinds"),
    [
        (SOFTMAX, [tensor(64, 33)]),
        (CUMSUM, [tensor(7, 9, dtype=DType.FLOAT64), tensor(dtype=DType.INT64)]),
        (find("", "Trilu", 14)(), [tensor(2, 5, 6, dtype=DType.INT64)]),
        (find("", "ArgMax", 13)(axis=1), [tensor(3, 40)]),
    ],
)
def test_cupy_itself_gives_what_numpy_gives(op: Operator, kinds: list[TensorType]) -> None:
    pytest.importorskip("cupy")
    node = node_of(op, *kinds)
    target = describe("cuda")
    answer = TACTIC.offers(node, {}, target)
    if isinstance(answer, Refusal):  # said by CuPy itself, never a wrong result or a lost device
        assert "is not what NumPy gives" not in answer.reason
        assert op.name not in ("Softmax",), answer.reason
        return
    graph = Graph("layer")
    graph.nodes, graph.inputs = [node], list(node.inputs)  # type: ignore[arg-type]
    graph.outputs, graph.output_names = list(node.outputs), ["y"]
    lowered = lower(graph, (), {"layer": (answer[0], 0)})
    made = CudaEngine(lowered.program, {}, {}, device=open_device(0))
    generator = np.random.default_rng(3)
    feeds = {
        value.name: np.asarray(
            generator.integers(0, 2, value.tensor.dims)
            if value.tensor.dtype is DType.INT64
            else generator.standard_normal(value.tensor.dims)
        ).astype(value.tensor.dtype.numpy)
        for value in graph.inputs
    }
    expected = op.meaning(*feeds.values())
    for _ in range(3):
        found = made(feeds)["y"]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
