"""Parts of channels are read where they lie; nothing is copied, and the results are the same."""

from __future__ import annotations

import numpy as np
import pytest

import engine
from tests.engine.small_models import check, model

RNG = np.random.default_rng(9)


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 8).astype(np.float32)


BODIES = {
    "a part of a block": (
        """c = Conv (x, w) r = Relu (c) a, b = Split <axis = 1> (r)
        d = Conv <pads = [1, 1, 1, 1]> (b, v) e = Relu (d) f = Add (e, b)
        g = Concat <axis = 1> (a, b, f) y = Conv (g, u)""",
        {"w": weight(64, 16, 1, 1), "v": weight(32, 32, 3, 3), "u": weight(32, 96, 1, 1)},
        (0, 0),
    ),
    "a part of a part": (
        """c = Conv (x, w) a, b = Split <axis = 1> (c) e, f = Split <axis = 1> (b)
        y = Conv (f, u)""",
        {"w": weight(64, 16, 1, 1), "u": weight(32, 16, 1, 1)},
        (0, 0),
    ),
    "a product": (
        """t = Transpose <perm = [0, 2, 3, 1]> (x) c = MatMul (t, w) r = Relu (c)
        a, b = Split <axis = 3> (r) y = MatMul (b, u)""",
        {"w": weight(16, 32), "u": weight(16, 8)},
        (1, 0),  # the product for CPUs reads whole tensors
    ),
    "too narrow to lie in place": (
        """c = Conv (x, w) a, b = Split <axis = 1> (c, sizes) y = Conv (b, u)""",
        {"w": weight(16, 16, 1, 1), "u": weight(8, 13, 1, 1), "sizes": np.array([3, 13])},
        (1, 1),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_parts_are_read_in_place(name: str) -> None:
    body, weights, copies = BODIES[name]
    text = f"(float[N, 16, 6, 5] x) => (float[] y) {{ {body} }}"
    check(text, sizes={"N": 2}, opset=17, weights=weights)
    proto = model(text, opset=17, weights=weights)
    for target, copied in zip(("cpu", "cuda:sm90"), copies, strict=True):
        program = engine.build(proto, target=target, level=0).program
        regions = {i for i, item in enumerate(program.layers) if item.kind == "Region"}
        assert sum(getattr(step, "layer", -1) in regions for step in program.steps) == copied, (
            target
        )


def test_what_a_caller_gives_is_copied_before_it_may_change() -> None:
    text = """(float[N, 6, 5, 16] x) => (float[] y) {
        a, b = Split <axis = 3> (x) y = MatMul (b, u) }"""
    proto = model(text, opset=17, weights={"u": weight(8, 8)})
    program = engine.build(proto, level=0).program
    assert len(program.steps) == 2
