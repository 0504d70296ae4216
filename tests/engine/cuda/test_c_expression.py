"""The CUDA C printer against the NumPy printer, on random expressions and on every function."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings

from engine.cuda.c_expression import (
    PRELUDE,
    print_expression,
    printable,
    read_text,
    storage_type,
    write_text,
)
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import Array, DType
from engine.ops.expression import Expression, call, cast, constant, evaluate, load, loads, order
from engine.ops.functions import FUNCTIONS
from tests.cuda_shim import run_kernel
from tests.engine.random_expressions import SMOOTH, TYPES, exact_expressions, values

F = DType.FLOAT32
THREADS = 64
#: There functions are CUDA's own, and products and sums may become one rounding.
ON_GPU = os.environ.get("ENGINEFARM_TEST_KERNELS") == "gpu"


def kernel_of(*expressions: Expression) -> DeviceKernel:
    """A kernel with a thread per element: one array per load, then one per expression."""
    kinds = loads(*expressions)
    count = max(kinds, default=-1) + 1
    texts = [read_text(kinds.get(i, F), f"x{i}[i]") for i in range(count)]
    pointers = [f"const {storage_type(kinds.get(i, F))} *x{i}" for i in range(count)]
    body = ""
    for place, expression in enumerate(expressions):
        lines, value = print_expression(expression, texts, prefix=f"t{place}_")
        pointers.append(f"{storage_type(expression.dtype)} *y{place}")
        body += "\n".join(lines)
        body += f"\ny{place}[i] = {write_text(expression.dtype, value)};\n"
    source = (
        f'{PRELUDE}\nextern "C" __global__ void kernel({", ".join(pointers)}, int count) {{\n'
        f"const int i = blockIdx.x * {THREADS} + threadIdx.x;\nif (i >= count) return;\n{body}}}\n"
    )
    return DeviceKernel("nvrtc", "kernel", source, THREADS)


def run(expression: Expression, operands: list[Array]) -> Array:
    """The printer's answer over arrays of one length."""
    return run_all([expression], operands)[0]


def run_all(expressions: list[Expression], operands: list[Array]) -> list[Array]:
    size = operands[0].size
    results = [np.empty(size, item.dtype.numpy) for item in expressions]
    inputs = operands[: max(loads(*expressions), default=-1) + 1]
    grid = (-(-size // THREADS),)
    run_kernel(kernel_of(*expressions), grid, [*inputs, *results, ("i32", size)])
    return results


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
    made = {node.function for node in order(expression) if node.dtype.is_float}
    return "multiply" in made and bool(made & {"add", "subtract"})


@settings(max_examples=40, deadline=None)
@given(expression=exact_expressions(size=20))
def test_both_printers_agree_exactly_on_random_expressions(expression: Expression) -> None:
    kinds = loads(expression)
    operands = [values(kinds.get(i, F), 64, i) for i in range(3)]
    expected = np.broadcast_to(evaluate(expression, operands), (64,))
    assume(len(order(expression)) > 1 and not (ON_GPU and fused(expression)))
    same(run(expression, operands), expected)


@pytest.mark.parametrize("dtype", [F, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16])
def test_smooth_functions_agree_within_a_few_units(dtype: DType) -> None:
    x = np.concatenate([values(dtype, 500, 1), np.linspace(-12, 12, 997).astype(dtype.numpy)])
    expressions = [call(name, load(0, dtype)) for name in SMOOTH]
    for expression, found in zip(expressions, run_all(expressions, [x]), strict=True):
        expected = evaluate(expression, [x])
        if dtype in (F, DType.FLOAT64):
            same(found, expected, units=8 if ON_GPU else 4)
        elif found.dtype == bool:
            np.testing.assert_array_equal(found, expected)
        else:  # one unit of the narrow type, when wide results straddle a rounding boundary
            epsilon = 2**-9 if dtype is DType.FLOAT16 else 2**-6
            wide = [item.astype(np.float32) for item in (found, expected)]
            np.testing.assert_allclose(*wide, rtol=epsilon, atol=1e-7)


def test_powers_with_constant_exponents() -> None:
    x = np.abs(values(F, 300, 5)) + np.float32(0.25)
    exponents = (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 2.5, -0.5)
    expressions = [call("power", load(0, F), constant(item, F)) for item in exponents]
    for expression, found in zip(expressions, run_all(expressions, [x]), strict=True):
        same(found, evaluate(expression, [x]), units=8 if ON_GPU else 3)


@pytest.mark.parametrize("dtype", [item for item in TYPES if item.is_integer])
def test_every_integer_function(dtype: DType) -> None:
    x, y = values(dtype, 300, 7), values(dtype, 300, 8)
    info = np.iinfo(dtype.numpy)
    x[:6] = [info.min, info.max, info.min, 0, 1, info.max]
    y[:6] = [np.array(-1).astype(dtype.numpy), info.max, 0, info.min, info.max, info.min]
    y[6:40] = np.arange(34) % 34
    names = [n for n, row in FUNCTIONS.items() if "integer" in row.takes and row.arity < 3]
    operands = [load(0, dtype), load(1, dtype)]
    expressions = [call(n, *operands[: FUNCTIONS[n].arity]) for n in names if n != "power"]
    with np.errstate(all="ignore"):
        for expression, found in zip(expressions, run_all(expressions, [x, y]), strict=True):
            same(found, evaluate(expression, [x, y]))
        small = y % dtype.numpy.type(9)
        power = call("power", *operands)
        same(run(power, [x, small]), evaluate(power, [x, small]))


@pytest.mark.parametrize("source", TYPES)
def test_every_conversion(source: DType) -> None:
    x = values(source, 200, 3)
    expressions = [cast(load(0, source), target) for target in TYPES if target is not source]
    for expression, found in zip(expressions, run_all(expressions, [x]), strict=True):
        same(found, evaluate(expression, [x]))


def test_numbers_are_printed_anew() -> None:
    x = np.zeros(3, np.float32)
    numbers = (0.1, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
    expressions = [call("add", load(0, F), constant(value, F)) for value in numbers]
    for expression, found in zip(expressions, run_all(expressions, [x]), strict=True):
        same(found, evaluate(expression, [x]))
    for dtype in (DType.INT64, DType.UINT64, DType.INT8):
        info = np.iinfo(dtype.numpy)
        for value in (int(info.min), int(info.max)):
            expression = call("bitwise_xor", load(0, dtype), constant(value, dtype))
            y = np.zeros(3, dtype.numpy)
            same(run(expression, [y]), evaluate(expression, [y]))


@settings(max_examples=30, deadline=None)
@given(expression=exact_expressions())
def test_printed_text_holds_only_generated_names(expression: Expression) -> None:
    lines, value = print_expression(expression, ["x0", "x1", "x2"])
    text = "\n".join([*lines, value])
    numbers = r"0x[\w.]+(p[+-]\d+)?f?"
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(numbers, "", text)))
    known = r"const|float|double|u?int\d+_t|t\d+|x\d|ef_\w+|(fabs|fmod|floor|ceil|rint|trunc)f?"
    known += r"|u?ll|INFINITY|NAN|INT64_MIN|f"
    assert all(re.fullmatch(known, word) for word in words), words


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
