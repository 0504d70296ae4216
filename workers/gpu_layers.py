"""What each layer of an engine costs on a GPU, beside the least that the device could need for it.

The floor of a layer is the longer of two times: moving each of its tensors once at the rate at
which this GPU copies memory, measured here, and its multiplications at the rate that its maker
states (`PEAKS`; for a GPU that is not listed only the first counts). Tensors that fit into the
level-two cache may be faster than their floor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.records import Json

if TYPE_CHECKING:
    from engine.cuda.device import Device
    from engine.ir.types import TensorType
    from engine.plan.structure import FlatStep, Program
    from engine.runtime.cuda_engine import CudaEngine
    from engine.target import CudaTarget

__all__ = ["PEAKS", "GpuLayer", "copy_bandwidth", "gpu_layers", "least_work", "peak_rate"]

#: Multiplications and additions a second of dense products in float16 or bfloat16, by the short
#: name of a GPU, as NVIDIA's data sheets state them; TF32 takes twice, float32 by three TF32
#: products six times as long.
PEAKS = {
    "a10": 125e12,
    "a100": 312e12,
    "b200": 2250e12,
    "h100": 989e12,
    "h200": 989e12,
    "l4": 121e12,
}
_SLOWER = {2: 1.0, 4: 6.0, 1: 0.5}
#: Operators whose weights are multiplied with every row of their output.
PRODUCTS = frozenset({"FusedConv", "FusedMatMul", "Conv", "MatMul", "Gemm"})
#: The measured copy moves this much at most, a share of the device's memory on small ones.
COPIED_NBYTES = 1 << 29
COPIED_SHARE = 64


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """One layer: its median time in seconds and its share of all layers' time.

    ``nbytes`` are its tensors, each once, ``flops`` its multiplications and additions where its
    weights tell them, ``floor`` is in seconds; None where nothing is known, as for host steps.
    """

    name: str
    kind: str
    tactic: str
    choice: Mapping[str, Any]
    launches: int
    seconds: float
    share: float
    flops: float | None
    nbytes: float | None
    floor: float | None

    def to_json(self) -> Json:
        """The layer as JSON."""
        return {
            "layer": self.name,
            "kind": self.kind,
            "tactic": self.tactic,
            "choice": dict(self.choice),
            "launches": self.launches,
            "seconds": self.seconds,
            "share": self.share,
            "flops": self.flops,
            "nbytes": self.nbytes,
            "floor": self.floor,
        }


def gpu_layers(
    engine: CudaEngine, feeds: Mapping[str, Any], runs: int, bandwidth: float
) -> list[GpuLayer]:
    """The cost of every layer at the sizes of these feeds, the median of several runs.

    ``bandwidth`` is in bytes a second.
    """
    from engine.runtime.feeds import bind_symbols, check_feeds
    from engine.runtime.steps import flat_steps
    from workers.gpu_timing import ready_context

    with ready_context(engine, feeds, graph=True, transfers=False) as ready:
        ready.run_to_the_end()
        profiles = [ready.context.profile(ready.feeds) for _ in range(runs)]
    sizes = bind_symbols(engine.program, check_feeds(engine.program, feeds))
    steps: dict[int, list[FlatStep]] = {}
    for step in flat_steps(engine.program.steps, sizes):
        steps.setdefault(step.layer, []).append(step)
    seconds = {
        index: statistics.median(profile.get(index, 0) for profile in profiles) / 1e9
        for index in sorted(set().union(*profiles))
    }
    total = sum(seconds.values()) or 1.0
    found = []
    for index, spent in seconds.items():
        layer = engine.program.layers[index]
        flops, nbytes, floor = least_work(
            engine.program, layer.kind, steps[index], sizes, bandwidth, engine.device.target
        )
        found.append(
            GpuLayer(
                name=layer.name,
                kind=layer.kind,
                tactic=layer.tactic,
                choice=layer.choice,
                launches=len(steps[index]),
                seconds=spent,
                share=spent / total,
                flops=flops,
                nbytes=nbytes,
                floor=floor,
            )
        )
    return found


def least_work(
    program: Program,
    kind: str,
    steps: Sequence[FlatStep],
    sizes: Mapping[str, int],
    bandwidth: float,
    target: CudaTarget,
) -> tuple[float | None, float | None, float | None]:
    """Operations, bytes and least seconds of the steps of one layer; None for what is not known.

    Each tensor that comes from elsewhere or goes elsewhere counts once; workspace and counters do
    not. A weight of anything but a product counts no more than the layer's greatest other tensor,
    since rows are gathered from it.
    """
    from engine.ir.sizes import symbols
    from engine.plan.structure import HostStep, KernelStep

    if any(isinstance(step, (HostStep, KernelStep)) for step in steps):
        return None, None, None
    read, written = _traffic(program, steps)
    moved = [*read, *written]
    if any(not symbols(_tensor(program, slot).elements) <= set(sizes) for slot in moved):
        return None, None, None
    weights = [slot for slot in read if _is_weight(program, slot)]
    flops = None
    if kind in PRODUCTS and weights and written:
        flops = _product_flops(program, weights, written[0], sizes)
    counts = [(slot, float(_nbytes(program, slot, sizes))) for slot in moved]
    most = max((count for slot, count in counts if slot not in weights), default=0.0)
    gathered = set() if flops is not None else set(weights)
    nbytes = sum(min(count, most) if slot in gathered else count for slot, count in counts)
    floor = nbytes / bandwidth
    rate = peak_rate(target)
    if flops is not None and rate is not None:
        widest = max(_tensor(program, slot).dtype.nbytes for slot in read)
        floor = max(floor, flops / rate * _SLOWER.get(widest, 1.0))
    return flops, nbytes, floor


def _traffic(program: Program, steps: Sequence[FlatStep]) -> tuple[list[int], list[int]]:
    """Slots read and written that matter to others: what a layer keeps to itself is left out."""
    from engine.plan.accesses import step_accesses
    from engine.plan.slots import root_of
    from engine.plan.structure import HostStep, KernelStep

    read: dict[int, int] = {}
    written: dict[int, int] = {}
    for step in steps:
        assert not isinstance(step, (HostStep, KernelStep))
        for slot, _, writes in step_accesses(step):
            (written if writes else read).setdefault(root_of(program, slot), slot)
    outside = _used_elsewhere(program, steps[0].layer if steps else -1)
    own = {root for root in written if root not in outside}
    return (
        [slot for root, slot in read.items() if root not in own],
        [slot for root, slot in written.items() if root in outside],
    )


def _used_elsewhere(program: Program, layer: int) -> set[int]:
    """Roots that other layers, callers or the plan hold."""
    from engine.plan.accesses import touched_slots
    from engine.plan.slots import root_of
    from engine.plan.structure import ChooseStep
    from engine.runtime.interface import every_step

    found = {root_of(program, slot) for slot in (*program.inputs, *program.outputs)}
    for step in every_step(program.steps):
        if not isinstance(step, ChooseStep) and step.layer != layer:
            found.update(root_of(program, slot) for slot in touched_slots(step))
    return found


def _is_weight(program: Program, slot: int) -> bool:
    from engine.plan.slots import root_of

    return program.slots[root_of(program, slot)].place == "weight"


def _tensor(program: Program, slot: int) -> TensorType:
    from engine.ir.types import TensorType

    kind = program.slots[slot].type
    assert isinstance(kind, TensorType)
    return kind


def _nbytes(program: Program, slot: int, sizes: Mapping[str, int]) -> int:
    from engine.runtime.steps import slot_nbytes

    return slot_nbytes(program, slot, sizes)


def _product_flops(
    program: Program, weights: Sequence[int], output: int, sizes: Mapping[str, int]
) -> float:
    """Two operations per row of the output and element of the greatest weight."""
    from engine.ir.sizes import evaluate

    elements = max(evaluate(_tensor(program, slot).elements, sizes) for slot in weights)
    rows = math.prod(evaluate(dim, sizes) for dim in _tensor(program, output).dims[:-1])
    return 2.0 * rows * elements


def peak_rate(target: CudaTarget) -> float | None:
    """Operations a second of float16 products by the data sheet, None for a GPU not in `PEAKS`.

    A slice of a GPU has its share of the rate, which its name does not tell.
    """
    return PEAKS.get(target.name)


def copy_bandwidth(device: Device, repeats: int = 8) -> float:
    """Bytes a second that the device reads and writes when it copies memory, the best of several.

    Raises DeviceMemoryError when there is not even room for two small buffers.
    """
    from engine.runtime.cuda_memory import Block, Stream

    device.use()
    nbytes = min(COPIED_NBYTES, device.memory()[0] // COPIED_SHARE)
    blocks = [Block(device), Block(device)]
    stream = Stream(device)
    events = [device.create_event(timed=True) for _ in range(2)]
    best = math.inf
    try:
        for block in blocks:
            block.grow(nbytes, "measuring how fast memory is copied", "end other engines")
        for _ in range(repeats):
            device.record(events[0], stream.handle)
            device.copy(blocks[0].address, blocks[1].address, nbytes, stream.handle)
            device.record(events[1], stream.handle)
            device.synchronize(stream.handle)
            best = min(best, device.elapsed_ns(events[0], events[1]) / 1e9)
    finally:
        for event in events:
            device.destroy_event(event)
        for block in blocks:
            block.close()
    return 2 * nbytes / best
