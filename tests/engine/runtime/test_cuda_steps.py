"""Steps of CUDA programs: libraries, clears, copies, choices, tensor maps; plans for a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.cuda.null_device import NullDevice
from engine.errors import KernelError, PlanCorruptError, TargetMismatchError
from engine.ir.sizes import ceildiv
from engine.ir.types import DType, TensorType
from engine.plan.device import (
    ClearStep,
    DeviceFunction,
    LaunchStep,
    LibraryStep,
    Null,
    Operand,
    Pointer,
    Scalar,
    TensorMap,
    TensorMapForm,
)
from engine.plan.plan import Plan
from engine.plan.structure import ChooseStep, Guard, HostStep, Program, Slot, Step
from engine.runtime.cuda_engine import CudaEngine
from engine.runtime.cuda_feeds import DeviceArray
from tests.cuda_programs import KERNELS, VECTOR, N, chain, program, scale, weight_slot
from tests.emulated_device import EmulatedDevice, image_of

W = np.array([1, 2, 3, 4], np.float32)
IMAGES = {kernel.entry: image_of(kernel) for kernel in KERNELS}


def engine_of(made: Program, device: Any) -> CudaEngine:
    return CudaEngine(made, {"w": W}, IMAGES, device=device)


def ports(*between: Slot) -> list[Slot]:
    return [Slot(VECTOR, "input", "x"), weight_slot(), *between, Slot(VECTOR, "output", "y")]


def vector(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size).astype(np.float32)


def test_a_chain_of_any_length_holds_two_tensors() -> None:
    with engine_of(chain(20), NullDevice()).create_context() as context:
        context.run({"x": vector(1000)})
        (bound,) = context._bound.values()
        arena = bound.layout.arena
        assert arena.nbytes == arena.lower_bound == 2 * 4096
        assert bound.layout.nbytes == 4 * 4096


def test_buffers_that_are_bound_take_no_memory_of_the_context() -> None:
    device = EmulatedDevice()
    with engine_of(chain(3), device).create_context() as context:
        context.run({"x": vector(1000)})
        stream = context.stream
        for name in ("x", "y"):
            array = DeviceArray(device.allocate(4000), (1000,), DType.FLOAT32, stream)
            context.bind(name, array)
        context.run({})
        assert [bound.layout.nbytes for bound in context._bound.values()] == [4 * 4096, 2 * 4096]


def library_program(call: dict[str, Any], workspace: int) -> Program:
    slots = ports(Slot(VECTOR, "arena"), Slot(TensorType(DType.UINT8, (512,)), "arena"))
    steps: list[Step] = [
        scale(0, 1, 2, 2.0, 0),
        LibraryStep("cublaslt", call, (Operand(2), Operand(4, writes=True)), (N,), workspace, 1),
        scale(4, 1, 4, 2.0, 2),
    ]
    return program(slots, steps)


def test_a_library_is_prepared_once_and_captured() -> None:
    device = NullDevice()
    made = engine_of(library_program({"workspace_nbytes": 512}, 3), device)
    with made.create_context() as one, made.create_context() as other:
        for context in (one, other):
            for _ in range(3):
                context.run({"x": vector(10)})
    assert device.counts["cublaslt prepare"] == 1
    assert (device.counts["cublaslt"], device.counts["captured cublaslt"]) == (6, 2)
    # A launch behind a library's call does not overlap with it.
    assert not any(launch.early for launch in device.launches)


def test_a_library_that_needs_more_workspace_than_planned_is_refused() -> None:
    made = library_program({"workspace_nbytes": 513}, 3)
    context = engine_of(made, NullDevice()).create_context()
    with pytest.raises(KernelError, match="needs 513 bytes of workspace, the plan gives 512"):
        context.run({"x": vector(10)})


def test_a_library_that_reaches_out_of_its_operands_is_refused() -> None:
    """A call comes from the plan file: what it touches must lie in the tensors it is given."""
    for reach in ([40, 40], [4, 0]):
        made = library_program({"operand_nbytes": reach}, 3)
        engine_of(made, NullDevice()).create_context().run({"x": vector(10)})
    for reach, said in (([41, 40], "reaches 11 elements"), ([40, 44], "reaches 11 elements")):
        context = engine_of(library_program({"operand_nbytes": reach}, 3), NullDevice())
        with pytest.raises(PlanCorruptError, match=said):
            context.create_context().run({"x": vector(10)})
    context = engine_of(library_program({"operand_nbytes": [4, 4, 4]}, 3), NullDevice())
    with pytest.raises(PlanCorruptError, match="too few operands"):
        context.create_context().run({"x": vector(10)})


def test_clears_and_copies_are_part_of_the_graph() -> None:
    slots = ports(Slot(VECTOR, "arena"), Slot(VECTOR, "arena"))
    steps: list[Step] = [
        HostStep("copy", {}, (0,), (2,), layer=0),
        ClearStep(3, 1),
        scale(2, 1, 3, 2.0, 2),
        HostStep("copy", {}, (3,), (4,), layer=3),
    ]
    device = EmulatedDevice()
    with engine_of(program(slots, steps), device).create_context() as context:
        for size in (9, 9, 9, 80):
            x = vector(size)
            found = context.run({"x": x})["y"]
            np.testing.assert_allclose(found, 2 * x + np.resize(W, size), rtol=1e-6)
    assert (device.counts["capture"], device.counts["graph launch"]) == (1, 2)


def test_a_choice_is_made_for_every_size() -> None:
    small: tuple[Step, ...] = (scale(0, 1, 2, 2.0, 0),)
    large: tuple[Step, ...] = (scale(0, 1, 2, 3.0, 1),)
    step = ChooseStep((((Guard("<=", N, 10),), small), ((), large)))
    with engine_of(program(ports(), [step]), EmulatedDevice()).create_context() as context:
        for size, factor in ((10, 2), (11, 3)):
            x = vector(size)
            found = context.run({"x": x})["y"]
            np.testing.assert_allclose(found, factor * x + np.resize(W, size), rtol=1e-5)


def mapped(sizes: Any, strides: Any, offset: Any = 0) -> Program:
    function = DeviceFunction("scale", "scale", 64, maps=(TensorMapForm("float16", (16, 64), 128),))
    matrix = TensorType(DType.FLOAT16, (N, 64))
    slots = [Slot(matrix, "input", "x"), weight_slot(), Slot(matrix, "output", "y")]
    step = LaunchStep(
        0,
        (ceildiv(N, 16), 1, 1),
        (
            TensorMap(0, offset, sizes, strides, 0),
            Scalar("i32", N),
            Null(),
            Pointer(2, writes=True),
        ),
        0,
    )
    return program(slots, [step], functions=[function])


def test_tensor_maps_are_encoded_once_per_shape_with_their_address() -> None:
    device = NullDevice()
    with engine_of(mapped((N, 64), (64, 1)), device).create_context() as context:
        for _ in range(3):
            context.run({"x": np.zeros((100, 64), np.float16)})
        assert device.counts["encode"] == 1
        box, size, null, _ = device.launches[0].arguments
        (bound,) = context._bound.values()
        assert box[0] == "map" and isinstance(box[1], bytes) and len(box[1]) == 128
        assert int.from_bytes(box[1][:8], "little") == bound.ports[0].address
        assert (size, null) == (("i32", 100), ("pointer", 0))


@pytest.mark.parametrize(
    ("sizes", "strides", "offset", "message"),
    [
        ((N + 1, 64), (64, 1), 0, "reaches 6464 elements from byte 0"),
        ((N, 64), (72, 1), 0, "reaches 7192 elements"),
        ((N, 64), (64, 1), 8, "reaches 6400 elements from byte 16"),
        ((N, 64), (0 - N, 1), 0, "negative stride"),
        ((N, 60), (60, 1), 0, "stride of 120 bytes"),
    ],
)
def test_no_tensor_map_leaves_its_tensor(
    sizes: Any, strides: Any, offset: Any, message: str
) -> None:
    context = engine_of(mapped(sizes, strides, offset), NullDevice()).create_context()
    with pytest.raises(PlanCorruptError, match=message):
        context.run({"x": np.zeros((100, 64), np.float16)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (1 << 31, 1, 1)}, "a grid of"),
        ({"grid": (1, N * 1000, 1)}, "a grid of"),
        ({"grid": (N - 101, 1, 1)}, "a grid of"),
        ({"parameters": (Scalar("i32", N * (1 << 30)),)}, "does not fit into i32"),
    ],
)
def test_launches_that_no_device_takes_are_refused(change: Any, message: str) -> None:
    whole = chain(1)
    (step,) = whole.steps
    assert isinstance(step, LaunchStep)
    context = engine_of(
        replace(whole, steps=(replace(step, **change),)), NullDevice()
    ).create_context()
    with pytest.raises(PlanCorruptError, match=message):
        context.run({"x": vector(100)})


def plan_of(device: NullDevice, **target: Any) -> Plan:
    images = {name: np.frombuffer(image, np.uint8) for name, image in IMAGES.items()}
    described = {**device.target.to_json(), **target}
    return Plan(chain(), {"w": W}, target=described, images=images)


def test_a_plan_is_saved_and_loaded_for_a_gpu(tmp_path: Path) -> None:
    device = EmulatedDevice()
    plan_of(device).save(tmp_path / "chain.engine")
    net = engine.load(tmp_path / "chain.engine", device=device)
    assert isinstance(net, CudaEngine)
    assert (net.input_names, net.output_names) == (["x"], ["y"])
    assert str(net.inputs[0]).startswith("x: float32[N]") and net.profile["N"] == (0, (100,), 1000)
    x = vector(8)
    expected = x
    for _ in range(3):
        expected = 2 * expected + np.resize(W, 8)
    np.testing.assert_allclose(net({"x": x})["y"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("built", "runs"), [([9, 0], True), ([8, 0], False), ([10, 0], False), ([8, 9], False)]
)
def test_a_plan_for_another_gpu_is_refused(built: list[int], runs: bool) -> None:
    device = EmulatedDevice()
    plan = plan_of(device, capability=built)
    if runs:
        engine.load(plan, device=device)
        return
    with pytest.raises(TargetMismatchError, match=r"built for compute capability .* has 9\.0"):
        engine.load(plan, device=device)


def test_a_plan_without_its_machine_code_is_refused() -> None:
    with pytest.raises(PlanCorruptError, match="lacks the machine code 'accumulate'"):
        CudaEngine(chain(), {"w": W}, {"scale": b""}, device=NullDevice())
