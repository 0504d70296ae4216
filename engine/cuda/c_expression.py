"""The CUDA C printer of expressions: one statement per node over named scalars.

Values of 16-bit floats are carried as float and rounded after every operation, booleans as int.
Nothing from outside reaches the text: names are generated, functions come from a closed table, and
numbers are printed anew from their values. Operators mean what `engine.ops.expression` fixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from engine.cuda.c_prelude import PRELUDE
from engine.ir.types import DType
from engine.ops.expression import Expression, order

__all__ = [
    "PRELUDE",
    "printable",
    "print_expression",
    "print_number",
    "print_statements",
    "read_text",
    "storage_type",
    "value_type",
    "write_text",
]

# Type, the type in which its arithmetic wraps, the suffix of its conversions.
_INTEGERS = {
    DType.INT8: ("int8_t", "uint32_t", "i8"),
    DType.INT16: ("int16_t", "uint32_t", "i16"),
    DType.INT32: ("int32_t", "uint32_t", "i32"),
    DType.INT64: ("int64_t", "uint64_t", "i64"),
    DType.UINT8: ("uint8_t", "uint32_t", "u8"),
    DType.UINT16: ("uint16_t", "uint32_t", "u16"),
    DType.UINT32: ("uint32_t", "uint32_t", "u32"),
    DType.UINT64: ("uint64_t", "uint64_t", "u64"),
}
_NARROW = {DType.FLOAT16: "float16", DType.BFLOAT16: "bfloat16"}
_INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
}
_COMPARE = {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "logical_and": "&",
    "logical_or": "|",
    "logical_xor": "^",
}
_LIBRARY = (
    "exp expm1 log log1p sqrt erf sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh"
)
# Function to its text; @ is the suffix "f" of float32's functions and constants.
_FLOAT_FORMS = {
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "abs": "fabs@({0})",
    "sign": "ef_sign({0})",
    "min": "ef_minimum({0}, {1})",
    "max": "ef_maximum({0}, {1})",
    "fmod": "fmod@({0}, {1})",
    "floor_mod": "ef_floor_mod({0}, {1})",
    "power": "pow@({0}, {1})",
    "rsqrt": "ef_rsqrt({0})",
    "reciprocal": "1.0@ / {0}",
    "floor": "floor@({0})",
    "ceil": "ceil@({0})",
    "trunc": "trunc@({0})",
    "round": "rint@({0})",
    "sigmoid": "ef_sigmoid({0})",
    "isnan": "{0} != {0}",
    "isinf": "fabs@({0}) == INFINITY",
    **{name: f"{name}@({{0}})" for name in _LIBRARY.split()},
}
_INTEGER_CALLS = frozenset(
    [
        *("min", "max", "abs", "sign", "negative", "divide", "fmod", "floor_mod", "power"),
        *("shift_left", "shift_right"),
    ]
)
# Powers that need no general function.
_POWERS = {
    1.0: "{0}",
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    -1.0: "1.0@ / {0}",
    -2.0: "1.0@ / ({0} * {0})",
}


def printable(dtype: DType) -> bool:
    """Whether CUDA C kernels load, compute and store this element type."""
    simple = (DType.FLOAT32, DType.FLOAT64, DType.BOOL)
    return dtype in _INTEGERS or dtype in _NARROW or dtype in simple


def _refuse(dtype: DType) -> str:
    raise ValueError(f"CUDA C kernels do not compute with {dtype.value}")


def storage_type(dtype: DType) -> str:
    """The C type of an element in memory; ValueError for a type that these kernels do not have."""
    if dtype in _INTEGERS:
        return _INTEGERS[dtype][0]
    if dtype in _NARROW:
        return "uint16_t"
    names = {DType.FLOAT32: "float", DType.FLOAT64: "double", DType.BOOL: "uint8_t"}
    return names.get(dtype) or _refuse(dtype)


def value_type(dtype: DType) -> str:
    """The C type that carries a value of this element type."""
    if dtype in _NARROW:
        return "float"
    return "int32_t" if dtype is DType.BOOL else storage_type(dtype)


def read_text(dtype: DType, element: str) -> str:
    """The value of an element in memory."""
    if dtype in _NARROW:
        return f"ef_from_{_NARROW[dtype]}({element})"
    return f"({element} != 0)" if dtype is DType.BOOL else element


def write_text(dtype: DType, value: str) -> str:
    """What is stored for a value."""
    if dtype in _NARROW:
        return f"ef_to_{_NARROW[dtype]}({value})"
    return f"(uint8_t)({value} != 0)" if dtype is DType.BOOL else value


def print_number(value: bool | int | float, dtype: DType) -> str:
    """A constant as C text."""
    if dtype is DType.BOOL:
        return "1" if value else "0"
    if dtype in _INTEGERS:
        name, _, _ = _INTEGERS[dtype]
        if int(value) == -(1 << 63):
            return "INT64_MIN"
        suffix = "ull" if name.startswith("u") else "ll"
        return f"(({name})({int(value)}{suffix}))"
    suffix = "" if dtype is DType.FLOAT64 else "f"
    number = float(value)
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    return f"({number.hex()}{suffix})"


def print_statements(
    roots: Sequence[Expression],
    leaf: Callable[[Expression], str],
    *,
    prefix: str = "t",
    known: dict[Expression, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Statements that compute the expressions, and the C texts of their values.

    ``leaf`` gives the text of a load or index node's value. ``known`` holds texts of nodes computed
    before and takes up the new ones, so that a body may be printed in several parts.
    """
    names = {} if known is None else known
    lines: list[str] = []
    for node in order(*roots, known=names):
        if node.function == "constant":
            assert node.value is not None
            names[node] = print_number(node.value, node.dtype)
            continue
        name = f"{prefix}{len(names)}"
        text = leaf(node) if node.function in ("load", "index") else _text(node, names)
        lines.append(f"const {value_type(node.dtype)} {name} = {text};")
        names[node] = name
    return lines, [names[root] for root in roots]


