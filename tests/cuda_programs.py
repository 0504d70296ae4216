"""Small CUDA programs made by hand, for tests of the runtime on every device there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.cuda.kernel import DeviceKernel
from engine.ir.sizes import Dim, ceildiv, symbol
from engine.ir.types import DType, TensorType
from engine.plan.checking import check_program
from engine.plan.device import DeviceFunction, LaunchStep, Parameter, Pointer, Scalar
from engine.plan.structure import HostStep, Layer, Program, Slot, Step, Symbol, Weight

WAIT = """
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
"""
INDEX = "    int i = blockIdx.x * 64 + threadIdx.x;\n"


def kernel(entry: str, parameters: str, body: str, *, waits: bool = True) -> DeviceKernel:
    head = f'extern "C" __global__ void __launch_bounds__(64) {entry}({parameters}) {{\n{INDEX}'
    return DeviceKernel("nvrtc", entry, head + WAIT + body + "\n}\n", 64, waits=waits)


#: y = a x + w[i % 4]
SCALE = kernel(
    "scale",
    "const float *x, const float *w, float *y, int n, float a",
    "    if (i < n) y[i] = a * x[i] + w[i % 4];",
)
#: state += x
ACCUMULATE = kernel(
    "accumulate", "const float *x, float *state, int n", "    if (i < n) state[i] += x[i];"
)
#: y = how many blocks there are, counted in memory that begins and ends at zero
COUNT = kernel(
    "count",
    "const float *x, int *counter, float *y, int n",
    """    __shared__ int last;
    if (threadIdx.x == 0) last = atomicAdd(counter, 1) == int(gridDim.x) - 1;
    __syncthreads();
    if (last) {
        for (int j = threadIdx.x; j < n; j += 64) y[j] = float(*counter);
        __syncthreads();
        if (threadIdx.x == 0) *counter = 0;
    }""",
)
#: Writes far outside of everything, or, on a processor, nothing.
FAULT = kernel(
    "fault",
    "const float *x, float *y, int n",
    """#ifdef __CUDACC__
    *(volatile float *)(16) = x[0];
#endif
    if (i < n) y[i] = x[i];""",
)
KERNELS = (SCALE, ACCUMULATE, COUNT, FAULT)
FUNCTIONS = tuple(DeviceFunction(k.entry, k.entry, k.threads, waits=k.waits) for k in KERNELS)

N = symbol("N")
VECTOR = TensorType(DType.FLOAT32, (N,))
GRID = (ceildiv(N, 64), 1, 1)


def launch(which: DeviceKernel, layer: int, *parameters: Parameter) -> LaunchStep:
    return LaunchStep(KERNELS.index(which), GRID, parameters, layer)


def scale(source: int, weight: int, to: int, factor: float, layer: int) -> LaunchStep:
    return launch(
        SCALE,
        layer,
        Pointer(source),
        Pointer(weight),
        Pointer(to, writes=True),
        Scalar("i32", N),
        Scalar("f32", factor),
    )


def program(
    slots: Sequence[Slot],
    steps: Sequence[Step],
    *,
    greatest: Dim | None = 1000,
    functions: Sequence[DeviceFunction] = FUNCTIONS,
) -> Program:
    """A checked program over float32[N] tensors; a weight "w" of four floats is known."""
    found = tuple(slots)
    count = 1 + max(getattr(step, "layer", 1) for step in steps)
    made = Program(
        symbols=(Symbol("N", 0, (100,), greatest, ("input", "x", 0)),),
        slots=found,
        inputs=tuple(i for i, slot in enumerate(found) if slot.place == "input"),
        outputs=tuple(i for i, slot in enumerate(found) if slot.place == "output"),
        kernels=(),
        steps=tuple(steps),
        layers=tuple(Layer(f"layer {i}", "Test", (), "nvrtc.test") for i in range(count)),
        weights=(Weight("w", DType.FLOAT32, (4,), "w"),),
        functions=tuple(functions),
    )
    check_program(made)
    return made


def weight_slot() -> Slot:
    return Slot(TensorType(DType.FLOAT32, (4,)), "weight", "w")


def chain(length: int = 3, greatest: Dim | None = 1000) -> Program:
    """y = 2 (2 (2 x + w) + w) + w, in so many launches, through the arena."""
    slots = [Slot(VECTOR, "input", "x"), weight_slot()]
    steps: list[Step] = []
    source = 0
    for position in range(length):
        last = position + 1 == length
        slots.append(Slot(VECTOR, "output", "y") if last else Slot(VECTOR, "arena"))
        steps.append(scale(source, 1, len(slots) - 1, 2.0, position))
        source = len(slots) - 1
    return program(slots, steps, greatest=greatest)


def with_host_step() -> Program:
    """y = 3 neg(2 x + w) + w, the negation in Python."""
    negation = {"domain": "", "name": "Neg", "since": 1, "attributes": {}}
    slots = [
        Slot(VECTOR, "input", "x"),
        weight_slot(),
        Slot(VECTOR, "arena"),
        Slot(VECTOR, "arena"),
        Slot(VECTOR, "output", "y"),
    ]
    steps: list[Step] = [
        scale(0, 1, 2, 2.0, 0),
        HostStep("meaning", negation, (2,), (3,), layer=1),
        scale(3, 1, 4, 3.0, 2),
    ]
    return program(slots, steps)


def with_state() -> Program:
    """The state takes x up in place; y = 2 state + w."""
    slots = [
        Slot(VECTOR, "input", "x"),
        weight_slot(),
        Slot(VECTOR, "input", "past"),
        Slot(VECTOR, "output", "present", alias=2),
        Slot(VECTOR, "output", "y"),
    ]
    steps: list[Step] = [
        launch(ACCUMULATE, 0, Pointer(0), Pointer(3, writes=True), Scalar("i32", N)),
        scale(3, 1, 4, 2.0, 1),
    ]
    return program(slots, steps)


def with_counters() -> Program:
    """y = the number of blocks of 64 in x, by counters that two launches share."""
    slots = [
        Slot(VECTOR, "input", "x"),
        Slot(TensorType(DType.INT32, (1,)), "zeros"),
        Slot(VECTOR, "arena"),
        Slot(VECTOR, "output", "y"),
    ]
    steps: list[Step] = []
    for source, to in ((0, 2), (2, 3)):
        parameters = (
            Pointer(source),
            Pointer(1, writes=True),
            Pointer(to, writes=True),
            Scalar("i32", N),
        )
        steps.append(launch(COUNT, len(steps), *parameters))
    return replace(program(slots, steps), weights=())


def with_fault() -> Program:
    """A kernel that faults between two that do not."""
    slots = [
        Slot(VECTOR, "input", "x"),
        weight_slot(),
        Slot(VECTOR, "arena"),
        Slot(VECTOR, "arena"),
        Slot(VECTOR, "output", "y"),
    ]
    steps: list[Step] = [
        scale(0, 1, 2, 2.0, 0),
        launch(FAULT, 1, Pointer(2), Pointer(3, writes=True), Scalar("i32", N)),
        scale(3, 1, 4, 2.0, 2),
    ]
    return program(slots, steps)


def side_by_side(first: int = 0, second: int = 1, *, host: bool = False) -> Program:
    """Two branches from 2 x + w, three scalings by 2 and one by 5, that are added and scaled by 3.

    ``first`` and ``second`` are their lanes; with ``host`` the sum is copied once.
    """
    slots = [Slot(VECTOR, "input", "x"), weight_slot(), *[Slot(VECTOR, "arena")] * 6]
    slots.append(Slot(VECTOR, "output", "y"))
    lanes = [0, first, first, second, first, 0, 0]
    steps: list[LaunchStep] = [
        scale(0, 1, 2, 2.0, 0),
        scale(2, 1, 3, 2.0, 1),
        scale(3, 1, 4, 2.0, 2),
        scale(2, 1, 5, 5.0, 3),
        scale(4, 1, 6, 2.0, 4),
        launch(ACCUMULATE, 5, Pointer(5), Pointer(6, writes=True), Scalar("i32", N)),
        scale(6, 1, 8, 3.0, 6),
    ]
    found: list[Step] = [replace(step, lane=lane) for step, lane in zip(steps, lanes)]
    if host:
        copied = [HostStep("copy", {}, (6,), (7,), layer=7), scale(7, 1, 8, 3.0, 8)]
        found[-1:] = copied
    return program(slots, found)


def expected_side_by_side(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What `side_by_side` computes."""

    def scaled(value: np.ndarray, factor: float) -> np.ndarray:
        return np.float32(factor) * value + np.resize(weight, x.size)

    source = scaled(x, 2)
    long = scaled(scaled(scaled(source, 2), 2), 2)
    return scaled(long + scaled(source, 5), 3)


