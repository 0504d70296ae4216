"""CumSum and TopK on a GPU: what goes along a line of elements in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.c_expression import printable
from engine.cuda.scans import LONGEST_SORT, running_sums, sortable, top_elements
from engine.cuda.size_text import symbol_ranges
from engine.ir.graph import Node
from engine.ir.sizes import Dim, evaluate, product
from engine.lower.builder import ProgramBuilder
from engine.ops.cumulative import CumSum
from engine.plan.device import Pointer
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcScan", "NvrtcTopK"]

#: A search reads its line once per element that it finds; past this many nothing else is worse.
MOST_FOUND = 1024


def _lines(node: Node, axis: int) -> tuple[Dim, Dim, Dim]:
    """Elements before, along and behind an axis of the first input."""
    assert node.inputs[0] is not None
    dims = node.inputs[0].tensor.dims
    axis %= len(dims)
    return product(dims[:axis]), dims[axis], product(dims[axis + 1 :])


def _unfit(node: Node, target: Target) -> str:
    if not isinstance(target, CudaTarget):
        return "the target is no GPU"
    kind = None if node.inputs[0] is None else node.inputs[0].tensor
    if kind is None or not kind.rank or any(size == 0 for size in kind.dims):
        return "it has no line of elements"
    return "" if printable(kind.dtype) else f"the element type {kind.dtype.value} has no C form"


class NvrtcScan:
    """Serves running sums along an axis that is known."""

    name = "nvrtc.scan"
    kinds = ("CumSum",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """A thread per line and a block per line, the one that fills the machine first."""
        reason = _unfit(node, target)
        axis = node.inputs[1] if len(node.inputs) > 1 else None
        if not reason and (axis is None or axis.constant is None):
            reason = "its axis is known only when the model runs"
        if reason:
            return Refusal(self.name, reason)
        assert isinstance(target, CudaTarget) and axis is not None and axis.constant is not None
        shape = _lines(node, int(axis.constant.reshape(-1)[0]))
        outer, length, inner = (evaluate(dim, point) for dim in shape)
        # A block takes about nine exchanges for a piece, a thread one trip to memory an element.
        by_block = -(-outer * inner // (8 * target.multiprocessors)) * -(-length // 256) * 10
        by_thread = -(-outer * inner // (2048 * target.multiprocessors)) * length
        forms = sorted((True, False), key=lambda blocks: by_block if blocks else by_thread)
        try:
            return [self._candidate(node, shape, blocks) for blocks in forms]
        except ValueError as error:
            return Refusal(self.name, str(error))

    def _candidate(self, node: Node, shape: tuple[Dim, Dim, Dim], blocks: bool) -> Candidate:
        op = node.op
        assert isinstance(op, CumSum) and node.inputs[0] is not None
        dtype = node.inputs[0].tensor.dtype
        options = {"exclusive": bool(op.exclusive), "reverse": bool(op.reverse), "blocks": blocks}
        running_sums(dtype, shape, **options, ranges={})

        def emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
            assert node.inputs[0] is not None
            ranges = symbol_ranges(builder.symbols)
            made = running_sums(dtype, shape, **options, ranges=ranges)
            pointers = [
                Pointer(builder.slot(node.inputs[0])),
                Pointer(builder.slot(node.outputs[0]), writes=True),
            ]
            builder.launch(made.kernel, made.grid, [*pointers, *made.scalars], layer)

        return Candidate(self.name, {"form": "block" if blocks else "thread"}, emit)


class NvrtcTopK:
    """Serves the greatest or least elements along an axis, as many as are known."""

    name = "nvrtc.top_k"
    kinds = ("TopK",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """A sort in shared memory where a line fits there, and a search per element."""
        reason = _unfit(node, target)
        if reason:
            return Refusal(self.name, reason)
        axis = int(getattr(node.op, "axis", -1))
        shape = _lines(node, axis)
        assert node.inputs[0] is not None
        dtype = node.inputs[0].tensor.dtype
        count = node.outputs[0].tensor.dims[axis]
        if not isinstance(count, int) or count < 1:
            return Refusal(self.name, f"{count} elements are asked for, expected a fixed number")
        if not sortable(dtype):
            return Refusal(self.name, f"{dtype.value} has no rank of 32 bits")
        length = shape[1]
        forms = []
        if isinstance(length, int) and length <= LONGEST_SORT:
            forms.append(True)
        if count <= MOST_FOUND:
            # A sort of n keys takes about log2(n)^2 / 2 rounds of exchanges.
            few = count < len(bin(evaluate(length, point))) ** 2 // 4
            forms.insert(0 if few else len(forms), False)
        if not forms:
            return Refusal(self.name, f"{count} of {length} elements are too many to look for")
        return [self._candidate(node, shape, count, sort) for sort in forms]

    def _candidate(
        self, node: Node, shape: tuple[Dim, Dim, Dim], count: int, sort: bool
    ) -> Candidate:
        largest = bool(getattr(node.op, "largest", 1))

        def emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
            source = node.inputs[0]
            assert source is not None
            made = top_elements(
                source.tensor.dtype,
                shape,
                count,
                largest=largest,
                sort=sort,
                ranges=symbol_ranges(builder.symbols),
            )
            pointers = [Pointer(builder.slot(source))]
            pointers += [Pointer(builder.slot(value), writes=True) for value in node.outputs]
            builder.launch(made.kernel, made.grid, [*pointers, *made.scalars], layer)

        return Candidate(self.name, {"form": "sort" if sort else "search"}, emit)


register(NvrtcScan())
register(NvrtcTopK())
