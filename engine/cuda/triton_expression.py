"""The Triton printer of expressions, and the loads of an epilogue's operands.

Every value is a tile whose element type is the expression's; constants are tiles of one element.
Values of 16-bit floats are computed in float32 and rounded after every operation. What Triton can
only do through its device library's functions is refused, except "erf" in float32, so that every
text also runs in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.ir.types import DType
from engine.ops.expression import Expression, loads, order

__all__ = ["HELPERS", "check_epilogue", "element_type", "operand_text", "print_expression"]

#: Functions that printed text may call; a module with such text begins with them. Own fits: the
#: error of ef_erf is under 2e-7 everywhere, the relative error of ef_tanh under 4e-7.
HELPERS = """
@triton.jit
def ef_erf(x):
    a = tl.minimum(tl.abs(x), 4.0, propagate_nan=tl.PropagateNan.ALL)
    q = a * -6.946770736249164e-05 + 0.0003199369821231812
    q = q * a + 0.0015957908472046256
    q = q * a - 0.0204149279743433
    q = q * a + 0.10325374454259872
    q = q * a + 0.6365368962287903
    q = q * a + 1.128383755683899
    e = 1.0 - tl.exp(-(q * a))
    return tl.where(x < 0.0, -e, e)


@triton.jit
def ef_tanh(x):
    c = tl.maximum(x, -9.0, propagate_nan=tl.PropagateNan.ALL)
    c = tl.minimum(c, 9.0, propagate_nan=tl.PropagateNan.ALL)
    s = c * c
    p = s * 1.3184306091318376e-08 + 2.0471894458751194e-05
    p = p * s + 0.0034865858033299446
    p = p * s + 0.13373200595378876
    p = p * s + 0.9999998807907104
    q = s * 7.70269821259717e-07 + 0.0003271391906309873
    q = q * s + 0.02584199421107769
    q = q * s + 0.4670649766921997
    q = q * s + 1.0
    return c * p / q


@triton.jit
def ef_round(x):
    near = tl.floor(x + 0.5)
    half = near - x == 0.5
    odd = tl.floor(near * 0.5) * 2.0 != near
    near = tl.where(half & odd, near - 1.0, near)
    return tl.where(tl.abs(x) < 8388608.0, near, x)