def two_chains(length: int, lane: int, *, greatest: Dim | None = 1000) -> Program:
    """The sum of two chains of so many launches from x, the second of them on a lane."""
    slots = [Slot(VECTOR, "input", "x"), weight_slot()]
    steps: list[Step] = []
    ends = []
    for on in (0, lane):
        source = 0
        for _ in range(length):
            slots.append(Slot(VECTOR, "arena"))
            step = scale(source, 1, len(slots) - 1, 0.5, len(steps))
            steps.append(replace(step, lane=on))
            source = len(slots) - 1
        ends.append(source)
    slots.append(Slot(VECTOR, "output", "y"))
    steps.append(
        launch(
            ACCUMULATE,
            2 * length,
            Pointer(ends[1]),
            Pointer(ends[0], writes=True),
            Scalar("i32", N),
        )
    )
    steps.append(scale(ends[0], 1, len(slots) - 1, 1.0, 2 * length + 1))
    return program(slots, steps, greatest=greatest)


def blocks(count: int, lane: int, *, greatest: Dim | None = 1000) -> Program:
    """Blocks one after the other, each of three scalings beside one on a lane, and their sum."""
    slots = [Slot(VECTOR, "input", "x"), weight_slot()]
    steps: list[Step] = []

    def scaled(source: int, factor: float, on: int = 0) -> int:
        slots.append(Slot(VECTOR, "arena"))
        step = scale(source, 1, len(slots) - 1, factor, len(steps))
        steps.append(replace(step, lane=on))
        return len(slots) - 1

    source = scaled(0, 0.5)
    for _ in range(count):
        long = scaled(scaled(scaled(source, 0.5), 0.5), 0.5)
        short = scaled(source, 0.25, lane)
        sizes = Scalar("i32", N)
        steps.append(
            launch(ACCUMULATE, len(steps), Pointer(short), Pointer(long, writes=True), sizes)
        )
        source = long
    slots.append(Slot(VECTOR, "output", "y"))
    steps.append(scale(source, 1, len(slots) - 1, 1.0, len(steps)))
    return program(slots, steps, greatest=greatest)
