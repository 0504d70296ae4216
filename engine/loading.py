"""Loading a plan: `load` maps the file, checks it, and makes an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.plan.plan import Plan, open_plan
from engine.runtime.engine import Engine
from engine.runtime.kernels import CompileMode
from engine.target import check_target

if TYPE_CHECKING:
    import os

__all__ = ["load"]


def load(
    plan: str | os.PathLike[str] | Plan,
    *,
    verify: bool = True,
    compile: CompileMode = "background",
    threads: int | None = None,
) -> Engine:
    """An engine from a plan or a plan file.

    The file is mapped, never copied; ``verify`` checks every digest, in threads. ``compile`` says
    what happens when the kernels are not yet in the cache of this machine: "background" (NumPy
    serves until they are ready), "wait", or "never". Raises PlanError for a damaged file, an
    unknown version, or a plan for another target.
    """
    opened = plan if isinstance(plan, Plan) else open_plan(Path(plan), verify=verify)
    check_target(opened.target)
    return Engine(
        opened.program,
        opened.arrays(),
        metadata=opened.metadata(),
        compile=compile,
        threads=threads,
    )