"""

_TYPES = {
    DType.FLOAT32: "tl.float32",
    DType.FLOAT64: "tl.float64",
    DType.FLOAT16: "tl.float16",
    DType.BFLOAT16: "tl.bfloat16",
    DType.INT8: "tl.int8",
    DType.INT16: "tl.int16",
    DType.INT32: "tl.int32",
    DType.INT64: "tl.int64",
    DType.UINT8: "tl.uint8",
    DType.BOOL: "tl.int1",
}
_NARROW = (DType.FLOAT16, DType.BFLOAT16)
_INFIX = {"add": "+", "subtract": "-", "multiply": "*"}
_BITS = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_COMPARE = {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}
_LOGICAL = {"logical_and": "&", "logical_or": "|", "logical_xor": "^"}
_NAN = "propagate_nan=tl.PropagateNan.ALL"
_FLOAT_FORMS = {
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "abs": "tl.abs({0})",
    "min": f"tl.minimum({{0}}, {{1}}, {_NAN})",
    "max": f"tl.maximum({{0}}, {{1}}, {_NAN})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "tl.rsqrt({0})",
    "reciprocal": "1.0 / {0}",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "tl.where({0} < 0.0, tl.ceil({0}), tl.floor({0}))",
    "round": "ef_round({0})",
    "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, {0}))",
    "sigmoid": "1.0 / (1.0 + tl.exp(-{0}))",
    "tanh": "ef_tanh({0})",
    "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")',
}
_POWERS = {
    1.0: "{0}",
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    0.5: "tl.sqrt({0})",
    -1.0: "1.0 / {0}",
}
#: The largest values under the limits, exact in float32, and what is beyond them.
_SATURATED = {
    DType.INT8: (-128.0, 127.0),
    DType.UINT8: (0.0, 255.0),
    DType.INT16: (-32768.0, 32767.0),
}


def element_type(dtype: DType) -> str:
    """The Triton text of an element type; ValueError for one that kernels do not have."""
    if dtype not in _TYPES:
        raise ValueError(f"Triton kernels do not compute with {dtype.value}")
    return _TYPES[dtype]


def print_expression(
    expression: Expression, texts: Sequence[str], *, prefix: str = "t"
) -> tuple[list[str], str]:
    """Statements for an expression and the text of its value, a tile of the expression's type.

    ``texts[position]`` is the text of each load, a tile in the load's own type that broadcasts
    against the others. The statements rest on `HELPERS`. Raises ValueError naming what Triton has
    not.
    """
    precise = expression.dtype not in _NARROW
    names: dict[Expression, str] = {}
    lines: list[str] = []
    for node in order(expression):
        if node.function == "load":
            assert isinstance(node.value, int)
            text = texts[node.value]
        elif node.function == "constant":
            text = _constant_text(node)
        elif node.function == "index" or node.function.startswith("row_"):
            raise ValueError(f"{node.function} has a value only inside a region")
        else:
            text = _text(node, [names[item] for item in node.operands], precise)
        names[node] = f"{prefix}{len(names)}"
        lines.append(f"{names[node]} = {text}")
    return lines, names[expression]


def check_epilogue(expression: Expression, kinds: Sequence[str]) -> str:
    """Why an epilogue of a contraction cannot be printed; empty when it can."""
    found = loads(expression)
    if any(position > len(kinds) for position in found):
        return f"the epilogue reads operand {max(found)} of {len(kinds)}"
    if found.get(0, DType.FLOAT32) is not DType.FLOAT32:
        return f"the epilogue takes the sum as {found[0].value}, expected float32"
    try:
        print_expression(expression, ["x"] * (len(kinds) + 1))
        if expression.dtype not in ELEMENT_NAMES:
            return f"Triton kernels do not store {expression.dtype.value}"
    except ValueError as error:
        return str(error)
    return ""


def operand_text(
    kind: str,
    name: str,
    dtype: DType,
    *,
    stride: str = "",
    row_mask: str = "",
    column_mask: str = "",
    at: str = "",
) -> str:
    """The tile of an operand that is read through a pointer called ``name``.

    In scope are ``rows`` and ``columns``, the indices along both axes of the tile; ``rows`` is of
    64 bits where products with ``stride`` (the text of elements between rows) may pass 31. A mask
    is the text of a condition over one axis, empty where no index lies outside. ``at`` is the text
    of the addresses of a "full" operand, where those can be had with less.
    """
    if kind == "scalar":
        text = f"tl.load({name} + tl.zeros((1, 1), tl.int32))"
    elif kind == "column":
        mask = f", mask={column_mask}, other=0" if column_mask else ""
        text = f"tl.load({name} + columns{mask})[None, :]"
    elif kind == "row":
        mask = f", mask={row_mask}, other=0" if row_mask else ""
        text = f"tl.load({name} + rows{mask})[:, None]"
    else:
        masks = [
            m for m in (f"({row_mask})[:, None]", f"({column_mask})[None, :]") if "()" not in m
        ]
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({at or f'{name} + rows[:, None] * {stride} + columns[None, :]'}{mask})"
    return f"({text} != 0)" if dtype is DType.BOOL else text


def _constant_text(node: Expression) -> str:
    value = node.value
    assert value is not None
    number = repr(bool(value)) if node.dtype is DType.BOOL else repr(value)
    if node.dtype.is_float:
        number = repr(float(value)) if math.isfinite(value) else f'float("{float(value)!r}")'
    return f"tl.full((1, 1), {number}, {element_type(node.dtype)})"


def _text(node: Expression, operands: list[str], precise: bool) -> str:
    function, source = node.function, node.operands[0].dtype
    if function == "cast":
        return _cast_text(operands[0], source, node.dtype)
    if function == "select":
        return f"tl.where({', '.join(operands)})"
    if function in _COMPARE:
        return f"{operands[0]} {_COMPARE[function]} {operands[1]}"
    if function in _LOGICAL:
        return f"{operands[0]} {_LOGICAL[function]} {operands[1]}"
    if function == "logical_not":
        return f"{operands[0]} == 0"
    if source.is_integer:
        return _integer_text(function, source, operands)
    if not source.is_float:
        raise ValueError(f"Triton kernels have no {function} of {source.value}")
    element_type(source)
    if source in _NARROW:
        operands = [f"{item}.to(tl.float32)" for item in operands]
    text = _float_text(node, operands, precise)
    return f"({text}).to({element_type(source)})" if node.dtype in _NARROW else text


def _float_text(node: Expression, operands: list[str], precise: bool) -> str:
    function = node.function
    if function in _INFIX:
        return f"{operands[0]} {_INFIX[function]} {operands[1]}"
    if function == "power":
        exponent = node.operands[1]
        if exponent.function != "constant" or exponent.value not in _POWERS:
            raise ValueError("Triton kernels have no power but with a small constant exponent")
        return _POWERS[float(exponent.value)].format(operands[0])
    if function == "erf":
        wide = precise and node.dtype is not DType.FLOAT64
        return f"tl.erf({operands[0]})" if wide else f"ef_erf({operands[0]})"
    if function not in _FLOAT_FORMS or node.operands[0].dtype is DType.FLOAT64:
        raise ValueError(f"Triton kernels have no {function} of {node.operands[0].dtype.value}")
    return _FLOAT_FORMS[function].format(*operands)


def _integer_text(function: str, dtype: DType, operands: list[str]) -> str:
    element_type(dtype)
    infix = _INFIX.get(function) or _BITS.get(function)
    if infix is not None:
        return f"({operands[0]} {infix} {operands[1]}).to({element_type(dtype)})"
    if function in ("min", "max"):
        return f"tl.{function}imum({operands[0]}, {operands[1]})"
    raise ValueError(f"Triton kernels have no {function} of {dtype.value}")


def _cast_text(value: str, source: DType, target: DType) -> str:
    element_type(source)
    if target is DType.BOOL:
        return f"{value} != 0"
    if source.is_float and target.is_integer:
        if target not in _SATURATED:
            raise ValueError(f"Triton kernels do not saturate {source.value} to {target.value}")
        low, high = _SATURATED[target]
        wide = f"{value}.to(tl.float32)" if source is not DType.FLOAT32 else value
        bounded = f"tl.minimum(tl.maximum({wide}, {low}), {high})"
        number = f"tl.where({wide} == {wide}, {bounded}, 0.0)"
        return f"{number}.to(tl.int32).to({element_type(target)})"
    if source is DType.FLOAT64 and target in _NARROW:
        raise ValueError(f"Triton kernels round {source.value} to {target.value} twice")
    return f"{value}.to({element_type(target)})"
