"""Epilogues as libraries know them: what is recognised means the same, all else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cuda.library_epilogue import EpilogueForm, epilogue_form
from engine.ir.types import Array, DType
from engine.ops.elementwise_activation import gelu, hard_swish, leaky_relu, relu, swish
from engine.ops.expression import Expression, call, cast, constant, evaluate, load
from engine.ops.special import erf
from engine.ops.widen import widen

F16, F32 = DType.FLOAT16, DType.FLOAT32
SUM = load(0, F32)


class _Attributes:
    approximate = "none"
    alpha = 1.0


class _Tanh(_Attributes):
    approximate = "tanh"


def number(value: float) -> Expression:
    return constant(value, F32)


def read(position: int, dtype: DType = F16) -> Expression:
    return cast(load(position, dtype), F32)


BIASED = call("add", SUM, read(1))
BOTH = call("add", BIASED, read(2))
CASES = {
    "sum": (SUM, EpilogueForm()),
    "bias": (BIASED, EpilogueForm(before=(1,))),
    "bias and residual": (BOTH, EpilogueForm(before=(1, 2))),
    "residual, then bias": (
        call("add", read(1), call("add", read(2), SUM)),
        EpilogueForm(before=(1, 2)),
    ),
    "scaled": (
        call("add", call("multiply", number(0.125), SUM), read(1)),
        EpilogueForm(alpha=0.125, before=(1,)),
    ),
    "relu": (relu(None, BOTH), EpilogueForm(before=(1, 2), activation="relu")),
    "relu of the sum": (relu(None, SUM), EpilogueForm(activation="relu")),
    "clip": (
        call("min", call("max", BIASED, number(0)), number(6)),
        EpilogueForm(before=(1,), activation="clip", low=0, high=6),
    ),
    "clip the other way round": (
        call("max", number(-1), call("min", number(6), BIASED)),
        EpilogueForm(before=(1,), activation="clip", low=-1, high=6),
    ),
    "gelu": (gelu(_Attributes(), BIASED), EpilogueForm(before=(1,), activation="gelu")),
    "gelu by tanh": (gelu(_Tanh(), BIASED), EpilogueForm(before=(1,), activation="gelu_tanh")),
    "gelu by tanh of the sum": (gelu(_Tanh(), SUM), EpilogueForm(activation="gelu_tanh")),
    "silu": (swish(_Attributes(), BIASED), EpilogueForm(before=(1,), activation="silu")),
    "silu by exp": (
        call("divide", BIASED, call("add", number(1), call("exp", call("negative", BIASED)))),
        EpilogueForm(before=(1,), activation="silu"),
    ),
    "sigmoid": (call("sigmoid", BIASED), EpilogueForm(before=(1,), activation="sigmoid")),
    "silu, then residual": (
        call("add", swish(_Attributes(), BIASED), read(2)),
        EpilogueForm(before=(1,), activation="silu", after=(2,)),
    ),
}
REFUSED = {
    "another activation": hard_swish(None, BIASED),
    "a slope": leaky_relu(_Attributes(), call("multiply", BIASED, number(1.0))),
    "the bias outside": call("multiply", relu(None, BIASED), read(1)),
    "the bias twice": call("add", BIASED, read(1)),
    "the sum twice": call("add", SUM, BIASED),
    "a bias after itself": call("add", relu(None, BIASED), read(1)),
    "no sum": read(1),
    "a floor above zero": call("max", BIASED, number(0.5)),
    "bounds the wrong way round": call("min", call("max", BIASED, number(6)), number(0)),
    "arithmetic in float16": call("add", cast(SUM, F16), load(1, F16)),
    "the sum rounded in between": call("add", cast(cast(SUM, F16), F32), read(1)),
}


def compute(form: EpilogueForm, operands: list[Array]) -> Array:
    """What a form means, written out by hand."""
    inner = form.alpha * operands[0] + sum(operands[i] for i in form.before)
    result = {
        "none": lambda x: x,
        "relu": lambda x: np.maximum(x, 0),
        "clip": lambda x: np.clip(x, form.low, form.high),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    }[form.activation](inner)
    return np.asarray(result + sum(operands[i] for i in form.after))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("result", [F32, F16])
def test_a_form_is_what_the_expression_computes(name: str, result: DType) -> None:
    expression, expected = CASES[name]
    assert epilogue_form(cast(expression, result)) == expected
    rng = np.random.default_rng(1)
    operands = [rng.standard_normal(500) * 4 for _ in range(3)]
    found = evaluate(expression, [x.astype(t) for x, t in zip(operands, ("f4", "f2", "f2"))])
    np.testing.assert_allclose(found, compute(expected, operands), rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_has_no_form(name: str) -> None:
    assert epilogue_form(cast(REFUSED[name], F16)) is None


def test_narrow_arithmetic_has_a_form_once_it_is_widened() -> None:
    body = call("max", call("add", cast(SUM, F16), load(1, F16)), constant(0.0, F16))
    assert epilogue_form(body) is None
    assert epilogue_form(widen(body)) == EpilogueForm(before=(1,), activation="relu")
