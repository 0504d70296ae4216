"""What every engine shows of its program: inputs, outputs, profile, host steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.ir.types import Array, Type
from engine.plan.structure import ChooseStep, HostStep, Program, Step
from engine.runtime.host import HostCall

__all__ = ["Port", "ProgramInterface", "every_step", "host_calls"]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of an engine: its name and type, with symbolic sizes."""

    name: str
    type: Type

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


def every_step(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps, also those of every case of a choice."""
    for step in steps:
        if isinstance(step, ChooseStep):
            for _, chosen in step.cases:
                yield from every_step(chosen)
        else:
            yield step


def host_calls(program: Program, weights: Mapping[str, Array]) -> dict[int, HostCall]:
    """Every host step ready to be called, by the identity of the step."""
    calls = {}
    for step in every_step(program.steps):
        if isinstance(step, HostStep):
            layer = program.layers[step.layer]
            where = f"layer {layer.name!r} ({layer.kind})"
            calls[id(step)] = HostCall(step, weights, where)
    return calls


class ProgramInterface:
    """Names, types and profile of a program, as engines of every device show them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.input_names = [program.slots[index].name for index in program.inputs]
        self.output_names = [program.slots[index].name for index in program.outputs]

    @property
    def inputs(self) -> list[Port]:
        """What the engine takes."""
        return self._ports(self.program.inputs)

    @property
    def outputs(self) -> list[Port]:
        """What the engine gives."""
        return self._ports(self.program.outputs)

    def _ports(self, slots: Sequence[int]) -> list[Port]:
        return [Port(self.program.slots[i].name, self.program.slots[i].type) for i in slots]

    @property
    def profile(self) -> dict[str, tuple[int, tuple[int, ...], int | None]]:
        """Least, usual and greatest value of each symbolic size."""
        return {
            s.name: (s.least, s.usual, s.greatest if isinstance(s.greatest, int) else None)
            for s in self.program.symbols
        }

    def __repr__(self) -> str:
        ports = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"{type(self).__name__}({ports[0]} -> {ports[1]}, {len(self.program.layers)} layers)"
