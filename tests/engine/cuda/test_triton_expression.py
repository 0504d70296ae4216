"""The Triton printer agrees with NumPy's on random expressions, and epilogues are checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cuda.kernel import DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.cuda.triton_expression import HELPERS, check_epilogue, print_expression
from engine.ir.types import DType
from engine.ops.expression import Expression, call, cast, constant, evaluate, load, loads
from tests.engine.random_expressions import draw_call, values
from tests.triton_shim import run

COUNT = 64
FLOAT = DType.FLOAT32


def interpreted(expression: Expression, arrays: list[Any]) -> Any:
    """An expression over arrays of ``COUNT`` elements, run by Triton's interpreter."""
    names = [f"x{i}" for i in range(len(arrays))]
    lines, value = print_expression(expression, [f"tl.load({name} + at)" for name in names])
    signature = [(n, f"*{ELEMENT_NAMES[DType.of(a.dtype)]}") for n, a in zip(names, arrays)]
    signature.append(("y", f"*{ELEMENT_NAMES[expression.dtype]}"))
    store = f"tl.store(y + at, tl.broadcast_to({value}, (1, WIDTH)))"
    body = "\n    ".join(["at = tl.arange(0, WIDTH)[None, :]", *lines, store])
    source = f"import triton\nimport triton.language as tl\n{HELPERS}\n\n@triton.jit\n"
    listed = ", ".join(name for name, _ in signature)
    source += f"def apply({listed}, WIDTH: tl.constexpr):\n    {body}\n"
    kernel = DeviceKernel("triton", "apply", source, 128, 0, tuple(signature), (("WIDTH", COUNT),))
    result = np.zeros(COUNT, expression.dtype.numpy)
    run(kernel, (1,), {**dict(zip(names, arrays)), "y": result})
    return result


# The interpreter does not compute with the others.
TYPES = [DType.FLOAT32, DType.FLOAT16, DType.INT8, DType.UINT8, DType.INT32, DType.BOOL]


@st.composite
def expressions(draw: Any) -> Expression:
    """An expression over loads 0 to 2 and constants that the printer takes."""
    nodes = [load(place, draw(st.sampled_from(TYPES))) for place in range(3)]
    nodes.append(constant(draw(st.integers(0, 100)), draw(st.sampled_from(TYPES))))
    nodes.append(constant(draw(st.floats(width=16)), draw(st.sampled_from(TYPES[:2]))))
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            made = cast(draw(st.sampled_from(nodes)), draw(st.sampled_from(TYPES)))
        else:
            made = draw_call(draw, nodes)
        if made is not None and made.dtype in TYPES and printable(made):
            nodes.append(made)
    return nodes[-1]


def printable(expression: Expression) -> bool:
    try:
        print_expression(expression, ["x"] * 3)
    except ValueError:
        return False
    return True


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(expressions(), st.integers(0, 1 << 16))
def test_random_expressions_equal_those_of_numpy(expression: Expression, seed: int) -> None:
    kinds = loads(expression)
    arrays = [values(kinds.get(i, FLOAT), COUNT, seed + i) for i in range(3)]
    wanted = np.broadcast_to(evaluate(expression, arrays), COUNT)
    found = interpreted(expression, arrays)
    np.testing.assert_allclose(
        found.astype(np.float64), wanted.astype(np.float64), rtol=2e-6, atol=1e-30
    )


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16])
@pytest.mark.parametrize(
    "function", ["erf", "tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "reciprocal", "round"]
)
def test_smooth_functions_are_close(function: str, dtype: DType) -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -0.5, -2.5, 1e-3, -88.0])
    feed = np.concatenate([special, np.linspace(-7, 7, COUNT - len(special))]).astype(np.float32)
    expression = cast(call(function, load(0, FLOAT)), dtype)
    wanted = evaluate(expression, [feed]).astype(np.float64)
    found = interpreted(expression, [feed]).astype(np.float64)
    exact = 1.2e-3 if dtype is DType.FLOAT16 else 1e-6
    np.testing.assert_allclose(found, wanted, rtol=exact, atol=3e-7)


def test_own_fits_are_as_good_as_they_say() -> None:
    x = np.linspace(-5, 5, COUNT).astype(np.float32)
    half = call("multiply", call("erf", load(0, FLOAT)), constant(1.0, FLOAT))
    found = interpreted(cast(half, DType.FLOAT16), [x])
    true = np.array([math.erf(float(v)) for v in x])
    np.testing.assert_allclose(found.astype(np.float64), true, rtol=5e-4, atol=1e-7)
    found = interpreted(call("tanh", load(0, FLOAT)), [x])
    np.testing.assert_allclose(found, np.tanh(x.astype(np.float64)), rtol=4e-7)


def test_what_cannot_be_printed_is_said() -> None:
    x = load(0, FLOAT)
    assert check_epilogue(x, ()) == ""
    assert "asin" in check_epilogue(call("asin", x), ())
    assert "operand 3" in check_epilogue(call("add", x, load(3, FLOAT)), ("full",))
    assert "float16" in check_epilogue(load(0, DType.FLOAT16), ())
    assert "saturate" in check_epilogue(cast(x, DType.INT64), ())
