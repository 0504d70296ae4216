"""Images between convolutions are resized channels last; what has no such form stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.passes import run_pipeline
from tests.engine.small_models import check, graph_of

RNG = np.random.default_rng(7)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "resize",
    [
        'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (r, , s)',
        'Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (r, , s)',
        'Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (r, , , z)',
    ],
)
def test_between_convolutions_images_are_resized_in_nhwc(resize: str) -> None:
    body = f"""(float[2, 3, 6, 5] x) => (float[] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) b = {resize}
        y = Conv <pads = [1, 1, 1, 1]> (b, v) }}"""
    weights: dict[str, Any] = {
        "w": array(8, 3, 3, 3),
        "v": array(4, 8, 3, 3),
        "s": np.array([1, 1, 2, 1.5], np.float32),
        "z": np.array([2, 8, 9, 11], np.int64),
    }
    check(body, weights=weights)
    graph = graph_of(body, weights=weights)
    run_pipeline(graph, checked=True)
    kinds = [node.kind for node in graph.nodes]
    assert "ResizePixels" in kinds and "Resize" not in kinds


@pytest.mark.parametrize(
    "resize",
    [
        'Resize <mode = "cubic"> (a, , s)',
        'Resize <mode = "linear", antialias = 1> (a, , s)',
        'Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (a, , s)',
        "Resize (a, , t)",
    ],
)
def test_others_keep_their_own_form(resize: str) -> None:
    body = f"""(float[1, 3, 6, 5] x) => (float[] y) {{ a = Conv (x, w) y = {resize} }}"""
    weights: dict[str, Any] = {
        "w": array(4, 3, 1, 1),
        "s": np.array([1, 1, 2, 1.5], np.float32),
        "t": np.array([1, 2, 2, 1.5], np.float32),
    }
    check(body, weights=weights)
    graph = graph_of(body, weights=weights)
    run_pipeline(graph)
    assert "Resize" in [node.kind for node in graph.nodes]


def test_upsampling_of_older_models() -> None:
    body = """(float[1, 3, 4, 5] x) => (float[] y) { a = Conv (x, w) y = Upsample (a, s) }"""
    weights: dict[str, Any] = {
        "w": array(4, 3, 1, 1),
        "s": np.array([1, 1, 2.5, 0.5], np.float32),
    }
    check(body, weights=weights, opset=9)
    graph = graph_of(body, weights=weights, opset=9)
    run_pipeline(graph)
    assert "ResizePixels" in [node.kind for node in graph.nodes]
