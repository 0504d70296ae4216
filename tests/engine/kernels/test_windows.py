"""Depthwise convolution and pooling against NumPy, and C against the twin."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.kernels.depthwise import Depthwise
from engine.kernels.epilogue import standard
from engine.kernels.kernel import Array, Kernel
from engine.kernels.pooling import Pooling
from engine.kernels.windows import SIZES

SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def problems(draw: Any) -> dict[str, int]:
    """Sizes of a window problem over a tight channels-last image with a wider output."""
    s = {
        "images": draw(st.integers(1, 2)),
        "height": draw(st.integers(1, 9)),
        "width": draw(st.integers(1, 9)),
        "channels": draw(st.sampled_from([1, 3, 16, 37, 64, 70, 100])),
        "kernel_height": draw(st.integers(1, 3)),
        "kernel_width": draw(st.integers(1, 4)),
        "stride_height": draw(st.integers(1, 3)),
        "stride_width": draw(st.integers(1, 2)),
        "dilation_height": draw(st.integers(1, 2)),
        "dilation_width": draw(st.integers(1, 2)),
        "pad_top": draw(st.integers(0, 2)),
        "pad_left": draw(st.integers(0, 2)),
        "pad_bottom": draw(st.integers(0, 2)),
        "pad_right": draw(st.integers(0, 2)),
    }
    for axis, before, after in (("height", "top", "bottom"), ("width", "left", "right")):
        reach = (s[f"kernel_{axis}"] - 1) * s[f"dilation_{axis}"] + 1
        free = s[axis] + s[f"pad_{before}"] + s[f"pad_{after}"] - reach
        s[f"out_{axis}"] = max(1, free // s[f"stride_{axis}"] + 1)
    s["x_channel"] = 1
    s["x_column"] = s["channels"]
    s["x_row"] = s["width"] * s["x_column"]
    s["x_image"] = s["height"] * s["x_row"]
    s["y_pixel"] = s["channels"] + draw(st.integers(0, 5))
    return s


def operands(kernel: Kernel, sizes: list[int], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(max(1, n)).astype(np.float32) for n in kernel.extents(sizes)]


def reference(s: dict[str, int], x: Array) -> Array:
    """All window elements, NaN outside: [images, out_height, out_width, taps, channels]."""
    shape = (s["images"], s["height"], s["width"], s["channels"])
    image = x[: np.prod(shape)].reshape(shape)
    taps = s["kernel_height"] * s["kernel_width"]
    result = np.full((shape[0], s["out_height"], s["out_width"], taps, shape[3]), np.nan)
    for oy in range(s["out_height"]):
        for ox in range(s["out_width"]):
            for tap in range(taps):
                r, t = divmod(tap, s["kernel_width"])
                y = oy * s["stride_height"] - s["pad_top"] + r * s["dilation_height"]
                z = ox * s["stride_width"] - s["pad_left"] + t * s["dilation_width"]
                if 0 <= y < s["height"] and 0 <= z < s["width"]:
                    result[:, oy, ox, tap] = image[:, y, z]
    return result


def pixels_of(s: dict[str, int], y: Array) -> Array:
    count = s["images"] * s["out_height"] * s["out_width"]
    padded = np.concatenate([y, np.zeros(s["y_pixel"], y.dtype)])[: count * s["y_pixel"]]
    rows = padded.reshape(count, s["y_pixel"])[:, : s["channels"]]
    return rows.reshape(s["images"], s["out_height"], s["out_width"], s["channels"])


@SETTINGS
@given(s=problems(), seed=st.integers(0, 99))
def test_depthwise_convolution_is_a_sum_over_the_taps(
    check: Any, s: dict[str, int], seed: int
) -> None:
    kernel = Depthwise(s["kernel_height"], s["kernel_width"])
    sizes = [s[name] for name in SIZES]
    given_operands = operands(kernel, sizes, seed)
    y = check.agree(kernel, given_operands, sizes)
    filters = given_operands[1].reshape(-1, s["channels"])
    expected = np.nansum(reference(s, given_operands[0]) * filters, axis=3)
    np.testing.assert_allclose(pixels_of(s, y), expected, rtol=1e-4, atol=1e-4)


@SETTINGS
@given(s=problems(), seed=st.integers(0, 99))
def test_maximum_pooling_takes_the_greatest_of_each_window(
    check: Any, s: dict[str, int], seed: int
) -> None:
    kernel, sizes = Pooling("max"), [s[name] for name in SIZES]
    given_operands = operands(kernel, sizes, seed)
    y = check.agree(kernel, given_operands, sizes)
    found = np.nan_to_num(reference(s, given_operands[0]), nan=-np.inf)
    np.testing.assert_array_equal(pixels_of(s, y), found.max(axis=3).astype(np.float32))


@SETTINGS
@given(s=problems(), seed=st.integers(0, 99), padded=st.booleans())
def test_average_pooling_divides_by_the_positions_that_count(
    check: Any, s: dict[str, int], seed: int, padded: bool
) -> None:
    kernel, sizes = Pooling("average", padded), [s[name] for name in SIZES]
    given_operands = operands(kernel, sizes, seed)
    y = check.agree(kernel, given_operands, sizes)
    if not padded:
        with np.errstate(invalid="ignore"):
            found = reference(s, given_operands[0])
            counts = (~np.isnan(found)).sum(axis=3)
            expected = np.nansum(found, axis=3) / np.maximum(counts, 1)
        here = np.where(counts > 0, pixels_of(s, y), 0)
        np.testing.assert_allclose(here, np.where(counts > 0, expected, 0), rtol=1e-4, atol=1e-5)


def test_pooling_reads_planar_images(check: Any, normal: Callable[..., Array]) -> None:
    image = normal(1, 2, 5, 6, 7)  # NCHW
    s = dict.fromkeys(SIZES, 1)
    s |= {"images": 2, "channels": 5, "height": 6, "width": 7, "out_height": 3, "out_width": 3}
    s |= {"kernel_height": 2, "kernel_width": 3, "stride_height": 2, "stride_width": 2}
    s |= dict.fromkeys(("pad_top", "pad_left", "pad_bottom", "pad_right"), 0)
    s |= {"x_image": 210, "x_channel": 42, "x_row": 7, "x_column": 1, "y_pixel": 5}
    kernel, sizes = Pooling("max", adjacent=False), [s[name] for name in SIZES]
    y = check.agree(kernel, [image, np.zeros(2 * 9 * 5, np.float32)], sizes)
    parts = [
        image[:, :, r : r + 6 : 2, t : t + 5 : 2][:, :, :3, :3] for r in (0, 1) for t in range(3)
    ]
    expected = np.stack(parts).max(axis=0).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(y.reshape(expected.shape), expected)


def test_epilogues_see_columns_and_whole_tensors(check: Any, normal: Callable[..., Array]) -> None:
    epilogue = standard("column", "full", relu=True)
    kernel = Depthwise(3, 3, epilogue)
    s = dict.fromkeys(SIZES, 1)
    s |= {"channels": 24, "height": 8, "width": 8, "out_height": 8, "out_width": 8}
    s |= {"kernel_height": 3, "kernel_width": 3, "x_row": 192, "x_column": 24, "y_pixel": 24}
    sizes = [s[name] for name in SIZES] + [0, 24]
    x, w, bias, rest = (
        normal(1, 8 * 8 * 24),
        normal(2, 9 * 24),
        normal(3, 24),
        normal(4, 8 * 8 * 24),
    )
    y = check.agree(kernel, [x, w, bias, rest, np.zeros(8 * 8 * 24, np.float32)], sizes)
    plain = Depthwise(3, 3)
    (sums,) = check.twin(plain, [x, w, np.zeros_like(x)], sizes[: len(SIZES)])
    expected = np.maximum(sums.reshape(-1, 24) + bias + rest.reshape(-1, 24), 0)
    np.testing.assert_allclose(y.reshape(-1, 24), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [Depthwise(3, 5, standard("column")), Pooling("average", True)])
def test_a_kernel_comes_back_from_json_and_refuses_what_it_does_not_know(kernel: Kernel) -> None:
    fields = json.loads(json.dumps(kernel.to_json()))
    assert type(kernel).from_json(fields) == kernel
    with pytest.raises(ValueError, match="field"):
        type(kernel).from_json({**fields, "surprise": 1})
    for name in fields:
        with pytest.raises(ValueError, match=r"field|expected|expression"):
            type(kernel).from_json({**fields, name: "wrong"})


def test_a_filter_of_another_size_is_refused() -> None:
    sizes = [1] * len(SIZES)
    with pytest.raises(ValueError, match="expected 3 x 3"):
        Depthwise(3, 3).extents(sizes)
