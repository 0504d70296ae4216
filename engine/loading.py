"""Loading a plan: `load` maps the file, checks it, and makes an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import PlanCorruptError
from engine.plan.plan import Plan, open_plan
from engine.runtime.engine import Engine
from engine.runtime.kernels import CompileMode
from engine.target import CudaTarget, check_target

if TYPE_CHECKING:
    import os

    from engine.cuda.device import Device
    from engine.runtime.cuda_engine import CudaEngine

__all__ = ["load"]


def load(
    plan: str | os.PathLike[str] | Plan,
    *,
    verify: bool = True,
    compile: CompileMode = "background",
    threads: int | None = None,
    device: int | Device = 0,
) -> Engine | CudaEngine:
    """An engine from a plan or a plan file.

    The file is mapped, never copied; ``verify`` checks every digest, in threads. For a CPU,
    ``compile`` says what happens when the kernels are not yet in the cache of this machine:
    "background" (NumPy serves until they are ready), "wait", or "never". For a GPU, ``device`` is
    its number. Raises PlanError for a damaged file, an unknown version, or a plan for another
    target, DeviceError when there is no such GPU, DeviceMemoryError when the weights do not fit.
    """
    opened = plan if isinstance(plan, Plan) else open_plan(Path(plan), verify=verify)
    if opened.target.get("vendor") == "cuda":
        return _on_gpu(opened, device)
    check_target(opened.target)
    return Engine(
        opened.program,
        opened.arrays(),
        metadata=opened.metadata(),
        compile=compile,
        threads=threads,
    )


def _on_gpu(plan: Plan, device: int | Device) -> CudaEngine:
    from engine.cuda.device import open_device
    from engine.runtime.cuda_engine import CudaEngine

    try:
        CudaTarget.from_json(plan.target)
    except (KeyError, TypeError, ValueError):
        raise PlanCorruptError(
            "the plan is for a GPU and does not say for which; build the model again"
        ) from None
    opened = open_device(device) if isinstance(device, int) else device
    return CudaEngine(
        plan.program,
        plan.arrays(),
        {name: image.tobytes() for name, image in plan.images.items()},
        device=opened,
        metadata=plan.metadata(),
    )
