"""Any operator by its meaning on CuPy's arrays: for a GPU, the last resort before the host.

Meanings are written for NumPy, and NumPy passes most of its functions on to CuPy. Which meanings
get through depends on what they call, so that each is tried before it is offered: on random data of
the layer's own types, beside NumPy. Answers are kept per operator and types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.cuda.cupy_arrays import (
    CupyStream,
    cupy_module,
    device_meaning,
    has_dtype,
    to_device,
    to_host,
)
from engine.cuda.libraries import why_no_device
from engine.errors import DeviceError, EngineError, KernelError, MissingExtraError
from engine.ir.graph import Node, Value
from engine.ir.sizes import evaluate
from engine.ir.types import Array, TensorType, is_bound
from engine.lower.builder import ProgramBuilder
from engine.ops.fixed_sizes import fix_sizes
from engine.ops.reference import Reference
from engine.plan.operators import operator_to_json
from engine.plan.structure import HostStep
from engine.tactics.tactic import Candidate, Refusal, register
from engine.target import CudaTarget, Target

__all__ = ["CupyMeaning", "difference"]

#: A trial costs NumPy's time on the host; no layer with more elements than this is tried.
MOST_ELEMENTS = 1 << 26
#: Largest error in units of the largest value that NumPy gives, by the size of a float.
_TOLERANCES = {2: 1e-2, 4: 1e-4, 8: 1e-9}
#: Answers by operator, types and constants: None for yes, else the reason.
_ANSWERS: dict[str, str | None] = {}


class CupyMeaning:
    """Serves every node whose meaning gives on the device what it gives on the host."""

    name = "cupy.meaning"
    kinds: tuple[str, ...] = ()
    last_resort = True

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate, once a trial on the device went well."""
        reason = _unfit(node, target)
        if not reason:
            assert isinstance(target, CudaTarget)
            reason = why_no_device(target) or _tried(node, point) or ""
        return Refusal(self.name, reason) if reason else [self._candidate()]

    def restore(self, node: Node, choice: Mapping[str, Any], target: Target) -> Candidate | None:
        """The candidate that was measured where a device was; None for a node it never serves."""
        return None if _unfit(node, target) else self._candidate()

    def _candidate(self) -> Candidate:
        return Candidate(self.name, {}, emit)


def emit(builder: ProgramBuilder, node: Node, layer: int) -> None:
    """One step."""
    inputs = tuple(None if value is None else builder.slot(value) for value in node.inputs)
    outputs = tuple(builder.slot(value) for value in node.outputs)
    builder.host(HostStep("cupy", operator_to_json(node.op), inputs, outputs, layer=layer))


def _unfit(node: Node, target: Target) -> str:
    """Why no device could ever run the node this way; "" when one might."""
    if not isinstance(target, CudaTarget):
        return "the target is no GPU"
    if node.kind == "View" or node.bodies or isinstance(node.op, Reference):
        return "lowering has a form of its own for it"
    if not node.op.deterministic:
        return "its numbers are drawn by NumPy on the host"
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        kind = value.type
        if not isinstance(kind, TensorType) or not is_bound(kind):
            return f"{kind} is no tensor in memory"
        if not has_dtype(kind.dtype.numpy):
            return f"CuPy does not compute with {kind.dtype.value}"
    return ""


def _tried(node: Node, point: Mapping[str, int]) -> str | None:
    """The answer of a trial, made once per operator, types and small constants."""
    try:
        shapes = [_shape(value, point) for value in (*node.inputs, *node.outputs)]
    except KeyError as error:
        return f"the size {error} has no value at this point"
    if sum(math.prod(shape) for shape in shapes if shape is not None) > MOST_ELEMENTS:
        return "the layer is too large to be tried on the host"
    key = json.dumps(
        [
            operator_to_json(node.op),
            [None if v is None else [v.tensor.dtype.value, s] for v, s in zip(node.inputs, shapes)],
            [_known(value) for value in node.inputs],
            sorted(point.items()),
        ],
        sort_keys=True,
        default=str,
    )
    if key not in _ANSWERS:
        _ANSWERS[key] = _trial(node, shapes[: len(node.inputs)], point)
    return _ANSWERS[key]


