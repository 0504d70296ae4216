"""Whether the parts of a program fit together: indices, definitions before uses, types, bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import PlanCorruptError
from engine.ir.sizes import evaluate, symbols
from engine.ir.types import TensorType
from engine.ops.control import BatchedScan, ControlOperator, If, Loop
from engine.ops.flex_attention import FlexAttention
from engine.plan.accesses import step_accesses
from engine.plan.device import LANES, LaunchStep, Scalar, TensorMap
from engine.plan.device_json import DeviceStep
from engine.plan.expressions import LARGEST, LARGEST_PRODUCT, interval
from engine.plan.fields import brief, refuse
from engine.plan.guards import flat_steps, hold
from engine.plan.lanes import check_order, lane_of, order_steps
from engine.plan.operators import read_operator
from engine.plan.recipes import check_recipe
from engine.plan.slots import Storage, check_slots, is_fixed, slot_symbols
from engine.plan.structure import ChooseStep, Guard, HostStep, KernelStep, Program, Step, Weight
from engine.plan.symbols import Points, check_symbols

__all__ = ["check_program"]


@dataclass(slots=True)
class _State:
    """What is known at one point of the walk over the steps."""

    program: Program
    weights: Mapping[str, Weight]
    storage: Storage
    points: Points
    known: set[str]
    filled: set[int] = field(default_factory=set)  # roots that hold something
    writer: dict[int, str] = field(default_factory=dict)  # slot to "host" or "kernel"
    updated: set[int] = field(default_factory=set)  # inputs that hold their new value

    def branch(self, points: Points) -> _State:
        """A copy for one case of a choice."""
        return _State(
            self.program,
            self.weights,
            self.storage,
            points,
            set(self.known),
            set(self.filled),
            dict(self.writer),
            set(self.updated),
        )


def check_program(program: Program) -> None:
    """Refuse, with PlanCorruptError, a program that contradicts itself or its bounds."""
    weights = {weight.name: weight for weight in program.weights}
    if len(weights) != len(program.weights):
        refuse("program.weights", "two weights have the same name")
    for index, weight in enumerate(program.weights):
        check_recipe(weight.recipe, len(weight.sources), f"program.weights[{index}].recipe")
    try:
        _check(program, "program", weights, top=True)
    except KeyError as error:
        raise PlanCorruptError(f"the plan uses the undeclared symbol {error}") from None
    except (OverflowError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise PlanCorruptError(f"the plan's sizes cannot be computed: {error}") from None


def _check(program: Program, where: str, weights: Mapping[str, Weight], *, top: bool) -> None:
    if program.weights and not top:
        refuse(f"{where}.weights", "a body has weights of its own")
    points = check_symbols(program, f"{where}.symbols", top=top)
    storage = check_slots(program, f"{where}.slots", weights, points, top=top)
    known = {symbol.name for symbol in program.symbols if symbol.source[0] == "input"}
    state = _State(program, weights, storage, points, known)
    for index, slot in enumerate(program.slots):
        if slot.place in ("input", "weight", "zeros"):
            state.filled.add(storage.roots[index])
    for index in program.inputs:
        _need(state, slot_symbols(program.slots[index]), f"{where}.inputs")
    _walk(program.steps, f"{where}.steps", state)
    _check_lanes(program, points)
    for index in program.outputs:
        _readable(state, index, f"{where}.outputs")


def _check_lanes(program: Program, points: Points) -> None:
    """At every point of the profile, steps that run side by side touch different memory."""
    if not _any_lanes(program.steps):
        return
    for point in points:
        try:
            steps = list(flat_steps(program.steps, point))
            order = order_steps(program, steps, point)
        except KeyError:  # sizes that only a run settles
            continue
        if order is not None:
            check_order(program, steps, point, order)


def _any_lanes(steps: Sequence[Step]) -> bool:
    return any(
        any(_any_lanes(chosen) for _, chosen in step.cases)
        if isinstance(step, ChooseStep)
        else lane_of(step) > 0
        for step in steps
    )


def _walk(steps: Sequence[Step], where: str, state: _State) -> None:
    for index, step in enumerate(steps):
        at = f"{where}[{index}]"
        if isinstance(step, ChooseStep):
            _choose_step(step, at, state)
            continue
        if not 0 <= step.layer < len(state.program.layers):
            refuse(f"{at}.layer", f"there is no layer {step.layer}")
        if isinstance(step, KernelStep):
            _kernel_step(step, at, state)
        elif isinstance(step, HostStep):
            _host_step(step, at, state)
        else:
            if not 0 <= step.lane < LANES:
                refuse(f"{at}.lane", f"there is no lane {step.lane}, only {LANES}")
            _device_step(step, at, state)


def _need(state: _State, names: Iterable[str], where: str) -> None:
    for name in sorted(names):
        if name not in state.known:
            refuse(where, f"the symbol {brief(name)} has no value yet")


def _in_range(state: _State, slot: int, where: str) -> None:
    if not 0 <= slot < len(state.program.slots):
        refuse(where, f"there is no slot {slot}")


def _readable(state: _State, slot: int, where: str) -> None:
    _in_range(state, slot, where)
    _need(state, slot_symbols(state.program.slots[slot]), where)
    if state.storage.roots[slot] not in state.filled:
        refuse(where, f"slot {slot} is read before anything was written to it")
    if state.storage.roots[slot] in state.updated and not state.storage.writable[slot]:
        refuse(where, f"slot {slot} is read after an output has updated it")


def _write(state: _State, slot: int, where: str, writer: str) -> None:
    _in_range(state, slot, where)
    _need(state, slot_symbols(state.program.slots[slot]), where)
    if not state.storage.writable[slot]:
        refuse(where, f"slot {slot} may not be written")
    if "host" in (state.writer.get(slot, ""), writer) and slot in state.writer:
        refuse(where, f"slot {slot} is written twice")
    state.writer[slot] = writer
    state.filled.add(state.storage.roots[slot])
    if state.program.slots[state.storage.roots[slot]].place == "input":
        state.updated.add(state.storage.roots[slot])


def _choose_step(step: ChooseStep, where: str, state: _State) -> None:
    if not step.cases or step.cases[-1][0]:
        refuse(where, "the last case of a choice must have no guards")
    ends, points = [], state.points
    for index, (guards, steps) in enumerate(step.cases):
        at = f"{where}.cases[{index}]"
        if not guards and index + 1 < len(step.cases):
            refuse(at, "only the last case may be without guards")
        _need(state, (name for guard in guards for name in _guard_symbols(guard)), at)
        inside = [point for point in points if _holds(guards, point)]
        points = [point for point in points if point not in inside]
        branch = state.branch(inside)
        _walk(steps, f"{at}.steps", branch)
        ends.append(branch)
    for end in ends:
        state.writer.update(end.writer)
        state.updated |= end.updated
    state.filled = set.intersection(*(end.filled for end in ends))
    state.known = set.intersection(*(end.known for end in ends))


def _guard_symbols(guard: Guard) -> frozenset[str]:
    return symbols(guard.left) | symbols(guard.right)


def _holds(guards: Sequence[Guard], point: Mapping[str, int]) -> bool:
    """Whether the guards hold at a point; a symbol without a value there leaves it out."""
    try:
        return hold(guards, point)
    except KeyError:
        return False


def _kernel_step(step: KernelStep, where: str, state: _State) -> None:
    program = state.program
    if not 0 <= step.kernel < len(program.kernels):
        refuse(f"{where}.kernel", f"there is no kernel {step.kernel}")
    kernel = program.kernels[step.kernel]
    found, expected = (len(step.operands), len(step.sizes)), kernel.operand_count
    if found != (expected, len(kernel.size_names)):
        refuse(
            where,
            f"kernel {kernel.kind} takes {expected} operands and {len(kernel.size_names)} sizes, "
            f"found {found[0]} and {found[1]}",
        )
    writes_from = expected - kernel.output_count
    for index, (slot, offset) in enumerate(step.operands):
        at = f"{where}.operands[{index}]"
        _in_range(state, slot, at)
        kind = program.slots[slot].type
        if not is_fixed(program.slots[slot]) or not isinstance(kind, TensorType):
            refuse(at, f"slot {slot} is no tensor in memory")
        if kind.dtype.numpy.name != kernel.operand_dtypes[index]:
            refuse(at, f"found {kind.dtype.value}, expected {kernel.operand_dtypes[index]}")
        _need(state, symbols(offset), at)
        if index < writes_from:
            _readable(state, slot, at)
    for slot, _ in step.operands[writes_from:]:
        _write(state, slot, f"{where}.operands", "kernel")
    for index, size in enumerate(step.sizes):
        _need(state, symbols(size), f"{where}.sizes[{index}]")
        if interval(size, state.storage.ranges)[1] > LARGEST_PRODUCT:
            refuse(f"{where}.sizes[{index}]", "the size may pass 2**62")
    for point in state.points:
        _kernel_at(step, where, state, point)


def _kernel_at(step: KernelStep, where: str, state: _State, point: Mapping[str, int]) -> None:
    """Check the reach of a kernel at one point of the profile."""
    kernel = state.program.kernels[step.kernel]
    used: set[str] = set()
    for dim in (*step.sizes, *(offset for _, offset in step.operands)):
        used |= symbols(dim)
    for slot, _ in step.operands:
        used |= slot_symbols(state.program.slots[slot])
    if not used <= point.keys():
        return
    sizes = [evaluate(size, point) for size in step.sizes]
    if max(sizes, default=0) > LARGEST:
        return  # no machine holds what an open profile allows; binding to such sizes refuses
    try:
        kernel.named(sizes)
        extents = kernel.extents(sizes)
    except (ValueError, ArithmeticError, LookupError) as error:
        refuse(f"{where}.sizes", str(error)[:200])
    for index, ((slot, offset), extent) in enumerate(zip(step.operands, extents, strict=True)):
        kind = state.program.slots[slot].type
        assert isinstance(kind, TensorType)
        begin, held = evaluate(offset, point), evaluate(kind.elements, point)
        if begin < 0 or extent < 0 or (extent and begin + extent > held):
            refuse(
                f"{where}.operands[{index}]",
                f"the kernel reaches elements {begin} to {begin + extent} of {held}",
            )


def _device_step(step: DeviceStep, where: str, state: _State) -> None:
    """What a device step reads is there, what it writes may be written."""
    if isinstance(step, LaunchStep):
        _launch_parameters(step, where, state)
    for slot, offset, _ in step_accesses(step):
        _in_range(state, slot, where)
        if not is_fixed(state.program.slots[slot]):
            refuse(where, f"slot {slot} is no tensor in memory")
        _need(state, symbols(offset) | slot_symbols(state.program.slots[slot]), where)
    for slot, _, writes in step_accesses(step):
        if not writes:
            _readable(state, slot, where)
    for slot, _, writes in step_accesses(step):
        if writes:
            _write(state, slot, where, "kernel")


def _launch_parameters(step: LaunchStep, where: str, state: _State) -> None:
    functions = state.program.functions
    if not 0 <= step.function < len(functions):
        refuse(f"{where}.launch", f"there is no function {step.function}")
    maps = functions[step.function].maps
    used: set[str] = set()
    for dim in step.grid:
        used |= symbols(dim)
    for index, item in enumerate(step.parameters):
        if isinstance(item, Scalar) and not isinstance(item.value, float):
            used |= symbols(item.value)
        if isinstance(item, TensorMap):
            at = f"{where}.parameters[{index}]"
            if not 0 <= item.form < len(maps):
                refuse(at, f"the function has no tensor map {item.form}")
            axes = len(maps[item.form].box)
            if len(item.sizes) != axes or len(item.strides) != axes:
                refuse(at, f"found {len(item.sizes)} sizes, expected {axes}")
            if item.steps and len(item.steps) != axes:
                refuse(at, f"found {len(item.steps)} steps, expected {axes}")
            for dim in (*item.sizes, *item.strides):
                used |= symbols(dim)
    _need(state, used, where)


def _host_step(step: HostStep, where: str, state: _State) -> None:
    for index, slot in enumerate(step.inputs):
        if slot is not None:
            _readable(state, slot, f"{where}.inputs[{index}]")
    if step.function == "copy" and (len(step.inputs), len(step.outputs)) != (1, 1):
        refuse(where, "a copy takes one input and gives one output")
    if step.function == "cupy":
        _on_device(step, where, state)
    _bodies(step, where, state)
    for index, (name, position, axis) in enumerate(step.declares):
        _declare(step, f"{where}.declares[{index}]", state, name, position, axis)
    for index, slot in enumerate(step.outputs):
        if slot in step.outputs[:index]:
            refuse(f"{where}.outputs[{index}]", f"slot {slot} is written twice")
        _write(state, slot, f"{where}.outputs[{index}]", "host")


def _on_device(step: HostStep, where: str, state: _State) -> None:
    """A meaning on the device takes and gives tensors in memory, of types that are plain there."""
    if step.bodies or step.declares:
        refuse(where, "a meaning on the device has neither bodies nor sizes to declare")
    for slot in (*step.inputs, *step.outputs):
        if slot is None:
            continue
        _in_range(state, slot, where)
        kind = state.program.slots[slot].type
        if not is_fixed(state.program.slots[slot]) or not isinstance(kind, TensorType):
            refuse(where, f"slot {slot} is no tensor in memory")
        if kind.dtype.numpy.isbuiltin != 1 or kind.dtype.numpy.kind not in "biuf":
            refuse(where, f"slot {slot} has elements of {kind.dtype.value}")


def _declare(
    step: HostStep, where: str, state: _State, name: str, position: int, axis: int
) -> None:
    sources = {symbol.name: symbol.source[0] for symbol in state.program.symbols}
    if sources.get(name) != "data" or name in state.known:
        refuse(where, f"{brief(name)} is no data symbol that is still without a value")
    if not 0 <= position < len(step.outputs):
        refuse(where, f"there is no output {position}")
    _in_range(state, step.outputs[position], where)
    kind = state.program.slots[step.outputs[position]].type
    if not isinstance(kind, TensorType) or kind.shape is None or not 0 <= axis < kind.rank:
        refuse(where, f"output {position} has no axis {axis}")
    state.known.add(name)


def _bodies(step: HostStep, where: str, state: _State) -> None:
    operator = None
    if step.function in ("meaning", "cupy"):
        operator = read_operator(dict(step.operator), f"{where}.operator")
    if not isinstance(operator, ControlOperator):
        if step.bodies:
            refuse(f"{where}.bodies", "only control flow has bodies")
        return
    own, captured = operator.formal, len(step.inputs) - operator.formal
    branches, modifiers = isinstance(operator, If), isinstance(operator, FlexAttention)
    counts = (0, 2) if modifiers else (2,) if branches else (1,)
    if len(step.bodies) not in counts or not 1 <= own <= len(step.inputs):
        refuse(where, f"{operator.name} has a wrong number of bodies or inputs")
    formal = 0 if branches else 1 if modifiers else own - isinstance(operator, BatchedScan)
    taken = captured + formal
    given = len(step.outputs) + isinstance(operator, Loop)
    if isinstance(operator, Loop) and own < 2:
        refuse(where, "Loop takes a count and a condition")
    for index, body in enumerate(step.bodies):
        at = f"{where}.bodies[{index}]"
        found = (len(body.inputs), len(body.outputs))
        if found != (taken, given):
            refuse(at, f"found inputs and outputs {found}, expected {(taken, given)}")
        _check(body, at, state.weights, top=False)
