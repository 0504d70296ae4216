"""In front of cuDNN's kernels stand kernels that end first; nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cuda.c_prelude import PRELUDE
from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Graph
from engine.ir.sizes import symbol
from engine.lower.builder import ProgramBuilder
from engine.lower.quiet import hold_back
from engine.plan.device import ClearStep, LaunchStep, LibraryStep
from engine.plan.structure import ChooseStep, Guard

KERNEL = DeviceKernel("nvrtc", "k", PRELUDE + "void k() { ef_launch_dependents(); }", 32)
TRITON = DeviceKernel("triton", "t", "    tl.extra.cuda.gdc_launch_dependents()\n", 128)
LAUNCH, OTHER = LaunchStep(0, (1, 1, 1), (), 0), LaunchStep(1, (1, 1, 1), (), 0)
CUDNN = LibraryStep("cudnn", {}, (), (), None, 0)
CUBLASLT = LibraryStep("cublaslt", {}, (), (), None, 0)
SMALL = (Guard("<=", symbol("N"), 4),)


def held(*steps: Any) -> list[Any]:
    builder = ProgramBuilder(Graph(), device_kernels=[KERNEL, TRITON])
    builder.steps[:] = steps
    replaced = hold_back(builder)
    for new, old in replaced.items():
        assert builder.device_kernels[new] == builder.device_kernels[old].quiet()

    def marked(step: Any) -> Any:
        if isinstance(step, ChooseStep):
            return [list(map(marked, chosen)) for _, chosen in step.cases]
        if isinstance(step, LaunchStep):
            return "quiet" if step.function in replaced else "early"
        return type(step).__name__ if not isinstance(step, LibraryStep) else step.library

    return [marked(step) for step in builder.steps]


def test_only_what_stands_in_front_of_cudnn_is_exchanged() -> None:
    assert held(LAUNCH, CUDNN) == ["quiet", "cudnn"]
    assert held(LAUNCH, CUBLASLT, CUDNN) == ["early", "cublaslt", "cudnn"]
    assert held(CUBLASLT, CUDNN, LAUNCH) == ["cublaslt", "cudnn", "early"]
    assert held(LAUNCH, ClearStep(0, 0), CUDNN) == ["early", "ClearStep", "cudnn"]


def test_a_launch_may_be_empty_so_the_one_before_it_is_exchanged_too() -> None:
    assert held(LAUNCH, OTHER, CUDNN) == ["early", "quiet", "cudnn"]
    open_grid = LaunchStep(1, (symbol("N"), 1, 1), (), 0)
    assert held(LAUNCH, open_grid, CUDNN) == ["quiet", "quiet", "cudnn"]


def test_cases_count_on_both_sides() -> None:
    chosen = ChooseStep(((SMALL, (CUDNN,)), ((), (LAUNCH,))))
    assert held(OTHER, chosen) == ["quiet", [["cudnn"], ["early"]]]
    assert held(chosen, CUDNN) == [[["cudnn"], ["quiet"]], "cudnn"]


def test_a_case_may_begin_with_a_launch_that_is_empty() -> None:
    open_grid = LaunchStep(1, (symbol("N"), 1, 1), (), 0)
    chosen = ChooseStep(((SMALL, (open_grid, CUDNN)), ((), (LAUNCH,))))
    assert held(OTHER, chosen) == ["quiet", [["quiet", "cudnn"], ["early"]]]
    empty = ChooseStep(((SMALL, ()), ((), (LAUNCH,))))
    assert held(OTHER, empty, CUDNN) == ["quiet", [[], ["quiet"]], "cudnn"]
    full = ChooseStep(((SMALL, (OTHER,)), ((), (LAUNCH,))))
    assert held(OTHER, full, CUDNN) == ["early", [["quiet"], ["quiet"]], "cudnn"]


def test_a_quiet_kernel_lacks_the_signal_and_nothing_else() -> None:
    assert "gdc_launch_dependents" not in TRITON.quiet().source
    assert KERNEL.quiet().source == "#define EF_QUIET\n" + KERNEL.source
    assert KERNEL.quiet().digest != KERNEL.digest


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_machine_code_of_quiet_kernels_has_no_signal(capability: tuple[int, int]) -> None:
    compile_nvrtc = pytest.importorskip("engine.cuda.nvrtc").compile_nvrtc
    text = (
        PRELUDE
        + 'extern "C" __global__ void k(int *x) { ef_wait(); ef_launch_dependents(); *x = 1; }'
    )
    kernel = DeviceKernel("nvrtc", "k", text, 32)
    loud, quiet = (compile_nvrtc(item, capability).image for item in (kernel, kernel.quiet()))
    assert (loud != quiet) == (capability >= (9, 0))


def test_a_program_that_begins_with_cudnn_meets_itself_when_it_runs_again() -> None:
    assert held(CUDNN, LAUNCH, OTHER) == ["cudnn", "early", "quiet"]
    assert KERNEL.quiet().quiet() == KERNEL.quiet()