def _shape(value: Value | None, point: Mapping[str, int]) -> tuple[int, ...] | None:
    return None if value is None else tuple(evaluate(dim, point) for dim in value.tensor.dims)


def _known(value: Value | None) -> Any:
    """The contents of a small constant, on which a meaning may depend."""
    if value is None or value.constant is None:
        return None
    return value.constant.tolist() if value.constant.size <= 64 else "constant"


def _trial(
    node: Node, shapes: Sequence[tuple[int, ...] | None], point: Mapping[str, int]
) -> str | None:
    """Why the meaning does not serve on the device, None when it does."""
    operator = fix_sizes(node.op, point)
    count = len(node.outputs)
    failed = ""
    for feeds in _samples(node, shapes):
        try:
            with np.errstate(all="ignore"):
                results = operator.meaning(*feeds)
        except Exception as error:
            failed = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        expected = (results if isinstance(results, tuple) else (results,))[:count]
        try:
            found = _on_device(node, operator, feeds)
        except (DeviceError, KernelError, MissingExtraError) as error:
            return str(error)
        for position, (mine, wanted) in enumerate(zip(found, expected)):
            wrong = difference(mine, np.asarray(wanted))
            if wrong:
                return f"output {position} on the GPU is not what NumPy gives: {wrong}"
        return None
    return f"NumPy computes it on no data that was tried ({failed})"


def _samples(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> Sequence[list[Any]]:
    """Inputs to try, each harder to refuse than the ones before: random ones, ones, zeros."""
    generator = np.random.default_rng(0)

    def random(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if dtype.kind == "f":
            return generator.standard_normal(shape).astype(dtype)
        # Not zero, by which integers cannot be divided, and small, for they may be indices.
        least, end = (0, 2) if dtype.kind == "b" else (1, 3)
        return generator.integers(least, end, shape).astype(dtype)

    makers = (random, np.ones, np.zeros)
    return [
        [
            None
            if value is None or shape is None
            else make(shape, value.tensor.dtype.numpy)
            if value.constant is None
            else np.ascontiguousarray(value.constant)
            for value, shape in zip(node.inputs, shapes)
        ]
        for make in makers
    ]


def _on_device(node: Node, operator: Any, feeds: Sequence[Any]) -> list[Array]:
    """What the device gives; KernelError also for a fault that CuPy reports."""
    from engine.cuda.device import open_device

    open_device(0).use()
    cupy = cupy_module()
    where = f"{node.kind} by cupy.meaning"
    try:
        with CupyStream(0, 0):
            given = [None if feed is None else to_device(feed) for feed in feeds]
            results = device_meaning(operator, given, len(node.outputs), where)
            return [to_host(result) for result in results]
    except EngineError:
        raise
    except (RuntimeError, cupy.cuda.memory.OutOfMemoryError) as error:
        raise KernelError(f"{where} failed on the GPU: {str(error)[:200]}") from error


def difference(found: Array, expected: Array) -> str:
    """In what an array differs from another one beyond rounding; "" when it does not."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"found {found.dtype}{list(found.shape)}, expected "
            f"{expected.dtype}{list(expected.shape)}"
        )
    if found.dtype.kind != "f":
        wrong = int(np.count_nonzero(found != expected))
        return f"{wrong} of {found.size} elements differ" if wrong else ""
    mine, wanted = found.astype(np.float64), expected.astype(np.float64)
    special = ~np.isfinite(wanted)
    same = (mine == wanted) | (np.isnan(mine) & np.isnan(wanted))
    if not same[special].all() or not np.isfinite(mine[~special]).all():
        return "infinities or NaN are at other places"
    if not (~special).any():
        return ""
    scale = max(float(np.abs(wanted[~special]).max()), 1e-30)
    error = float(np.abs(mine[~special] - wanted[~special]).max()) / scale
    limit = _TOLERANCES[found.dtype.itemsize]
    return f"the error is {error:.2g}, allowed is {limit:g}" if error > limit else ""


register(CupyMeaning())