def print_expression(
    expression: Expression, loads: Sequence[str], *, prefix: str = "t"
) -> tuple[list[str], str]:
    """Statements for one expression and the text of its value.

    ``loads[position]`` is the C text of each load, already in its value type.
    """

    def leaf(node: Expression) -> str:
        if node.function != "load" or not isinstance(node.value, int):
            raise ValueError(f"{node.function} has a value only inside a region")
        return loads[node.value]

    lines, values = print_statements([expression], leaf, prefix=prefix)
    return lines, values[0]


def _text(node: Expression, names: dict[Expression, str]) -> str:
    operands = [names[item] for item in node.operands]
    function = node.function
    if function == "cast":
        return _cast_text(operands[0], node.operands[0].dtype, node.dtype)
    if function == "select":
        return f"{operands[0]} ? {operands[1]} : {operands[2]}"
    if function in _COMPARE:
        return f"{operands[0]} {_COMPARE[function]} {operands[1]}"
    if function == "logical_not":
        return f"!{operands[0]}"
    source = node.operands[0].dtype
    if source in _INTEGERS:
        return _integer_text(function, source, operands)
    if not source.is_float:
        raise ValueError(f"CUDA C kernels have no {function} of {source.value}")
    text = _float_text(node, operands)
    if source in _NARROW and node.dtype is source:
        return f"ef_round_{_NARROW[source]}({text})"
    value_type(source)
    return text


def _float_text(node: Expression, operands: list[str]) -> str:
    function = node.function
    double = node.operands[0].dtype is DType.FLOAT64
    if function in _INFIX:
        return f"{operands[0]} {_INFIX[function]} {operands[1]}"
    exponent = node.operands[-1]
    form = _FLOAT_FORMS.get(function)
    if function == "power" and exponent.function == "constant" and exponent.value in _POWERS:
        form = _POWERS[float(exponent.value)]
    if form is None:
        raise ValueError(f"CUDA C kernels have no {function} of floats")
    return form.replace("@", "" if double else "f").format(*operands)


def _integer_text(function: str, dtype: DType, operands: list[str]) -> str:
    name, unsigned, _ = _INTEGERS[dtype]
    if function in _INFIX:
        left, right = operands
        return f"({name})(({unsigned}){left} {_INFIX[function]} ({unsigned}){right})"
    if function == "bitwise_not":
        return f"({name})~{operands[0]}"
    if function in _INTEGER_CALLS:
        return f"ef_integer_{function}<{name}>({', '.join(operands)})"
    raise ValueError(f"CUDA C kernels have no {function} of integers")


def _cast_text(value: str, source: DType, target: DType) -> str:
    """The C text that converts a value from one element type to another."""
    value_type(source)
    if target is DType.BOOL:
        return f"{value} != 0"
    if target in _INTEGERS:
        name, _, suffix = _INTEGERS[target]
        if source.is_float:
            side = "double" if source is DType.FLOAT64 else "float"
            return f"ef_{side}_to_{suffix}({value})"
        return f"({name}){value}"
    if target in _NARROW:
        if _NARROW.get(source) == _NARROW[target]:
            return value
        wide = f"ef_round_to_odd({value})" if source is DType.FLOAT64 else f"(float){value}"
        return f"ef_round_{_NARROW[target]}({wide})"
    return f"({storage_type(target)}){value}"
