"""Recurrent networks agree with a peer, and directions and layouts with each other."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ops.recurrent import GRU, LSTM, RNN, activation
from tests.engine.ops.single_node import ours, theirs

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
RANDOM = np.random.default_rng(0)


def weights(name: str, directions: int, hidden: int = 6):
    gates = GATES[name]
    shapes = [(gates * hidden, 4), (gates * hidden, hidden), (2 * gates * hidden,)]
    return [RANDOM.standard_normal((directions, *s)).astype(np.float32) for s in shapes]


def compare(name: str, inputs: list, **attributes) -> None:
    count = 3 if name == "LSTM" else 2
    found = ours(name, inputs, 14, count, **attributes)
    for mine, other in zip(found, theirs(name, inputs, 14, count, **attributes), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, np.array([3, 5, 1], np.int32)])
def test_every_direction_agrees_with_a_peer(name: str, direction: str, lengths) -> None:
    count = 2 if direction == "bidirectional" else 1
    x = RANDOM.standard_normal((5, 3, 4)).astype(np.float32)
    start = RANDOM.standard_normal((count, 3, 6)).astype(np.float32)
    inputs = [x, *weights(name, count), lengths, start]
    if name == "LSTM":
        inputs += [start + 1, RANDOM.standard_normal((count, 18)).astype(np.float32)]
    compare(name, inputs, hidden_size=6, direction=direction)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("LSTM", {"input_forget": 1, "clip": 0.5}),
        ("RNN", {"activations": ("HardSigmoid",), "activation_alpha": (0.3,)}),
        ("RNN", {"activations": ("LeakyRelu",), "activation_alpha": (0.3,)}),
        ("GRU", {"activations": ("Sigmoid", "Softsign")}),
        ("LSTM", {"activations": ("HardSigmoid", "Elu", "Softplus")}),
    ],
)
def test_variations_agree_with_a_peer(name: str, attributes: dict) -> None:
    x = RANDOM.standard_normal((5, 3, 4)).astype(np.float32)
    compare(name, [x, *weights(name, 1)], hidden_size=6, **attributes)


@pytest.mark.parametrize("operator", [RNN, GRU, LSTM])
def test_the_batch_may_come_first(operator) -> None:
    x = RANDOM.standard_normal((5, 3, 4)).astype(np.float32)
    given = weights(operator.name, 2)
    y, *last = operator(direction="bidirectional").meaning(x, *given)
    found, *final = operator(direction="bidirectional", layout=1).meaning(x.swapaxes(0, 1), *given)
    np.testing.assert_array_equal(found, y.transpose(2, 0, 1, 3))
    for one, other in zip(final, last, strict=True):
        np.testing.assert_array_equal(one, other.swapaxes(0, 1))


@pytest.mark.parametrize("operator", [RNN, GRU, LSTM])
def test_no_steps_give_the_initial_state(operator) -> None:
    start = RANDOM.standard_normal((1, 3, 6)).astype(np.float32)
    x = np.zeros((0, 3, 4), np.float32)
    y, last, *_ = operator().meaning(x, *weights(operator.name, 1), None, start)
    assert y.shape == (0, 1, 3, 6)
    np.testing.assert_array_equal(last, start)


def test_parameters_go_to_the_activations_that_take_them() -> None:
    alphas, betas = iter([2.0, 3.0]), iter([5.0])
    relu = activation("Relu", alphas, betas)
    affine = activation("Affine", alphas, betas)
    leaky = activation("LeakyRelu", alphas, betas)
    one = np.array([-1.0, 1.0])
    np.testing.assert_array_equal(relu(one), [0, 1])
    np.testing.assert_array_equal(affine(one), [3, 7])
    np.testing.assert_array_equal(leaky(one), [-3, 1])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="activation"):
        activation("Gelu", iter(()), iter(()))
    with pytest.raises(ValueError, match="direction"):
        RNN(direction="sideways").directions()
