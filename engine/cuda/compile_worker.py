"""A process that compiles kernels: one JSON line in, one JSON line out, until its input ends.

Compilers live in processes of their own, because an assembler that crashes or hangs must cost one
kernel, and because Triton holds the interpreter's lock while it compiles.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.cuda.kernel import Compiled, DeviceKernel, Failure
from engine.errors import KernelError, MissingExtraError
from engine.plan.device import TensorMapForm

__all__ = ["compile_one", "main", "result_from_json", "result_to_json"]


def compile_one(kernel: DeviceKernel, capability: tuple[int, int]) -> Compiled | Failure:
    """Compile with the compiler that a kernel names; MissingExtraError without it."""
    try:
        if kernel.compiler == "nvrtc":
            from engine.cuda.nvrtc import compile_nvrtc

            result: Compiled | Failure = compile_nvrtc(kernel, capability)
        else:
            from engine.cuda.triton_compiler import compile_triton

            result = compile_triton(kernel, capability)
    except KernelError as error:
        return Failure(str(error))
    if isinstance(result, Compiled) and result.spilled_nbytes > 0:
        return Failure(
            f"spills {result.spilled_nbytes} bytes of registers per thread to memory "
            f"({result.registers} registers in each of {result.threads} threads)"
        )
    return result


def result_to_json(result: Compiled | Failure) -> dict[str, Any]:
    """Everything about a result but the cubin."""
    if isinstance(result, Failure):
        return {"failure": result.reason}
    return {
        "entry": result.entry,
        "threads": result.threads,
        "shared_nbytes": result.shared_nbytes,
        "cluster": result.cluster,
        "maps": [[item.dtype, list(item.box), item.swizzle] for item in result.maps],
        "waits": result.waits,
        "registers": result.registers,
        "spilled_nbytes": result.spilled_nbytes,
    }


def result_from_json(fields: Mapping[str, Any], image: bytes) -> Compiled | Failure:
    """Read what `result_to_json` wrote; KeyError, TypeError or ValueError when it did not."""
    if "failure" in fields:
        return Failure(str(fields["failure"]))
    return Compiled(image, **{**fields, "maps": _forms(fields["maps"])})


def _forms(items: Iterable[tuple[str, Sequence[int], int]]) -> tuple[TensorMapForm, ...]:
    return tuple(
        TensorMapForm(dtype, tuple(map(int, box)), int(swizzle)) for dtype, box, swizzle in items
    )


def kernel_from_json(fields: Mapping[str, Any]) -> DeviceKernel:
    """Read `DeviceKernel.to_json`."""
    pairs = {
        name: tuple((key, value) for key, value in fields[name])
        for name in ("signature", "constants")
    }
    maps = _forms(fields.get("maps", ()))
    return DeviceKernel(**{**fields, **pairs, "aligned": tuple(fields["aligned"]), "maps": maps})


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        major, minor = request["capability"]
        result = compile_one(kernel_from_json(request["kernel"]), (major, minor))
    except MissingExtraError as error:
        return {"missing": [error.package, error.extra, error.purpose]}
    except Exception as error:  # a fault of ours costs this kernel, and is told
        return {"crash": f"failed with {type(error).__name__}: {error}"}
    answer = result_to_json(result)
    if isinstance(result, Compiled):
        answer["image"] = base64.b64encode(result.image).decode()
    return answer


def main() -> None:
    """Serve requests; whatever compilers print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when work ends
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
