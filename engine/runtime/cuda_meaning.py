"""Host steps whose data stay on the device: meanings on CuPy's arrays over a context's memory."""

from __future__ import annotations

from collections.abc import Sequence

from engine.cuda.cupy_arrays import CupyStream, DeviceTensor, device_meaning, wrapped
from engine.errors import KernelError
from engine.runtime.host import HostCall

__all__ = ["run_on_device"]


def run_on_device(
    call: HostCall,
    inputs: Sequence[DeviceTensor | None],
    outputs: Sequence[DeviceTensor],
    index: int,
    stream: int,
) -> None:
    """Enqueue an operator's meaning and copies of its results to where they belong.

    Everything runs on ``stream`` of the device with the number ``index``; the host prepares it, so
    it cannot be part of a graph, but waits only where the meaning asks for single values. Raises
    MissingExtraError without CuPy, KernelError for a meaning that fails or makes something else
    than the plan says, DeviceMemoryError when the device is full.
    """
    assert call.operator is not None
    with CupyStream(stream, index):
        given = [None if tensor is None else wrapped(tensor, index) for tensor in inputs]
        results = device_meaning(call.operator, given, len(outputs), call.where)
        for position, (result, tensor) in enumerate(zip(results, outputs, strict=True)):
            if result.shape != tensor.shape or result.dtype != tensor.dtype:
                raise KernelError(
                    f"{call.where} made {result.dtype}{list(result.shape)} as output {position}, "
                    f"expected {tensor.dtype}{list(tensor.shape)}"
                )
            wrapped(tensor, index)[...] = result
