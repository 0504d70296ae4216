"""Arguments of tensor maps: the driver's order and units, and what the hardware refuses."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cuda.tensor_map import EncodedBox, encode_box, reach
from engine.errors import PlanCorruptError
from engine.ir.types import DType
from engine.plan.device import TensorMapForm


def test_axes_are_reversed_and_strides_are_bytes_without_the_innermost() -> None:
    form = TensorMapForm("float16", (1, 4, 8, 64), 128)
    found = encode_box(form, 4096, (8, 56, 58, 64), (56 * 58 * 64, 58 * 64, 64, 1))
    assert found == EncodedBox(
        dtype=DType.FLOAT16,
        address=4096,
        sizes=(64, 58, 56, 8),
        strides=(128, 58 * 128, 56 * 58 * 128),
        box=(64, 8, 4, 1),
        steps=(1, 1, 1, 1),
        swizzle=128,
    )


def test_steps_widen_the_box_to_what_is_traversed() -> None:
    form = TensorMapForm("float16", (1, 8, 16, 64), 128)
    strides = (100 * 100 * 64, 100 * 64, 64, 1)
    found = encode_box(form, 0, (1, 100, 100, 64), strides, (1, 2, 2, 1))
    assert (found.box, found.steps) == ((64, 32, 16, 1), (1, 2, 2, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": 8}, "address is no multiple of 16"),
        ({"strides": (63, 1)}, "stride of 126 bytes"),
        ({"strides": (0, 1)}, "stride of 0 bytes"),
        ({"strides": (64, 2)}, "stride 2 and step 1, not 1 and 1"),
        ({"strides": (1 << 39, 1)}, "stride of"),
        ({"sizes": (0, 64)}, "axis 0 has 0 elements"),
        ({"sizes": ((1 << 32) + 1, 64)}, "axis 0 has"),
        ({"sizes": (1, 1, 64)}, "3 sizes"),
        ({"steps": (9, 1)}, "spans 144 elements by 9"),
        ({"steps": (2, 2)}, "step 2"),
        ({"form": TensorMapForm("float16", (257, 64), 128)}, "spans 257"),
        ({"form": TensorMapForm("float16", (16, 4), 0)}, "rows of 8 bytes"),
        ({"form": TensorMapForm("float16", (16, 128), 128)}, "rows of 256 bytes under"),
    ],
)
def test_what_the_hardware_does_not_do_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "form": TensorMapForm("float16", (16, 64), 128),
        "address": 256,
        "sizes": (1000, 64),
        "strides": (64, 1),
    }
    encode_box(**given)
    with pytest.raises(PlanCorruptError, match=message):
        encode_box(**given | change)


def test_a_tensor_reaches_to_its_last_element() -> None:
    assert reach((3, 4), (10, 1)) == 24
    assert reach((3, 0), (10, 1)) == 0
    # windows of 64 that begin every 16: they overlap
    assert reach((5, 64), (16, 1)) == 4 * 16 + 64
