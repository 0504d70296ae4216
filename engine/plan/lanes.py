"""Lanes: steps of a program that run side by side, in what order, and that none disturbs another.

Lane 0 is the context's stream, the others are auxiliary streams. Steps of one lane run one after
the other as they are listed. A step waits for those of other lanes that are listed before it and
touch what it touches, so that every order that is kept follows from the slots alone and no plan can
leave one out. A step of the host waits for all lanes, and they for it. What different layers write
into one tensor at different offsets are different slices of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.ir.sizes import evaluate
from engine.plan.accesses import step_accesses, touched_slots
from engine.plan.device import LANES, ClearStep, LaunchStep, LibraryStep
from engine.plan.fields import refuse
from engine.plan.slots import locate, root_of, slot_nbytes
from engine.plan.structure import FlatStep, HostStep, KernelStep, Program

__all__ = ["START", "Order", "check_order", "lane_of", "order_steps"]

#: The position of what is done before the first step.
START = -1
#: A slot of the arena, and from which byte to which it lies.
_Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Order:
    """What steps wait for; all numbers are positions in the list of steps.

    ``waits`` are, for each step, those of other lanes that it waits for (`START` for what is there
    before all steps), and in a last entry those that lane 0 waits for at the end. ``windows`` are
    the first and the last step that may run while a step does, itself included.
    """

    waits: tuple[tuple[int, ...], ...]
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Touch:
    """How a step touches a tensor: ``writes`` are bytes from its beginning, None for all of it."""

    reads: bool
    writes: frozenset[int | None]

    def disturbs(self, other: _Touch) -> bool:
        """Whether the two may not run side by side."""
        if (self.reads and other.writes) or (self.writes and other.reads):
            return True
        if not self.writes or not other.writes:
            return False
        return None in self.writes | other.writes or bool(self.writes & other.writes)


def lane_of(step: FlatStep) -> int:
    """The lane of a step."""
    return 0 if isinstance(step, HostStep | KernelStep) else step.lane


def _touches(program: Program, step: FlatStep, sizes: Mapping[str, int]) -> dict[int, _Touch]:
    """What a device step touches beside weights, by the slots that own the memory."""
    assert isinstance(step, LaunchStep | LibraryStep | ClearStep)
    found: dict[int, _Touch] = {}
    for slot, offset, writes in step_accesses(step):
        root = root_of(program, slot)
        place = program.slots[root].place
        if place == "weight":
            continue
        at: frozenset[int | None] = frozenset()
        if isinstance(step, ClearStep) or place == "zeros":  # counters are left at zero, so written
            at = frozenset([None])
        elif writes:
            at = frozenset([locate(program, slot, evaluate(offset, sizes), sizes)[1]])
        known = found.get(root, _Touch(False, frozenset()))
        found[root] = _Touch(known.reads or not writes, known.writes | at)
    return found


class _Walk:
    """Goes through the steps, with what each lane is known to come after."""

    def __init__(self) -> None:
        #: Per lane and other lane, the last step of the other lane that is done by then.
        self.known = [[START] * LANES for _ in range(LANES)]
        for lane in range(1, LANES):
            self.known[lane][0] = START - 1  # not even the beginning
        self.after: list[list[int]] = []
        self.last = [START] * LANES

    def wait(self, lane: int, needed: Mapping[int, int]) -> tuple[int, ...]:
        """What a step of a lane waits for, of the last step that it needs of each other lane."""
        found = []
        for other, position in sorted(needed.items(), key=lambda item: -item[1]):
            if self.known[lane][other] >= position:
                continue
            found.append(position)
            behind = [START] * LANES if position == START else self.after[position]
            self.known[lane] = [max(pair) for pair in zip(self.known[lane], behind, strict=True)]
        return tuple(sorted(found))

    def step(self, lane: int) -> None:
        """The next step is one of this lane."""
        self.last[lane] = self.known[lane][lane] = len(self.after)
        self.after.append(list(self.known[lane]))


def order_steps(
    program: Program, steps: Sequence[FlatStep], sizes: Mapping[str, int]
) -> Order | None:
    """The order of the steps that run at these sizes; None when all of them are on one lane."""
    lanes = [lane_of(step) for step in steps]
    if not any(lanes):
        return None
    walk, floor = _Walk(), START
    waits: list[tuple[int, ...]] = []
    before: list[list[int]] = []
    touched: dict[int, list[tuple[int, _Touch]]] = {}
    for position, (step, lane) in enumerate(zip(steps, lanes)):
        needed = {0: floor} if lane else {}
        if isinstance(step, HostStep | KernelStep):
            needed = {other: walk.last[other] for other in range(1, LANES)}
            floor = position
        else:
            for root, touch in _touches(program, step, sizes).items():
                for earlier, other in touched.setdefault(root, []):
                    if lanes[earlier] != lane and touch.disturbs(other):
                        needed[lanes[earlier]] = max(needed.get(lanes[earlier], START), earlier)
                touched[root].append((position, touch))
        waits.append(walk.wait(lane, needed))
        before.append(list(walk.known[lane]))
        walk.step(lane)
    waits.append(walk.wait(0, {other: walk.last[other] for other in range(1, LANES)}))
    return Order(tuple(waits), _windows(lanes, before))


def _windows(lanes: Sequence[int], before: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Between which steps those lie that may run while a step does.

    ``before[i][lane]`` is the last step of a lane that is done when step i begins.
    """
    first, last = list(range(len(lanes))), list(range(len(lanes)))
    seen: list[list[int]] = [[] for _ in range(LANES)]
    for position, lane in enumerate(lanes):
        for other in range(LANES):
            if other == lane:
                continue
            for beside in seen[other][bisect_right(seen[other], before[position][other]) :]:
                first[position] = min(first[position], beside)
                last[beside] = position
        seen[lane].append(position)
    return tuple(zip(first, last))


