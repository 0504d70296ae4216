"""Transposes that move the last axis, on a GPU by generated CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cuda.size_text import symbol_ranges
from engine.cuda.transpose import Problem, TransposeChoice, generate, transpose_choices
from engine.ir.graph import Node
from engine.kernels.transpose import kernel_of
from engine.lower.builder import ProgramBuilder
from engine.plan.device import Pointer
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["NvrtcTranspose"]


class NvrtcTranspose:
    """Serves Transpose when the last axis does not stay last."""

    name = "nvrtc.transpose"
    kinds = ("Transpose",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """Blocks in registers where sizes allow vectors, tiles in shared memory always."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "the target is no GPU")
        problem = _problem(node)
        if isinstance(problem, str):
            return Refusal(self.name, problem)
        return [_candidate(choice) for choice in transpose_choices(problem)]


def _candidate(choice: TransposeChoice) -> Candidate:
    return Candidate(
        NvrtcTranspose.name,
        choice.to_json(),
        lambda builder, node, layer: _emit(builder, node, layer, choice),
    )


def _problem(node: Node) -> Problem | str:
    """The transpose with neighbouring axes merged, or why there is none."""
    x = node.inputs[0]
    assert x is not None
    shape = x.tensor.dims
    if any(size == 0 for size in shape):
        return "the tensor is empty"
    perm = tuple(getattr(node.op, "perm", None) or tuple(range(len(shape)))[::-1])
    try:
        found = kernel_of(shape, perm, x.tensor.dtype)
    except ValueError as error:
        return str(error)
    if found is None:
        return "the last axis stays last, which is a copy of rows"
    kernel, sizes = found
    rank = kernel.rank
    rows, columns, x_row, y_column = sizes[rank : rank + 4]
    outer, rest = sizes[:rank], sizes[rank + 4 :]
    nbytes = x.tensor.dtype.nbytes
    return Problem(nbytes, rows, columns, x_row, y_column, outer, rest[:rank], rest[rank:])


def _emit(builder: ProgramBuilder, node: Node, layer: int, choice: TransposeChoice) -> None:
    """The one launch of a transpose."""
    problem = _problem(node)
    assert isinstance(problem, Problem) and node.inputs[0] is not None
    kernel, grid, scalars = generate(problem, choice, symbol_ranges(builder.symbols))
    source = Pointer(builder.slot(node.inputs[0]))
    target = Pointer(builder.slot(node.outputs[0]), writes=True)
    builder.launch(kernel, grid, [source, target, *scalars], layer)


register(NvrtcTranspose())
