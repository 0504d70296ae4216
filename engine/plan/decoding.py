"""A program from JSON that may be hostile: the form here, how things hang together in checking."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

from engine.ir.types import (
    DType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownSize,
)
from engine.kernels.kernel import KERNELS, Kernel
from engine.ops.reference import Reference
from engine.plan.checking import check_program
from engine.plan.device_json import device_step_from_json, function_from_json
from engine.plan.expressions import LARGEST, read_dim
from engine.plan.fields import (
    MAX_ITEMS,
    brief,
    choice,
    entries,
    integer,
    items,
    optional,
    plain,
    refuse,
    text,
)
from engine.plan.operators import read_operator
from engine.plan.recipes import read_recipe_step
from engine.plan.structure import (
    ChooseStep,
    Guard,
    HostStep,
    KernelStep,
    Layer,
    Place,
    Program,
    Relation,
    Slot,
    Source,
    Step,
    Symbol,
    Weight,
)

__all__ = ["program_from_json", "type_from_json"]

MAX_BODIES = 8
MAX_CHOICES = 4
MAX_RANK = 64
MAX_TYPE_DEPTH = 8
PLACES = ("input", "output", "arena", "weight", "host", "zeros")
RELATIONS = ("<=", "==", "divides")
DTYPES = tuple(dtype.value for dtype in DType)
Known = frozenset[str]


def _dtype(value: Any, where: str) -> DType:
    return DType(choice(value, where, DTYPES))


def type_from_json(value: Any, where: str, known: Known, depth: int = 0) -> Type:
    """The type that `type_to_json` wrote; PlanCorruptError otherwise."""
    if depth > MAX_TYPE_DEPTH:
        refuse(where, "the type is nested too deeply")
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "sequence":
            return SequenceType(type_from_json(inner, where, known, depth + 1))
        if kind == "optional":
            return OptionalType(type_from_json(inner, where, known, depth + 1))
        if kind == "map" and isinstance(inner, list) and len(inner) == 2:
            key = _dtype(inner[0], where)
            return MapType(key, type_from_json(inner[1], where, known, depth + 1))
    if not isinstance(value, list) or len(value) != 2:
        refuse(where, f"found {brief(value)}, expected a type")
    dims = value[1]
    if dims is None:
        return TensorType(_dtype(value[0], where), None)
    if not isinstance(dims, list) or len(dims) > MAX_RANK:
        refuse(where, f"found {brief(dims)}, expected a shape of rank {MAX_RANK} at most")
    shape = tuple(
        UnknownSize() if dim is None else read_dim(dim, f"{where}[{axis}]", known)
        for axis, dim in enumerate(dims)
    )
    return TensorType(_dtype(value[0], where), cast(tuple[int, ...], shape))


def _symbol(value: Any, where: str, known: Known) -> Symbol:
    name, least, usual, greatest, source = entries(
        value, where, ("name", "least", "usual", "greatest", "source")
    )
    if not isinstance(source, list) or source != ["data"]:
        parts = source if isinstance(source, list) else []
        if len(parts) != 3 or parts[0] != "input":
            refuse(f"{where}.source", f'{brief(source)} is neither "data" nor an input and axis')
        read: Source = (
            "input",
            text(parts[1], f"{where}.source", empty=True),
            integer(parts[2], f"{where}.source", 0, MAX_RANK),
        )
    else:
        read = ("data",)
    size = functools.partial(integer, least=0, most=LARGEST)
    return Symbol(
        name=text(name, f"{where}.name"),
        least=size(least, f"{where}.least"),
        usual=items(usual, f"{where}.usual", size),
        greatest=optional(greatest, f"{where}.greatest", lambda v, at: read_dim(v, at, known)),
        source=read,
    )


def _symbols(value: Any, where: str) -> tuple[Symbol, ...]:
    known: set[str] = set()

    def read(item: Any, at: str) -> Symbol:
        symbol = _symbol(item, at, frozenset(known))
        if symbol.name in known:
            refuse(at, f"the symbol {symbol.name!r} is listed twice")
        known.add(symbol.name)
        return symbol

    if isinstance(value, list) and len(value) > 1024:
        refuse(where, f"found {len(value)} symbols, expected at most 1024")
    return items(value, where, read)


def _index(value: Any, where: str) -> int:
    return integer(value, where, 0, MAX_ITEMS)


def _slot(value: Any, where: str, known: Known) -> Slot:
    kind, place, name, alias, offset = entries(
        value, where, ("type", "place", "name", "alias", "offset")
    )
    return Slot(
        type=type_from_json(kind, f"{where}.type", known),
        place=cast(Place, choice(place, f"{where}.place", PLACES)),
        name=text(name, f"{where}.name", empty=True),
        alias=optional(alias, f"{where}.alias", _index),
        offset=read_dim(offset, f"{where}.offset", known),
    )


def _weight(value: Any, where: str) -> Weight:
    name, dtype, shape, tensor, sources, recipe = entries(
        value, where, ("name", "dtype", "shape", "tensor", "sources", "recipe")
    )
    size = functools.partial(integer, least=0, most=LARGEST)
    weight = Weight(
        name=text(name, f"{where}.name"),
        dtype=_dtype(dtype, f"{where}.dtype"),
        shape=items(shape, f"{where}.shape", size),
        tensor=text(tensor, f"{where}.tensor"),
        sources=items(sources, f"{where}.sources", text),
        recipe=items(recipe, f"{where}.recipe", read_recipe_step),
    )
    if len(weight.shape) > MAX_RANK or math.prod(weight.shape) * weight.dtype.nbytes > LARGEST:
        refuse(f"{where}.shape", "the weight is greater than 2**48 bytes")
    return weight


def kernel_from_json(value: Any, where: str) -> Kernel:
    """The kernel that `kernel_to_json` wrote; PlanCorruptError otherwise."""
    kind, fields = entries(value, where, ("kind", "fields"))
    name = text(kind, f"{where}.kind")
    if name not in KERNELS:
        refuse(f"{where}.kind", f"no kernel is called {brief(name)}")
    if not isinstance(fields, dict):
        refuse(f"{where}.fields", f"found {brief(fields)}, expected a dictionary")
    try:
        return KERNELS[name].from_json(fields)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
        refuse(f"{where}.fields", f"{name}: {str(error)[:200]}")
    except RecursionError:
        refuse(f"{where}.fields", f"{name}: nested too deeply")


def _operand(value: Any, where: str, known: Known) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        refuse(where, f"found {brief(value)}, expected a slot and an offset")
    return _index(value[0], where), cast(int, read_dim(value[1], where, known))


def _kernel_step(value: Any, where: str, known: Known) -> KernelStep:
    kernel, operands, sizes, layer = entries(value, where, ("kernel", "operands", "sizes", "layer"))
    return KernelStep(
        kernel=_index(kernel, f"{where}.kernel"),
        operands=items(operands, f"{where}.operands", lambda v, at: _operand(v, at, known)),
        sizes=items(sizes, f"{where}.sizes", lambda v, at: read_dim(v, at, known)),
        layer=_index(layer, f"{where}.layer"),
    )


def _declared(value: Any, where: str) -> tuple[str, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        refuse(where, f"found {brief(value)}, expected symbol, output and axis")
    axis = integer(value[2], where, 0, MAX_RANK)
    return text(value[0], where), _index(value[1], where), axis


def _host_step(value: Any, where: str, depth: int) -> HostStep:
    function, operator, inputs, outputs, declares, bodies, layer = entries(
        value,
        where,
        ("function", "operator", "inputs", "outputs", "declares", "bodies", "layer"),
    )
    name = choice(function, f"{where}.function", ("meaning", "reference", "copy", "cupy"))
    if name != "copy":
        found = read_operator(operator, f"{where}.operator")
        if (name == "reference") != isinstance(found, Reference):
            refuse(f"{where}.operator", f"{found.name} does not run as {name}")
    else:
        entries(operator, f"{where}.operator", ())
    if isinstance(bodies, list) and len(bodies) > 2:
        refuse(f"{where}.bodies", f"found {len(bodies)} bodies, expected two at most")
    return HostStep(
        function=cast(Any, name),
        operator=operator,
        inputs=items(inputs, f"{where}.inputs", lambda v, at: optional(v, at, _index)),
        outputs=items(outputs, f"{where}.outputs", _index),
        declares=items(declares, f"{where}.declares", _declared),
        bodies=items(bodies, f"{where}.bodies", lambda v, at: _program(v, at, depth + 1)),
        layer=_index(layer, f"{where}.layer"),
    )


def _guard(value: Any, where: str, known: Known) -> Guard:
    if not isinstance(value, list) or len(value) != 3:
        refuse(where, f"found {brief(value)}, expected relation, left and right")
    relation = cast(Relation, choice(value[0], where, RELATIONS))
    return Guard(relation, read_dim(value[1], where, known), read_dim(value[2], where, known))


def _choose_step(value: Any, where: str, known: Known, depth: int, nested: int) -> ChooseStep:
    if nested > MAX_CHOICES:
        refuse(where, "choices are nested too deeply")

    def case(item: Any, at: str) -> tuple[tuple[Guard, ...], tuple[Step, ...]]:
        guards, steps = entries(item, at, ("guards", "steps"))
        return (
            items(guards, f"{at}.guards", lambda v, w: _guard(v, w, known)),
            items(steps, f"{at}.steps", lambda v, w: _step(v, w, known, depth, nested + 1)),
        )

    (cases,) = entries(value, where, ("cases",))
    return ChooseStep(items(cases, f"{where}.cases", case))


def _step(value: Any, where: str, known: Known, depth: int, nested: int = 0) -> Step:
    if isinstance(value, dict) and "cases" in value:
        return _choose_step(value, where, known, depth, nested)
    if isinstance(value, dict) and "function" in value:
        return _host_step(value, where, depth)
    device = device_step_from_json(value, where, known) if isinstance(value, dict) else None
    if device is not None:
        return device
    return _kernel_step(value, where, known)


def _layer(value: Any, where: str) -> Layer:
    name, kind, nodes, tactic, picked, time_ns = entries(
        value, where, ("name", "kind", "nodes", "tactic", "choice", "time_ns")
    )
    if not isinstance(picked, dict):
        refuse(f"{where}.choice", f"found {brief(picked)}, expected a dictionary")
    return Layer(
        name=text(name, f"{where}.name", empty=True),
        kind=text(kind, f"{where}.kind", empty=True),
        nodes=items(nodes, f"{where}.nodes", lambda v, at: text(v, at, empty=True)),
        tactic=text(tactic, f"{where}.tactic", empty=True),
        choice=plain(picked, f"{where}.choice"),
        time_ns=integer(time_ns, f"{where}.time_ns", 0, 1 << 62),
    )


def _program(value: Any, where: str, depth: int) -> Program:
    if depth > MAX_BODIES:
        refuse(where, "bodies are nested too deeply")
    functions: Any = []
    if isinstance(value, dict) and "functions" in value:  # only programs for a GPU have it
        functions = value["functions"]
        value = {name: item for name, item in value.items() if name != "functions"}
    symbols, slots, inputs, outputs, kernels, steps, layers, weights = entries(
        value,
        where,
        ("symbols", "slots", "inputs", "outputs", "kernels", "steps", "layers", "weights"),
    )
    symbol_values = _symbols(symbols, f"{where}.symbols")
    known = frozenset(symbol.name for symbol in symbol_values)
    return Program(
        symbols=symbol_values,
        slots=items(slots, f"{where}.slots", lambda v, at: _slot(v, at, known)),
        inputs=items(inputs, f"{where}.inputs", _index),
        outputs=items(outputs, f"{where}.outputs", _index),
        kernels=items(kernels, f"{where}.kernels", kernel_from_json),
        steps=items(steps, f"{where}.steps", lambda v, at: _step(v, at, known, depth)),
        layers=items(layers, f"{where}.layers", _layer),
        weights=items(weights, f"{where}.weights", _weight),
        functions=items(functions, f"{where}.functions", function_from_json),
    )


def program_from_json(value: Any) -> Program:
    """The program that `program_to_json` wrote, checked throughout; PlanCorruptError otherwise."""
    program = _program(value, "program", 0)
    check_program(program)
    return program
