"""A plan: a program with its weights and target; saved as one file, opened without copying."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import PlanCorruptError
from engine.ir.types import Array, DType
from engine.plan.container import VERSION, Container, Form, read, stored_form
from engine.plan.decoding import program_from_json
from engine.plan.device import LibraryStep
from engine.plan.encoding import program_to_json
from engine.plan.fields import brief, entries, integer, items, parse, plain, refuse
from engine.plan.recipes import RecipeStep, apply
from engine.plan.structure import ChooseStep, HostStep, Program, Step, Weight
from engine.plan.writing import Section, write

__all__ = ["Packed", "Plan", "host_steps", "open_plan"]

MAX_PROGRAM = 1 << 26


class Source(Protocol):
    """Something that holds an array of the model."""

    @property
    def constant(self) -> Array | None:
        """The array."""


class Packed(Protocol):
    """A weight that is made when it is needed: arrays of the model and a recipe over them."""

    @property
    def sources(self) -> Sequence[Source]:
        """What the recipe starts from."""

    @property
    def recipe(self) -> Sequence[RecipeStep]:
        """The steps; none for the one source as it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `engine.build` returns and `engine.load` takes.

    ``weights`` maps the names of the program's weights to arrays, or to what makes them; ``target``
    describes the device; ``codegen`` is the generation of the code that chose and lowered;
    ``decisions`` lists rewrites made or refused; ``keys`` are identities to keep with the file;
    ``images`` holds machine code for a GPU, bytes by the name that functions give them.
    """

    program: Program
    weights: Mapping[str, Array | Packed]
    target: Mapping[str, Any] = field(default_factory=dict)
    codegen: int = 1
    decisions: Sequence[Mapping[str, Any]] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """One weight, made from its sources if need be; KeyError when there is none."""
        return self._array({weight.name: weight for weight in self.program.weights}[name])

    def arrays(self) -> dict[str, Array]:
        """All weights by name; those not made yet are made now."""
        return {weight.name: self._array(weight) for weight in self.program.weights}

    @property
    def requires(self) -> list[str]:
        """Packages beyond the core that running this plan needs."""
        functions = {s.function for s in host_steps(self.program.steps)}
        libraries = {s.library for s in library_steps(self.program.steps)}
        packages = [("reference", "onnx"), ("cupy", "cupy")]
        found = [package for function, package in packages if function in functions]
        return [*found, *sorted(libraries)]

    def metadata(self) -> dict[str, Any]:
        """What reports say about the plan beside its program."""
        return {
            "format": VERSION,
            "target": dict(self.target),
            "codegen": self.codegen,
            "requires": self.requires,
            "decisions": [dict(decision) for decision in self.decisions],
            "keys": dict(self.keys),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan file; the same plan always gives the same bytes.

        Raises PlanError when the disk is full; what was there before is replaced at once or kept.
        """
        sections: dict[str, Array | Section] = {}
        for weight in self.program.weights:
            if weight.dtype is DType.STRING:
                sections[weight.tensor] = _written(self._array(weight))
            else:
                form = stored_form(weight.dtype, weight.shape)
                sections[weight.tensor] = Section(form, functools.partial(self._array, weight))
        for name, image in self.images.items():
            sections[name] = image
        if "program" in sections:
            raise ValueError("no weight may be stored as 'program'")
        sections["program"] = _program_section(self)
        write(path, sections, keys=self.keys)

    def _array(self, weight: Weight) -> Array:
        held = self.weights[weight.name]
        if not isinstance(held, np.ndarray):
            held = apply(held.recipe, [_constant(source, weight) for source in held.sources])
        if held.shape != weight.shape or DType.of(held.dtype) is not weight.dtype:
            raise ValueError(
                f"weight {weight.name} is {held.dtype}{list(held.shape)}, expected "
                f"{weight.dtype.value}{list(weight.shape)}"
            )
        return held


def _constant(source: Source, weight: Weight) -> Array:
    if source.constant is None:
        raise ValueError(f"weight {weight.name} is made from something that is no constant")
    return np.asarray(source.constant)


def library_steps(steps: Sequence[Step]) -> Iterator[LibraryStep]:
    """All calls of vendors' libraries, also those of cases."""
    for step in steps:
        if isinstance(step, ChooseStep):
            for _, chosen in step.cases:
                yield from library_steps(chosen)
        elif isinstance(step, LibraryStep):
            yield step


