"""Optimisers of ai.onnx.preview.training: one step of Adagrad, Adam or Momentum.

The inputs are the learning rate R, the number of steps so far T, then all tensors X, all their
gradients G and the tensors of each state in turn; the outputs are the new X, then the new states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.ir.types import Array, Operand, Type
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register

__all__ = ["Adagrad", "Adam", "Momentum"]

TRAINING = "ai.onnx.preview.training"


@dataclass(frozen=True, slots=True)
class Optimizer(Operator):
    """What the three share: the order of inputs and outputs."""

    #: How many tensors of state belong to each optimised tensor.
    states: ClassVar[int] = 1

    def _columns(self, values: Sequence[Operand] | Sequence[Array]) -> int:
        group = self.states + 2
        if not values or len(values) % group:
            raise ValueError(
                f"{self.name} has {len(values)} tensors after R and T, expected a multiple of "
                f"{group}: X, gradients and {self.states} of state"
            )
        return len(values) // group

    def infer(self, rate: Operand, steps: Operand, *values: Operand) -> Sequence[Type]:
        count = self._columns(values)
        return [value.tensor for value in (*values[:count], *values[2 * count :])]

    def meaning(self, rate: Array, steps: Array, *values: Array) -> tuple[Array, ...]:
        count = self._columns(values)
        r, t = float(rate.reshape(-1)[0]), int(steps.reshape(-1)[0])
        rows = [self.step(r, t, *values[index::count]) for index in range(count)]
        columns = zip(*rows, strict=True)
        return tuple(
            as_array(item, values[place].dtype)
            for column in columns
            for place, item in enumerate(column)
        )

    def step(self, rate: float, steps: int, *values: Array) -> tuple[Array, ...]:
        """The new X and states from X, G and states of one tensor."""
        raise NotImplementedError


@register("Adagrad", since=1, domain=TRAINING)
@dataclass(frozen=True, slots=True)
class Adagrad(Optimizer):
    """A step scaled by the root of all squared gradients so far (Duchi et al., 2011)."""

    decay_factor: float = 0.0
    epsilon: float = 1e-6
    norm_coefficient: float = 0.0

    def step(self, rate: float, steps: int, *values: Array) -> tuple[Array, ...]:
        x, g, h = values
        decayed = rate / (1 + steps * self.decay_factor)
        gradient = self.norm_coefficient * x + g
        squares = h + gradient * gradient
        return x - decayed * gradient / (np.sqrt(squares) + self.epsilon), squares


@register("Adam", since=1, domain=TRAINING)
@dataclass(frozen=True, slots=True)
class Adam(Optimizer):
    """A step along the mean gradient, scaled by the mean squared one (Kingma and Ba, 2015)."""

    states: ClassVar[int] = 2

    alpha: float = 0.9
    beta: float = 0.999
    epsilon: float = 1e-6
    norm_coefficient: float = 0.0
    norm_coefficient_post: float = 0.0

    def step(self, rate: float, steps: int, *values: Array) -> tuple[Array, ...]:
        x, g, v, h = values
        gradient = self.norm_coefficient * x + g
        mean = self.alpha * v + (1 - self.alpha) * gradient
        squares = self.beta * h + (1 - self.beta) * gradient * gradient
        if steps > 0:
            rate = rate * float(np.sqrt(1 - self.beta**steps)) / (1 - self.alpha**steps)
        new = x - rate * mean / (np.sqrt(squares) + self.epsilon)
        return (1 - self.norm_coefficient_post) * new, mean, squares


@register("Momentum", since=1, domain=TRAINING)
@dataclass(frozen=True, slots=True)
class Momentum(Optimizer):
    """A step along the accumulated gradient, ``mode`` "standard" or "nesterov"."""

    alpha: float
    beta: float
    mode: str
    norm_coefficient: float

    def step(self, rate: float, steps: int, *values: Array) -> tuple[Array, ...]:
        x, g, v = values
        if self.mode not in ("standard", "nesterov"):
            raise ValueError(f"mode is {self.mode!r}, expected 'standard' or 'nesterov'")
        gradient = self.norm_coefficient * x + g
        momentum = self.alpha * v + (self.beta if steps > 0 else 1.0) * gradient
        direction = momentum if self.mode == "standard" else gradient + self.alpha * momentum
        return x - rate * direction, momentum
