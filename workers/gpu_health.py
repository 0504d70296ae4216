"""The checks of `enginefarm doctor` that are about NVIDIA GPUs.

Where there is no GPU nothing of this is needed, and what is missing is no defect.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from workers.failures import sentence_of
from workers.findings import Finding, State

__all__ = ["GPU_CHECKS"]

SELF_TEST_TOLERANCE = 1e-2
Check = Callable[[str], Finding]


def _why_no_gpu() -> str:
    """Why no GPU can be used, "" when one can be."""
    from engine.cuda.driver import count
    from engine.errors import DeviceError, MissingExtraError

    try:
        return "" if count() else "the driver finds none"
    except (DeviceError, MissingExtraError) as error:
        return sentence_of(error)


def _driver(name: str) -> Finding:
    """The driver's version, or what keeps GPUs from being used."""
    reason = _why_no_gpu()
    if reason:
        return Finding(name, "limited", f"no NVIDIA GPU is used: {reason}")
    from engine.cuda.driver import call

    served = int(call("cuDriverGetVersion", doing="ask the driver for its version"))
    return Finding(name, "fine", f"serves CUDA {served // 1000}.{served % 1000 // 10}")


def _gpus(name: str) -> Finding:
    """Every GPU: what it is, or why it cannot be used."""
    if _why_no_gpu():
        return Finding(name, "fine", "none; engines are built for this CPU and run on it")
    from engine.cuda.device import device_count, probe
    from engine.errors import DeviceError

    texts: list[str] = []
    state: State = "fine"
    for index in range(device_count()):
        try:
            target = probe(index)
        except DeviceError as error:
            state = "limited"
            texts.append(f"cuda:{index} cannot be used: {sentence_of(error)}")
            continue
        texts.append(
            f"cuda:{index} {target.name}, {target.architecture}, {target.memory_gib} GiB, "
            f"{target.multiprocessors} multiprocessors"
        )
    return Finding(name, state, "; ".join(texts))


def _part(find: Callable[[], str], extra: str, purpose: str) -> Check:
    """A check that a compiler or a library of GPUs is there."""

    def check(name: str) -> Finding:
        from engine.errors import EngineError

        try:
            return Finding(name, "fine", find())
        except (EngineError, PackageNotFoundError, ImportError, OSError) as error:
            here = not _why_no_gpu()
            advice = f"pip install 'enginefarm[{extra}]' {purpose}"
            if not here:
                return Finding(name, "fine", f"not installed, and no GPU here needs it; {advice}")
            reason = "" if isinstance(error, PackageNotFoundError) else f" ({sentence_of(error)})"
            return Finding(name, "limited", f"not installed; {advice}{reason}")

    return check


def _nvrtc() -> str:
    from engine.cuda.nvrtc import nvrtc_version

    return nvrtc_version()


def _cublaslt() -> str:
    from engine.cuda.cublaslt_functions import functions

    return str(functions().version)


def _cudnn() -> str:
    from engine.cuda.cudnn_graph import frontend

    return f"{frontend().backend_version()}, frontend {version('nvidia-cudnn-frontend')}"


def _cupy() -> str:
    from engine.cuda.cupy_arrays import cupy_module

    return str(cupy_module().__version__)


def _self_test(name: str) -> Finding:
    """A tiny model built for the first GPU, run there, and compared with its meaning."""
    if _why_no_gpu():
        return Finding(name, "fine", "no GPU to test")
    import numpy as np

    from engine.building import BuildOptions, assemble_plan, optimise
    from engine.debug.compare import difference
    from engine.debug.interpret import interpret
    from engine.debug.tiny import tiny_model
    from engine.loading import load

    plan = assemble_plan(optimise(tiny_model()), BuildOptions(target="cuda", level=0), ())
    feeds = {"x": np.linspace(-2, 2, 3 * 16, dtype=np.float32).reshape(3, 16)}
    found = load(plan)(feeds)["y"]
    off = difference("y", found, interpret(tiny_model(), feeds)["y"]).error
    if not off <= SELF_TEST_TOLERANCE:
        return Finding(name, "broken", f"a tiny engine is off by {off:.3g} of the spread")
    tactics = ", ".join(sorted({layer.tactic for layer in plan.program.layers}))
    return Finding(name, "fine", f"a tiny engine is right on cuda:0 ({tactics})")


GPU_CHECKS: dict[str, Check] = {
    "gpu driver": _driver,
    "gpus": _gpus,
    "cuda-bindings": _part(lambda: version("cuda-bindings"), "cuda", "to use a GPU"),
    "nvrtc": _part(_nvrtc, "cuda", "to build engines for a GPU"),
    "triton": _part(
        lambda: version("triton"), "triton", "to build fast engines for a GPU; they run without it"
    ),
    "cublaslt": _part(_cublaslt, "cuda", "to measure and run its products"),
    "cudnn": _part(_cudnn, "cudnn", "to measure and run its convolutions and attention"),
    "cupy": _part(_cupy, "cupy", "to run on a GPU what has no kernel yet"),
    "gpu self-test": _self_test,
}