def host_steps(steps: Sequence[Step]) -> Iterator[HostStep]:
    """All host steps, also those of cases and bodies."""
    for step in steps:
        if isinstance(step, ChooseStep):
            for _, chosen in step.cases:
                yield from host_steps(chosen)
        elif isinstance(step, HostStep):
            yield step
            for body in step.bodies:
                yield from host_steps(body.steps)


def _program_section(plan: Plan) -> Array:
    document = {
        "codegen": plan.codegen,
        "decisions": [dict(decision) for decision in plan.decisions],
        "program": program_to_json(plan.program),
        "target": dict(plan.target),
    }
    written = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return np.frombuffer(written.encode(), np.uint8)


def _written(strings: Array) -> Array:
    """Strings as JSON, since they have no bytes of their own."""
    document = json.dumps([str(item) for item in strings.reshape(-1)], separators=(",", ":"))
    return np.frombuffer(document.encode(), np.uint8)


def open_plan(
    path: str | os.PathLike[str], *, verify: bool = True, threads: int | None = None
) -> Plan:
    """Open a plan file; weights are read-only views of the mapped file.

    The program is always verified and checked, the weights' digests with ``verify``, in threads.
    Raises PlanCorruptError, PlanVersionError, or OSError when there is no such file.
    """
    container = read(path)
    if "program" not in container.names or container.form("program").dtype != "U8":
        raise PlanCorruptError(f"{Path(path)} holds no program; build or fetch it again")
    if container.form("program").nbytes > MAX_PROGRAM:
        refuse("program", f"it has {container.form('program').nbytes} bytes, over {MAX_PROGRAM}")
    container.verify(1, ["program"])
    document = parse(container.raw("program").tobytes(), "program")
    codegen, decisions, program, target = entries(
        document, "program", ("codegen", "decisions", "program", "target")
    )
    loaded = program_from_json(program)
    tensors = {weight.tensor for weight in loaded.weights}
    images = {function.tensor for function in loaded.functions}
    if "program" in tensors | images or tensors & images:
        refuse("program", "two parts of the plan are stored under one name")
    if tensors | images | {"program"} != set(container.names):
        refuse("program.weights", "the weights listed are not the weights in the file")
    for name in images:
        if container.form(name).dtype != "U8" or len(container.form(name).shape) != 1:
            refuse(f"image {name}", "it is stored as something else than bytes")
    for weight in loaded.weights:
        _check_form(weight, container.form(weight.tensor))
    if verify:
        container.verify(threads or min(os.cpu_count() or 1, 8))
    return Plan(
        program=loaded,
        weights={weight.name: _loaded(container, weight) for weight in loaded.weights},
        target=_dictionary(target, "target"),
        codegen=integer(codegen, "codegen", 0, 1 << 32),
        decisions=items(decisions, "decisions", _dictionary),
        keys=dict(container.keys),
        images={name: container.raw(name) for name in sorted(images)},
    )


def _dictionary(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(where, f"found {brief(value)}, expected a dictionary")
    return dict(plain(value, where))


def _check_form(weight: Weight, form: Form) -> None:
    fits = form == stored_form(weight.dtype, weight.shape)
    if weight.dtype is DType.STRING:
        fits = form.dtype == "U8" and len(form.shape) == 1
    if not fits:
        refuse(f"weight {weight.name}", f"it is stored as {form.dtype}{list(form.shape)}")


def _loaded(container: Container, weight: Weight) -> Array:
    raw = container.raw(weight.tensor)
    where = f"weight {weight.name}"
    if weight.dtype is DType.STRING:
        return _strings(parse(raw.tobytes(), where), weight, where)
    if weight.dtype is DType.BOOL and raw.size and raw.max() > 1:
        refuse(where, "a boolean is neither 0 nor 1")
    return raw.view(weight.dtype.numpy).reshape(weight.shape)


def _strings(strings: Any, weight: Weight, where: str) -> Array:
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        refuse(where, "it holds no strings")
    if len(strings) != math.prod(weight.shape):
        refuse(where, f"it holds {len(strings)} strings, expected shape {list(weight.shape)}")
    found = np.array(strings, object).reshape(weight.shape)
    found.flags.writeable = False
    return found