def check_order(
    program: Program,
    steps: Sequence[FlatStep],
    sizes: Mapping[str, int],
    order: Order,
    places: Mapping[int, int] | None = None,
) -> None:
    """Refuse, with PlanCorruptError, steps that may run side by side and touch the same memory.

    ``places`` are offsets in bytes, by the slots that own memory; without them slots lie apart.
    """
    done = _done_before(steps, order)
    spans: list[list[_Span]] = [[] for _ in steps]
    if places is not None:
        spans = [_spans(program, step, sizes, places) for step in steps]
    own = [0] * LANES
    for position, step in enumerate(steps):
        own[lane_of(step)] |= 1 << position
        others = ((1 << position) - 1) & ~done[position] & ~own[lane_of(step)]
        if not others:
            continue
        beside = [other for other in range(position) if others >> other & 1]
        if any(isinstance(steps[at], HostStep | KernelStep) for at in (position, *beside)):
            refuse("program.steps", f"step {position} runs beside a step of the host")
        touches = _touches(program, step, sizes)
        for other in beside:
            for root, touch in _touches(program, steps[other], sizes).items():
                if root in touches and touches[root].disturbs(touch):
                    _refuse_race(program, step, steps[other], f"slot {root}")
            if _overlap(spans[position], spans[other]):
                _refuse_race(program, step, steps[other], "memory")


def _done_before(steps: Sequence[FlatStep], order: Order) -> list[int]:
    """For each step the set of those that are done when it begins, as bits."""
    found: list[int] = []
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        lane = lane_of(step)
        behind = [at for at in (last.get(lane, START), *order.waits[position]) if at != START]
        bits = 0
        for at in behind:
            bits |= found[at] | 1 << at
        found.append(bits)
        last[lane] = position
    return found


def _spans(
    program: Program, step: FlatStep, sizes: Mapping[str, int], places: Mapping[int, int]
) -> list[_Span]:
    """The tensors in the arena that a step touches."""
    found = []
    for root in sorted({root_of(program, slot) for slot in touched_slots(step)}):
        nbytes = slot_nbytes(program, root, sizes)
        if program.slots[root].place == "arena" and nbytes:
            found.append((root, places[root], places[root] + nbytes))
    return found


def _overlap(some: Sequence[_Span], others: Sequence[_Span]) -> bool:
    """Whether two different tensors share bytes."""
    return any(
        root != other and begin < last and first < end
        for root, begin, end in some
        for other, first, last in others
    )


def _refuse_race(program: Program, one: FlatStep, other: FlatStep, what: str) -> None:
    names = sorted({program.layers[step.layer].name for step in (one, other)})
    refuse(
        "program.steps",
        f"the layers {' and '.join(names)} run side by side and touch the same {what}",
    )
