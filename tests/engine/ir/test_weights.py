"""Weights that hold not-a-numbers are refused where a sum would take them in, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engine
from engine import jobs
from engine.errors import InvalidModelError
from engine.ir.weights import LEARNED, check_weights
from engine.onnx_io import read
from engine.ops import known
from tests.engine.small_models import model

PRODUCT = "(float[N, 4] x) => (float[] y) { a = MatMul (x, w) y = Add (a, m) }"


def weights(broken: str = "", value: float = np.nan) -> dict[str, np.ndarray]:
    made = {"w": np.ones((4, 3), np.float32), "m": np.zeros(3, np.float32)}
    if broken:
        made[broken].reshape(-1)[1] = value
    return made


def test_a_weight_of_a_product_must_be_numbers() -> None:
    with pytest.raises(InvalidModelError, match=r"'w'.*MatMul.*holds 1 not-a-numbers among 12"):
        check_weights(read(model(PRODUCT, weights=weights("w"))))


@pytest.mark.parametrize(("name", "value"), [("", 0), ("m", np.nan), ("m", -np.inf), ("w", np.inf)])
def test_masks_and_infinities_are_let_through(name: str, value: float) -> None:
    check_weights(read(model(PRODUCT, weights=weights(name, value))))


def test_weights_inside_of_branches_are_seen() -> None:
    text = """(float[4] x, bool c) => (float[] y) {
        y = If (c) <
            then_branch = then () => (float[3] t) { t = MatMul (x, w) },
            else_branch = other () => (float[3] e) { e = MatMul (x, v) }> }"""
    graph = read(model(text, weights={"w": weights()["w"], "v": weights("w")["w"]}))
    with pytest.raises(InvalidModelError, match="'v'"):
        check_weights(graph)


def test_builds_refuse_with_one_sentence_and_later_builds_work(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(model(PRODUCT, weights=weights("w")).SerializeToString())
    with pytest.raises(InvalidModelError):
        engine.build(path, level=0)
    with pytest.raises(InvalidModelError):
        jobs.prepare(path, {"level": 0})
    path.write_bytes(model(PRODUCT, weights=weights()).SerializeToString())
    net = engine.load(engine.build(path, level=0), compile="never")
    assert net({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[4.0, 4.0, 4.0]]


def test_the_operators_listed_exist() -> None:
    names = {name for _, name in known()}
    assert names >= LEARNED
