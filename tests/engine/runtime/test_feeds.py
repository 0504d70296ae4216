"""Feeds that do not fit are refused with the name of the input, what was found and expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import engine
from engine.errors import FeedError
from tests.engine.small_models import built, model

X = np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def net() -> engine.Engine:
    body = """(float[N, 3] x, int64[2] n, string[M] s, seq(float[N]) q, optional(float[N]) o)
        => (float[] y) { y = Neg (x) }"""
    return built(model(body), shapes={"x": ("N=1..2..4", 3)})


def feeds(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "x": X,
        "n": np.zeros(2, np.int64),
        "s": np.array(["a", "b"]),
        "q": [np.ones(2, np.float32)],
    }
    return {**given, **changes}


def test_feeds_that_fit_are_taken(net: engine.Engine) -> None:
    for given in (feeds(), feeds(o=np.ones(2, np.float32)), feeds(o=None), feeds(q=())):
        assert net(given)["y"].tolist() == (-X).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": X}, r"no input 'z'; the engine's inputs are \['x', 'n', 's', 'q', 'o'\]"),
        ({"x": X.astype(np.float64)}, r"'x' has dtype float64, expected float32; convert it"),
        ({"x": X.astype(">f4")}, r"'x' has dtype >f4, expected float32"),
        ({"x": X[0]}, r"'x' has 1 axes \(shape \[3\]\), expected 2: float32\[N, 3\]"),
        ({"x": X[:, :2]}, r"'x' has size 2 on axis 1, expected 3"),
        ({"x": np.ones((5, 3), np.float32)}, r"N is 5 .*outside the profile 1 to 4"),
        ({"x": np.ones((0, 3), np.float32)}, r"N is 0 .*outside the profile"),
        ({"n": [0, 1.5]}, "'n' has dtype float64, expected int64"),
        ({"n": np.zeros(3, np.int64)}, "'n' has size 3 on axis 0, expected 2"),
        ({"s": np.zeros(2)}, "'s' holds float64, expected strings"),
        ({"q": X}, r"'q' is sequence\(float32\[N\]\); expected a list, found ndarray"),
        ({"q": [X.astype(int)]}, r"'q\[0\]' has dtype int64"),
        ({"q": [X]}, r"'q\[0\]' has 2 axes"),
        ({"o": X.astype(np.int8)}, "'o' has dtype int8"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(
    net: engine.Engine, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeedError, match=message):
        net(feeds(**changes))


def test_a_missing_feed_is_named(net: engine.Engine) -> None:
    given = feeds()
    del given["n"]
    with pytest.raises(FeedError, match=r"input 'n' \(int64\[2\]\) is missing"):
        net(given)


def test_a_refusal_leaves_the_engine_usable(net: engine.Engine) -> None:
    for _ in range(3):
        with pytest.raises(FeedError):
            net(feeds(x=X[0]))
    assert net(feeds())["y"].shape == (2, 3)
