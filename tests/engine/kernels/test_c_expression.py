"""The C printer against the NumPy printer, on random expressions and on every function."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings

from engine.ir.types import Array, DType
from engine.kernels.c_expression import (
    PRELUDE,
    print_expression,
    printable,
    read_text,
    storage_type,
    write_text,
)
from engine.kernels.isa import detect
from engine.ops.expression import Expression, call, cast, constant, evaluate, load, loads, order
from engine.ops.functions import FUNCTIONS
from engine.runtime.compilation import Function, find_compiler
from engine.runtime.compilation import load as compiled
from tests.engine.random_expressions import SMOOTH, TYPES, exact_expressions, values

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")
F = DType.FLOAT32


def c_file(expression: Expression) -> str:
    """A loop over arrays: one per load, then the output."""
    kinds = loads(expression)
    count = max(kinds, default=-1) + 1
    texts = [read_text(kinds.get(i, F), f"x{i}[i]") for i in range(count)]
    lines, value = print_expression(expression, texts)
    pointers = "".join(
        f"const {storage_type(kinds.get(i, F))} *x{i} = pointer[{i}];\n" for i in range(count)
    )
    target = storage_type(expression.dtype)
    return (
        f"{PRELUDE}\nvoid kernel(void *const *pointer, const int64_t *size, int64_t begin,"
        f"int64_t end, char *scratch) {{\n{pointers}{target} *y = pointer[{count}];\n"
        "for (int64_t i = begin; i < end; ++i) {\n" + "\n".join(lines) + "\n"
        f"y[i] = {write_text(expression.dtype, value)};\n}}}}\n"
    )


def run(expression: Expression, operands: list[Array]) -> Array:
    """The C printer's answer over arrays of one length."""
    address = compiled([Function("kernel", c_file(expression))], detect())["kernel"]
    result = np.empty(operands[0].size, expression.dtype.numpy)
    arrays = [*operands[: max(loads(expression), default=-1) + 1], result]
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    function = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )(address)
    function(pointers, None, 0, result.size, None)
    return result


def same(found: Array, expected: Array, units: float = 0) -> None:
    """Equal but for some units in the last place of float32 (or float64)."""
    assert found.dtype == expected.dtype
    kind = DType.of(found.dtype)
    if not kind.is_float:
        np.testing.assert_array_equal(found, expected)
        return
    if kind.nbytes < 4:
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    expected = np.broadcast_to(expected, found.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    good = np.isfinite(expected)
    gap = np.abs(found[good].astype(np.float64) - expected[good])
    with np.errstate(over="ignore", invalid="ignore"):
        step = np.spacing(np.maximum(np.abs(expected[good]), np.finfo(found.dtype).tiny))
    assert (gap <= units * step).all(), f"{(gap / step).max()} units off"


def fused(expression: Expression) -> bool:
    """Whether a compiler may contract a product and a sum into one rounding."""
    nodes = order(expression)
    made = {n.function for n in nodes if n.dtype.is_float}
    return "multiply" in made and bool(made & {"add", "subtract"})


@settings(max_examples=60, deadline=None)
@given(expression=exact_expressions())
def test_both_printers_agree_exactly_on_random_expressions(expression: Expression) -> None:
    assume(not fused(expression))
    kinds = loads(expression)
    operands = [values(kinds.get(i, F), 64, i) for i in range(3)]
    expected = np.broadcast_to(evaluate(expression, operands), (64,))
    same(run(expression, operands), expected)


@pytest.mark.parametrize("dtype", [F, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_agree_within_a_few_units(name: str, dtype: DType) -> None:
    x = np.concatenate([values(dtype, 500, 1), np.linspace(-12, 12, 997).astype(dtype.numpy)])
    expression = call(name, load(0, dtype))
    if dtype in (F, DType.FLOAT64):
        same(run(expression, [x]), evaluate(expression, [x]), units=4)
    else:  # one unit of the narrow type, when the wide results straddle a rounding boundary
        found = run(expression, [x]).astype(np.float32)
        expected = evaluate(expression, [x]).astype(np.float32)
        epsilon = 2**-9 if dtype is DType.FLOAT16 else 2**-6
        np.testing.assert_allclose(found, expected, rtol=epsilon, atol=1e-7)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 2.5, -0.5])
def test_powers_with_constant_exponents(exponent: float) -> None:
    x = np.abs(values(F, 300, 5)) + np.float32(0.25)
    expression = call("power", load(0, F), constant(exponent, F))
    same(run(expression, [x]), evaluate(expression, [x]), units=3)


def test_integer_powers() -> None:
    for dtype in (DType.INT32, DType.UINT8, DType.INT64):
        expression = call("power", load(0, dtype), load(1, dtype))
        operands = [values(dtype, 100, 7), values(dtype, 100, 8) % dtype.numpy.type(9)]
        same(run(expression, operands), evaluate(expression, operands))


@pytest.mark.parametrize("source", TYPES)
def test_every_conversion(source: DType) -> None:
    x = values(source, 100, 3)
    for target in TYPES:
        expression = cast(load(0, source), target)
        same(run(expression, [x]), evaluate(expression, [x]))


def test_numbers_are_printed_anew() -> None:
    for value in (0.1, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")):
        node = constant(value, F)
        expression = call("add", load(0, F), node)
        x = np.zeros(3, np.float32)
        same(run(expression, [x]), evaluate(expression, [x]))
    for dtype in (DType.INT64, DType.UINT64, DType.INT8):
        info = np.iinfo(dtype.numpy)
        for value in (int(info.min), int(info.max)):
            expression = call("bitwise_xor", load(0, dtype), constant(value, dtype))
            x = np.zeros(3, dtype.numpy)
            same(run(expression, [x]), evaluate(expression, [x]))


@settings(max_examples=30, deadline=None)
@given(expression=exact_expressions())
def test_printed_text_holds_only_generated_names(expression: Expression) -> None:
    lines, value = print_expression(expression, ["x0", "x1", "x2"])
    text = "\n".join([*lines, value])
    numbers = r"0x[\w.]+(p[+-]\d+)?f?"
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(numbers, "", text)))
    known = r"const|float|double|u?int\d+_t|t\d+|x\d|ef_\w+|__builtin_\w+|fmodf?|u?ll"
    assert all(re.fullmatch(known + r"|INFINITY|NAN|INT64_MIN|f", word) for word in words), words


def test_shared_parts_are_printed_once() -> None:
    node = load(0, F)
    for _ in range(60):
        node = call("add", node, node)
    lines, _ = print_expression(node, ["x"])
    assert len(lines) == 61


def test_types_without_a_c_form_are_refused() -> None:
    assert not printable(DType.FLOAT8E4M3FN)
    with pytest.raises(ValueError, match="float8e4m3fn"):
        print_expression(cast(load(0, F), DType.FLOAT8E4M3FN), ["x"])
    with pytest.raises(ValueError, match="string"):
        storage_type(DType.STRING)


def test_every_function_of_the_table_prints() -> None:
    for name, row in FUNCTIONS.items():
        dtype = F if "float" in row.takes else DType.INT32 if "integer" in row.takes else DType.BOOL
        operands = [load(i, dtype) for i in range(row.arity)]
        if name == "select":
            operands[0] = load(0, DType.BOOL)
        assert print_expression(call(name, *operands), ["a", "b", "c"])[1]
