from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from engine.ir.sizes import symbol
from engine.ir.types import DType, SequenceType, TensorType
from engine.kernels.isa import Isa
from engine.kernels.kernel import KERNELS, Array, Kernel, refuse_others, take_integer
from engine.plan.program import (
    ChooseStep,
    Guard,
    HostStep,
    KernelStep,
    Layer,
    Program,
    RecipeStep,
    Slot,
    Step,
    Symbol,
    Weight,
)


@dataclass(frozen=True, slots=True)
class Scaling(Kernel):
    """out[i] = factor * in[i] * weight[i % 4], the least kernel there is."""

    kind: ClassVar[str] = "scaling_for_tests"
    factor: int

    def to_json(self) -> dict[str, object]:
        return {"factor": self.factor}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        refuse_others(fields, ["factor"])
        return cls(take_integer(fields, "factor", 1, 9))

    @property
    def operand_dtypes(self) -> tuple[str, ...]:
        return ("float32", "float32", "float32")

    @property
    def size_names(self) -> tuple[str, ...]:
        return ("count",)

    def items(self, sizes: Sequence[int]) -> int:
        return 1

    def extents(self, sizes: Sequence[int]) -> tuple[int, ...]:
        return (sizes[0], 4, sizes[0])

    def scratch_nbytes(self, sizes: Sequence[int]) -> int:
        return 0

    def cost(self, sizes: Sequence[int]) -> tuple[float, float]:
        return (2.0 * sizes[0], 8.0 * sizes[0])

    def source(self, name: str, isa: Isa) -> str:
        raise NotImplementedError

    def twin(self, operands: Sequence[Array], sizes: Sequence[int]) -> None:
        count = sizes[0]
        operands[2][:count] = self.factor * operands[0][:count] * np.resize(operands[1][:4], count)


@pytest.fixture(autouse=True)
def scaling() -> Iterator[type[Kernel]]:
    kinds: dict[str, Any] = KERNELS._discover()
    kinds[Scaling.kind] = Scaling
    yield Scaling
    del kinds[Scaling.kind]


def _operator(name: str, since: int, **attributes: Any) -> dict[str, Any]:
    return {"domain": "", "name": name, "since": since, "attributes": attributes}


def _body() -> Program:
    """One turn of a loop: the carried value plus a weight."""
    boolean = TensorType(DType.BOOL, ())
    return Program(
        symbols=(),
        slots=(
            Slot(TensorType(DType.INT64, ()), "input", "turn"),
            Slot(boolean, "input", "going"),
            Slot(TensorType(DType.FLOAT32, None), "input", "carried"),
            Slot(boolean, "output", "again"),
            Slot(TensorType(DType.FLOAT32, None), "output", "result"),
            Slot(TensorType(DType.FLOAT32, (4,)), "weight", "w"),
        ),
        inputs=(0, 1, 2),
        outputs=(3, 4),
        kernels=(),
        steps=(
            HostStep("copy", {}, (1,), (3,)),
            HostStep("meaning", _operator("Add", 7), (2, 5), (4,)),
        ),
        layers=(Layer("body", "host"),),
    )


def _slots() -> tuple[Slot, ...]:
    n = symbol("n")
    return (
        Slot(TensorType(DType.FLOAT32, (n, 4)), "input", "x"),
        Slot(TensorType(DType.FLOAT32, (4,)), "weight", "w"),
        Slot(TensorType(DType.FLOAT32, (2 * n, 4)), "arena"),
        Slot(TensorType(DType.FLOAT32, (n, 4)), "arena", alias=2, offset=16 * n),
        Slot(TensorType(DType.FLOAT32, (n, 4)), "output", "y"),
        Slot(TensorType(DType.INT64, (2, symbol("found"))), "host"),
        Slot(SequenceType(TensorType(DType.FLOAT32, None)), "output", "list"),
        Slot(TensorType(DType.FLOAT32, None), "host"),
    )


def _steps() -> tuple[Step, ...]:
    n = symbol("n")
    aligned = KernelStep(1, ((0, 0), (1, 0), (2, 4 * n)), (4 * n,), 0)
    other = KernelStep(0, ((0, 0), (1, 0), (2, 4 * n)), (4 * n,), 0)
    loop = _operator("Loop", 1, formal=3, output_count=1)
    return (
        KernelStep(0, ((0, 0), (1, 0), (2, 0)), (4 * n,), 0),
        ChooseStep((((Guard("divides", 8, n),), (aligned,)), ((), (other,)))),
        KernelStep(0, ((3, 0), (1, 0), (4, 0)), (4 * n,), 0),
        HostStep("meaning", _operator("NonZero", 9), (4,), (5,), (("found", 0, 1),), (), 1),
        HostStep("meaning", loop, (None, None, 4), (7,), bodies=(_body(),), layer=1),
        HostStep("meaning", _operator("SequenceConstruct", 11), (4, 7), (6,), layer=1),
    )


@pytest.fixture
def sample(scaling: type[Kernel]) -> Program:
    """x[n, 4] scaled into a slice of an arena, a choice, a loop, a sequence, a data symbol."""
    reshape = RecipeStep("reshape", (0,), {"shape": [4]})
    return Program(
        symbols=(
            Symbol("n", 1, (2, 8), 64, ("input", "x", 0)),
            Symbol("found", 0, (), 4 * symbol("n"), ("data",)),
        ),
        slots=_slots(),
        inputs=(0,),
        outputs=(4, 6),
        kernels=(Scaling(2), Scaling(3)),
        steps=_steps(),
        layers=(
            Layer("scale", "Mul", ("a", "b"), "c.scaling", {"width": 4}, 1200),
            Layer("rest", "host"),
        ),
        weights=(Weight("w", DType.FLOAT32, (4,), "w", ("w0",), (reshape,)),),
    )
