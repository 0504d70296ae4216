"""Kernels for Hopper on the CPU: `tests.cuda_shim` with boxes, barriers and warpgroup products.

`run_product` runs a launch step over the flat memory of a layer's slots
(`tests.cuda_layer.filled`). Every kernel runs four times: threads in both orders, asynchronous work
early and late; all runs must write the same bytes, and none outside of what it may write.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.cuda.kernel import DeviceKernel
from engine.cuda.tensor_map import encode_box
from engine.ir.graph import Graph, Node
from engine.ir.sizes import evaluate
from engine.lower.placement import Placement
from engine.plan.device import LaunchStep, Pointer, Scalar, TensorMap
from engine.tactics.tactic import Candidate
from tests import cuda_shim
from tests.cuda_layer import _view, emitted, filled
from tests.cuda_shim import HEADER, ShimError, located
from tests.paged_memory import Paged

__all__ = ["run_layer", "run_product"]

_SHARED = 256 << 10
#: Loads, products and stores that are late (bits of 1, 2 and 4).
_LATE = (2 | 4, 1)


@functools.cache
def _library(kernel: DeviceKernel) -> ctypes.CDLL:
    """The kernel as C++; ShimError has the compiler's words."""
    source = cuda_shim._DYNAMIC.sub(r"static \2 *const \3 = (\2 *)shim_dynamic;", kernel.source)
    text = (
        f"#define SHIM_BLOCK_THREADS {kernel.threads}\n"
        f"#define SHIM_BLOCK_SHARED {_block_shared(kernel)}u\n"
        f'#include "{HEADER}"\n#include "{HEADER.with_name("cuda_shim_hopper.h")}"\n'
        f'#line 1 "kernel"\n{source}\nSHIM_EXPORT({kernel.entry})\n'
        f"SHIM_EXPORT_HOPPER({kernel.entry})\n"
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    library = ctypes.CDLL(str(cuda_shim._built(name, text, kernel.entry)))
    library.shim_run_hopper.restype = ctypes.c_char_p
    library.shim_signature.restype = ctypes.c_char_p
    library.shim_faulted_at.restype = ctypes.c_uint64
    return library


def _block_shared(kernel: DeviceKernel) -> int:
    """Bytes from the shared memory of one block of a cluster to that of the next."""
    return _SHARED // kernel.cluster // 1024 * 1024


class _Memory:
    """Copies of the slots that end, or begin, at pages without access."""

    def __init__(self, arrays: Sequence[np.ndarray], *, at_end: bool) -> None:
        self.arrays = arrays
        self.blocks = [Paged(array.nbytes, at_end=at_end) for array in arrays]
        for array, block in zip(arrays, self.blocks):
            block.inside[:] = array.view(np.uint8)

    @property
    def buffers(self) -> list[tuple[str, int, int]]:
        """Name, beginning and bytes of each."""
        return [(f"slot {i}", item.address, item.nbytes) for i, item in enumerate(self.blocks)]

    def address(self, slot: int, offset: int) -> int:
        return self.blocks[slot].address + offset * self.arrays[slot].itemsize

    def read(self, written: set[int]) -> list[bytes]:
        found = []
        for slot, (array, block) in enumerate(zip(self.arrays, self.blocks)):
            assert all(block.untouched()), f"a write outside of slot {slot}"
            inside = block.inside.tobytes()
            if slot not in written:
                assert inside == array.tobytes(), f"slot {slot} is written, no parameter says so"
            found.append(inside)
        return found


def run_product(
    kernel: DeviceKernel,
    step: LaunchStep,
    arrays: Sequence[np.ndarray],
    point: Mapping[str, int],
    blocks: int | None = None,
) -> None:
    """Run a launch in place; ``blocks`` replaces its grid. Raises ShimError."""
    x, y, z = (evaluate(dim, point) for dim in step.grid)
    grid = (blocks or x, y, z)
    if grid[0] % kernel.cluster:
        raise ShimError(f"a grid of {grid} blocks in clusters of {kernel.cluster}")
    written = {p.slot for p in step.parameters if isinstance(p, Pointer | TensorMap) and p.writes}
    results = []
    for backwards in (False, True):
        for late in _LATE:
            memory = _Memory(arrays, at_end=late == _LATE[0])
            try:
                _run(kernel, grid, [_value(kernel, memory, p, point) for p in step.parameters],
                     backwards, late)  # fmt: skip
            except ShimError as error:
                raise located(error, memory.buffers) from None
            results.append(memory.read(written))
    for other in results[1:]:
        for slot, (first, second) in enumerate(zip(results[0], other)):
            assert first == second, f"slot {slot} depends on the order of events"
    for array, content in zip(arrays, results[0]):
        array.view(np.uint8)[:] = np.frombuffer(content, np.uint8)


def _run(
    kernel: DeviceKernel,
    grid: tuple[int, int, int],
    values: Sequence[tuple[str, Any]],
    backwards: bool,
    late: int,
) -> None:
    library = _library(kernel)
    letters = library.shim_signature().decode()
    if letters != "".join(letter for letter, _ in values):
        raise ShimError(f"{kernel.entry} wants parameters {letters}, found {values}")
    cells = [cell for _, cell in values]
    pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
    # The blocks of a cluster run as one block with a part of shared memory each.
    cluster = kernel.cluster
    apart = _block_shared(kernel)
    shared = kernel.shared_nbytes + (cluster - 1) * apart
    if cluster > 1 and kernel.shared_nbytes > apart:
        raise ShimError(f"the shim's clusters of {cluster} have blocks of {apart} bytes at most")
    error = library.shim_run_hopper(
        pointers,
        (ctypes.c_uint * 3)(grid[0] // cluster, *grid[1:]),
        (ctypes.c_uint * 3)(kernel.threads * cluster, 1, 1),
        ctypes.c_uint64(shared),
        int(backwards),
        late,
    )
    if error is not None:
        at = library.shim_faulted_at()
        raise ShimError(
            f"{kernel.entry}: {error.decode()} (late {late}, backwards {backwards})",
            *([at] if at else []),
        )


class _Map(ctypes.Structure):
    _align_ = 64
    _fields_ = [("words", ctypes.c_uint64 * 16)]


def _value(
    kernel: DeviceKernel, memory: _Memory, item: Any, point: Mapping[str, int]
) -> tuple[str, Any]:
    """The letter of a parameter and what holds it."""
    if isinstance(item, Pointer):
        return "p", ctypes.c_uint64(memory.address(item.slot, evaluate(item.offset, point)))
    if isinstance(item, Scalar):
        assert not isinstance(item.value, float)
        number = evaluate(item.value, point)
        return (
            ("i", ctypes.c_int32(number)) if item.kind == "i32" else ("l", ctypes.c_int64(number))
        )
    assert isinstance(item, TensorMap)
    form = kernel.maps[item.form]
    box = encode_box(
        form,
        memory.address(item.slot, evaluate(item.offset, point)),
        [evaluate(dim, point) for dim in item.sizes],
        [evaluate(dim, point) for dim in item.strides],
        item.steps,
    )
    axes = len(form.box)
    nbytes = box.dtype.nbytes
    # Axes run from the innermost outwards; a matrix has one image of one row of matrices.
    sizes = [*box.sizes, *(1,) * (4 - axes)][::-1]
    strides = [nbytes, *box.strides, *(0,) * (4 - axes)][::-1]
    steps = [*box.steps, *(1,) * (4 - axes)][::-1]
    boxes = [*(1,) * (4 - axes), *form.box]
    packed = struct.pack(
        "<5Q4I8H2I", box.address, *strides, *sizes, *boxes, *steps, nbytes, form.swizzle
    )
    room = ctypes.create_string_buffer(128 + 64)
    start = -ctypes.addressof(room) % 64
    held = _Map.from_buffer(room, start)
    ctypes.memmove(ctypes.addressof(held), packed, len(packed))
    return "s", held


def run_layer(
    graph: Graph,
    node: Node,
    candidate: Candidate,
    point: Mapping[str, int],
    *,
    placed: Mapping[int, Placement] | None = None,
    blocks: int | None = None,
) -> np.ndarray:
    """The output of a layer of one launch; slices per ``placed``."""
    builder = emitted(graph, node, candidate, placed)
    arrays = filled(builder, node, point)
    (step,) = builder.steps
    assert isinstance(step, LaunchStep)
    run_product(builder.device_kernels[step.function], step, arrays, point, blocks)
    return _view(builder, arrays, node.outputs[0], point).copy()
