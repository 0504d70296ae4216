"""GatherND, ScatterND and ScatterElements on a GPU by kernels with a thread per element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.c_expression import printable
from engine.cuda.indexing import (
    Made,
    gather_tuples,
    reducible,
    scatter_elements,
    scatter_tuples,
)
from engine.cuda.region import RegionChoice
from engine.cuda.size_text import symbol_ranges
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, product
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.expression import load
from engine.ops.region import Load, Region, Store
from engine.plan.device import Pointer
from engine.plan.expressions import Range
from engine.tactics.nvrtc_region import launch_region
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcIndexing"]

#: Bytes of the vectors that copy what a scatter leaves as it is.
ACCESS = 16


class NvrtcIndexing:
    """Serves gathers and scatters of index tuples of a fixed length."""

    name = "nvrtc.indexing"
    kinds = ("GatherND", "ScatterND", "ScatterElements", "Scatter")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate, or why the layer cannot be moved by index."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        reason = _unfit(node)
        return Refusal(self.name, reason) if reason else [Candidate(self.name, {}, _emit)]


def _parts(node: Node) -> tuple[Value, Value]:
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None and indices is not None
    return data, indices


def _unfit(node: Node) -> str:
    data, indices = _parts(node)
    reduction = str(getattr(node.op, "reduction", "none"))
    dtype = data.tensor.dtype
    if not printable(dtype):
        return f"the element type {dtype.value} has no C form"
    if indices.tensor.dtype not in (DType.INT32, DType.INT64):
        return f"indices are {indices.tensor.dtype.value}"
    if reduction != "none" and not reducible(dtype):
        return f"updates of {dtype.value} do not join by atomic operations"
    if node.kind.endswith("ND") and not isinstance(indices.tensor.dims[-1], int):
        return "how long index tuples are is known only when the model runs"
    if not data.tensor.rank or any(size == 0 for size in data.tensor.dims):
        return "it has no elements, or is a single one"
    return ""


def _made(node: Node, ranges: Mapping[str, Range]) -> Made:
    data, indices = _parts(node)
    parts = (data.tensor.dtype, data.tensor.dims), (indices.tensor.dtype, indices.tensor.dims)
    reduction = str(getattr(node.op, "reduction", "none"))
    if node.kind == "GatherND":
        return gather_tuples(*parts, int(getattr(node.op, "batch_dims", 0)), ranges)
    if node.kind == "ScatterND":
        return scatter_tuples(*parts, reduction, ranges)
    axis = int(getattr(node.op, "axis", 0)) % data.tensor.rank
    return scatter_elements(*parts, axis, reduction, ranges)


def _emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """One launch for a gather; a copy and a launch for a scatter."""
    data, indices = _parts(node)
    made = _made(node, symbol_ranges(builder.symbols))
    output = builder.slot(node.outputs[0])
    pointers = [Pointer(builder.slot(indices))]
    if node.kind == "GatherND":
        pointers.insert(0, Pointer(builder.slot(data)))
    else:
        updates = node.inputs[2]
        assert updates is not None
        pointers.append(Pointer(builder.slot(updates)))
        _copy(builder, data, output, layer)
    if made.grid[0] != 0:
        pointers.append(Pointer(output, writes=True))
        builder.launch(made.kernel, made.grid, [*pointers, *made.scalars], layer)


def _copy(builder: ProgramBuilder, data: Value, target: int, layer: int) -> None:
    kind = data.tensor
    total: Dim = product(kind.dims)
    item = Load(0, kind.dtype, 0, (1,))
    store = Store(load(0, kind.dtype), 0, kind.dims, 0, (1,))
    region = Region((total,), (item,), (store,), (kind.dims,))
    choice = RegionChoice("flat", 256, ACCESS // kind.dtype.nbytes, 2)
    launch_region(builder, region, choice, [builder.slot(data)], [target], layer)


register(NvrtcIndexing())
