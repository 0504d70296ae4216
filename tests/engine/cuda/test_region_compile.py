"""Region kernels compile for every architecture and keep their rows in registers."""

from __future__ import annotations

import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.cuda.region import generate
from engine.cuda.region_choices import choices
from engine.ir.sizes import symbol
from engine.ir.types import DType
from engine.kernels.region_lowering import simplified
from engine.ops.expression import call, cast, load
from engine.ops.region import Load, Region, Store
from engine.target import CudaTarget, describe
from tests.engine.cuda.test_region import layer_norm, softmax

F, H, B = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16


@pytest.mark.parametrize("name", ["sm80", "sm90", "sm100"])
def test_every_form_compiles_without_spills(name: str) -> None:
    target = describe(f"cuda:{name}")
    assert isinstance(target, CudaTarget)
    shape = (symbol("n"), 12, 128)
    near = (12 * 128, 128, 1)
    soft = Store(cast(softmax(cast(load(0, H), F)), H), 0, shape, 0, near)
    mean = Store(call("row_sum", cast(load(0, B), F)), 0, (symbol("n"), 64), 0, (64, 1, 0))
    erf = cast(call("erf", call("add", load(0, F), cast(load(1, B), F))), B)
    cases = [
        (Region(shape, (Load(0, H, 0, near),), (soft,)), {"n": 8}),
        (Region((symbol("n"), 64, 49), (Load(0, B, 0, (3136, 1, 64)),), (mean,)), {"n": 8}),
        (
            Region(
                (symbol("n"), 64),
                (Load(0, F, 0, (64, 1)), Load(1, B, 0, (0, 1))),
                (Store(erf, 0, (symbol("n"), 64), 0, (64, 1)),),
            ),
            {"n": 100000},
        ),
        (layer_norm(symbol("n"), 50257, H), {"n": 4}),
        (layer_norm(symbol("n"), 4096, H), {"n": 512}),
    ]
    forms = set()
    for region, point in cases:
        short = simplified(region)
        for choice in choices(short, point, target):
            made = generate(short, choice, ranges={"n": (1, 1 << 20)})
            compiled = compile_nvrtc(made.kernel, target.capability)
            assert compiled.spilled_nbytes == 0, choice
            forms.add(choice.form)
    assert forms == {"flat", "rows", "passes", "columns"}
