"""Recurrent networks: RNN, GRU and LSTM.

Sequences run forward, backward or both ways; a sequence shorter than the batch's gives zeros
behind its end, and runs backward from its own end. Floats of 16 bits are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.ir.sizes import Dim
from engine.ir.types import Array, Operand, Shape, TensorType
from engine.ops.arrays import as_array
from engine.ops.operator import Operator, register, tensor
from engine.ops.precision import rounded, widened
from engine.ops.shapes import unknown

__all__ = ["GRU", "LSTM", "RNN", "activation"]

Function = Callable[[Array], Array]
States = tuple[Array, ...]
#: One step: what the inputs contribute [N, gates * H] and the states [N, H]; the new states.
Step = Callable[[Array, States], States]


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return as_array(1 / (1 + np.exp(-x)))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))


#: Functions of x, alpha and beta, and the values of alpha and beta when none are given.
_ACTIVATIONS: dict[str, tuple[Callable[[Array, float, float], Array], tuple[float, ...]]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), ()),
    "tanh": (lambda x, a, b: as_array(np.tanh(x)), ()),
    "sigmoid": (lambda x, a, b: _sigmoid(x), ()),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x, a, b: as_array(np.logaddexp(x, 0)), ()),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), (0.01,)),
    "thresholdedrelu": (lambda x, a, b: np.where(x > a, x, 0), (1.0,)),
    "elu": (lambda x, a, b: _elu(x, a), (1.0,)),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "scaledtanh": (lambda x, a, b: as_array(a * np.tanh(b * x)), (1.0, 1.0)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
}


def activation(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    """An activation by its ONNX name; its parameters are the next ones of the iterators, if any.

    Raises ValueError for an unknown name.
    """
    found = _ACTIVATIONS.get(name.lower())
    if found is None:
        raise ValueError(f"activation {name!r} is none of {', '.join(sorted(_ACTIVATIONS))}")
    function, defaults = found
    alpha = next(alphas, defaults[0]) if defaults else 0.0
    beta = next(betas, defaults[1]) if len(defaults) > 1 else 0.0
    return lambda x: function(x, alpha, beta)


def _backward(x: Array, lengths: Array | None) -> Array:
    """Sequences [T, N, ...] reversed, each within its own length."""
    if lengths is None:
        return x[::-1]
    time = np.arange(x.shape[0])[:, None]
    places = np.where(time < lengths, lengths - 1 - time, time)
    return np.take_along_axis(x, places[:, :, None], axis=0)


def _unroll(
    step: Step, inputs: Array, states: States, lengths: Array | None
) -> tuple[Array, States]:
    """The first state after each step [T, N, H], and the states after the last."""
    outputs = np.zeros((inputs.shape[0], *states[0].shape), states[0].dtype)
    for time in range(inputs.shape[0]):
        new = step(inputs[time], states)
        if lengths is not None:
            alive = (time < lengths)[:, None]
            outputs[time] = np.where(alive, new[0], 0)
            new = tuple(np.where(alive, a, b) for a, b in zip(new, states, strict=True))
        else:
            outputs[time] = new[0]
        states = new
    return outputs, states


@dataclass(frozen=True, slots=True)
class _Recurrent(Operator):
    """The attributes and the run that all recurrent networks share."""

    activation_alpha: tuple[float, ...] | None = None
    activation_beta: tuple[float, ...] | None = None
    activations: tuple[str, ...] | None = None
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None

    def directions(self) -> tuple[bool, ...]:
        """For each direction whether it runs backward."""
        found = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        if self.direction not in found:
            raise ValueError(f"direction is {self.direction!r}, expected one of {', '.join(found)}")
        return found[self.direction]

    def batch_first(self) -> bool:
        """Whether the batch is the first axis everywhere."""
        return bool(getattr(self, "layout", 0))

    def functions(self, defaults: Sequence[str]) -> list[list[Function]]:
        """The activations of each direction."""
        count = len(defaults)
        wanted = count * len(self.directions())
        names = list(self.activations or ()) or list(defaults) * len(self.directions())
        if len(names) < wanted:
            raise ValueError(f"there are {len(names)} activations, expected {wanted}")
        alphas, betas = iter(self.activation_alpha or ()), iter(self.activation_beta or ())
        made = [self._clipped(activation(name, alphas, betas)) for name in names[:wanted]]
        return [made[i : i + count] for i in range(0, wanted, count)]

    def _clipped(self, function: Function) -> Function:
        if not self.clip:
            return function
        limit = self.clip
        return lambda x: function(np.clip(x, -limit, limit))

    def infer_all(self, x: Operand, recurrence: Operand, *, states: int) -> list[TensorType]:
        """Outputs [T, directions, N, H] and ``states`` times [directions, N, H]."""
        kind, inner = tensor(x, "X"), tensor(recurrence, "R")
        hidden: Dim = unknown() if self.hidden_size is None else self.hidden_size
        if inner.shape is not None:
            if len(inner.shape) != 3:
                raise ValueError(f"R has rank {len(inner.shape)}, expected 3")
            hidden = inner.shape[2]
        if kind.shape is not None and len(kind.shape) != 3:
            raise ValueError(f"X has rank {len(kind.shape)}, expected 3")
        time, batch = (unknown(), unknown()) if kind.shape is None else kind.shape[:2]
        count = len(self.directions())
        every: Shape = (time, count, batch, hidden)
        last: Shape = (count, batch, hidden)
        if self.batch_first():
            every, last = (time, batch, count, hidden), (time, count, hidden)
        return [TensorType(kind.dtype, every)] + [TensorType(kind.dtype, last)] * states

    def run(
        self,
        x: Array,
        weight: Array,
        biases: Array | None,
        lengths: Array | None,
        initial: Sequence[Array | None],
        steps: Sequence[Step],
        hidden: int,
    ) -> tuple[Array, ...]:
        """All directions; ``biases`` [directions, gates * H] belong to the inputs."""
        wide = widened(x.swapaxes(0, 1) if self.batch_first() else x)
        batch = wide.shape[1]
        outputs, last = [], []
        for index, (backward, step) in enumerate(zip(self.directions(), steps, strict=True)):
            inputs = np.matmul(wide, widened(weight[index]).T)
            if biases is not None:
                inputs = inputs + widened(biases[index])
            states = tuple(
                np.zeros((batch, hidden), wide.dtype)
                if item is None
                else widened(item[:, index] if self.batch_first() else item[index])
                for item in initial
            )
            inputs = _backward(inputs, lengths) if backward else inputs
            every, final = _unroll(step, inputs, states, lengths)
            outputs.append(_backward(every, lengths) if backward else every)
            last.append(final)
        axis = 1 if self.batch_first() else 0
        finals = [rounded(np.stack(items, axis=axis), x) for items in zip(*last, strict=True)]
        whole = np.stack(outputs, axis=1)
        if self.batch_first():
            whole = whole.transpose(2, 0, 1, 3)
        return rounded(whole, x), *finals


def _halves(bias: Array | None) -> tuple[Array | None, Array | None]:
    """The biases of the inputs and of the recurrence, of [directions, 2 * gates * H]."""
    if bias is None:
        return None, None
    middle = bias.shape[1] // 2
    return bias[:, :middle], bias[:, middle:]


def _total(bias: Array | None) -> Array | None:
    """Both biases added up."""
    first, second = _halves(bias)
    return None if first is None or second is None else widened(first) + widened(second)


@register("RNN", since=7)
@dataclass(frozen=True, slots=True)
class RNN7(_Recurrent):
    """H = f(X W' + H R' + B): x [T, N, I], W [directions, H, I], R [directions, H, H]."""

    activations: tuple[str, ...] | None = ("Tanh", "Tanh")

    def infer(
        self,
        x: Operand,
        weight: Operand,
        recurrence: Operand,
        bias: Operand | None = None,
        lengths: Operand | None = None,
        initial_h: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """Every output and the last."""
        return self.infer_all(x, recurrence, states=1)

    def meaning(
        self,
        x: Array,
        weight: Array,
        recurrence: Array,
        bias: Array | None = None,
        lengths: Array | None = None,
        initial_h: Array | None = None,
        /,
    ) -> tuple[Array, ...]:
        """One product for all inputs, then one per step."""
        steps = [
            self._step(widened(inner), function)
            for inner, (function,) in zip(recurrence, self.functions(("Tanh",)), strict=True)
        ]
        return self.run(x, weight, _total(bias), lengths, [initial_h], steps, recurrence.shape[2])

    def _step(self, inner: Array, function: Function) -> Step:
        return lambda inputs, states: (function(inputs + states[0] @ inner.T),)


@register("RNN", since=14)
@dataclass(frozen=True, slots=True)
class RNN(RNN7):
    """H = f(X W' + H R' + B); with ``layout`` 1 the batch is the first axis everywhere."""

    layout: int = 0


@register("GRU", since=7)
@dataclass(frozen=True, slots=True)
class GRU7(_Recurrent):
    """Gated recurrent units (Cho et al., 2014), gates in the order update, reset, hidden."""

    linear_before_reset: int = 0

    def infer(
        self,
        x: Operand,
        weight: Operand,
        recurrence: Operand,
        bias: Operand | None = None,
        lengths: Operand | None = None,
        initial_h: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """Every output and the last."""
        return self.infer_all(x, recurrence, states=1)

    def meaning(
        self,
        x: Array,
        weight: Array,
        recurrence: Array,
        bias: Array | None = None,
        lengths: Array | None = None,
        initial_h: Array | None = None,
        /,
    ) -> tuple[Array, ...]:
        """One product for all inputs, then one or two per step."""
        hidden = recurrence.shape[2]
        outer, inner = _halves(bias)
        if inner is None:
            inner = np.zeros((recurrence.shape[0], 3 * hidden), recurrence.dtype)
        steps = [
            self._step(widened(r), widened(b), functions)
            for r, b, functions in zip(
                recurrence, inner, self.functions(("Sigmoid", "Tanh")), strict=True
            )
        ]
        return self.run(x, weight, outer, lengths, [initial_h], steps, hidden)

    def _step(self, inner: Array, bias: Array, functions: Sequence[Function]) -> Step:
        gate, activate = functions
        size = inner.shape[1]

        def step(inputs: Array, states: States) -> States:
            (state,) = states
            gates = gate(inputs[:, : 2 * size] + state @ inner[: 2 * size].T + bias[: 2 * size])
            update, reset = gates[:, :size], gates[:, size:]
            rows, shift = inner[2 * size :].T, bias[2 * size :]
            if self.linear_before_reset:
                recalled = reset * (state @ rows + shift)
            else:
                recalled = (reset * state) @ rows + shift
            candidate = activate(inputs[:, 2 * size :] + recalled)
            return ((1 - update) * candidate + update * state,)

        return step


@register("GRU", since=14)
@dataclass(frozen=True, slots=True)
class GRU(GRU7):
    """Gated recurrent units; with ``layout`` 1 the batch is the first axis everywhere."""

    layout: int = 0


@register("LSTM", since=7)
@dataclass(frozen=True, slots=True)
class LSTM7(_Recurrent):
    """Long short-term memory with peepholes (Gers, Schmidhuber, 2000).

    The gates stand in the order input, output, forget, cell; peepholes P [directions, 3 * H].
    """

    input_forget: int = 0

    def infer(
        self,
        x: Operand,
        weight: Operand,
        recurrence: Operand,
        bias: Operand | None = None,
        lengths: Operand | None = None,
        initial_h: Operand | None = None,
        initial_c: Operand | None = None,
        peepholes: Operand | None = None,
        /,
    ) -> list[TensorType]:
        """Every output, the last, and the last cells."""
        return self.infer_all(x, recurrence, states=2)

    def meaning(
        self,
        x: Array,
        weight: Array,
        recurrence: Array,
        bias: Array | None = None,
        lengths: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        peepholes: Array | None = None,
        /,
    ) -> tuple[Array, ...]:
        """One product for all inputs, then one per step."""
        hidden = recurrence.shape[2]
        if peepholes is None:
            peepholes = np.zeros((recurrence.shape[0], 3 * hidden), recurrence.dtype)
        steps = [
            self._step(widened(r), widened(p), functions)
            for r, p, functions in zip(
                recurrence, peepholes, self.functions(("Sigmoid", "Tanh", "Tanh")), strict=True
            )
        ]
        initial = [initial_h, initial_c]
        return self.run(x, weight, _total(bias), lengths, initial, steps, hidden)

    def _step(self, inner: Array, peephole: Array, functions: Sequence[Function]) -> Step:
        gate, activate, show = functions
        size = inner.shape[1]

        def step(inputs: Array, states: States) -> States:
            state, cell = states
            sums = inputs + state @ inner.T
            to_input, to_output, to_forget, to_cell = (
                sums[:, i * size : (i + 1) * size] for i in range(4)
            )
            admit = gate(to_input + peephole[:size] * cell)
            recall = gate(to_forget + peephole[2 * size :] * cell)
            keep = 1 - admit if self.input_forget else recall
            cell = keep * cell + admit * activate(to_cell)
            opened = gate(to_output + peephole[size : 2 * size] * cell)
            return opened * show(cell), cell

        return step


@register("LSTM", since=14)
@dataclass(frozen=True, slots=True)
class LSTM(LSTM7):
    """Long short-term memory; with ``layout`` 1 the batch is the first axis everywhere."""

    layout: int = 0
