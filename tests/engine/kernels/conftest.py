"""What the kernel tests share: running a kernel in C and in NumPy between guard bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from engine.kernels.isa import ISAS, Isa, detect
from engine.kernels.kernel import Array, Kernel
from engine.kernels.runner import Runner, Step
from engine.runtime.compilation import Function, find_compiler, load

GUARD = 64
POISON = np.float32(-12345.5)


def address_of(kernel: Kernel, isa: Isa) -> int:
    return load([Function("kernel", kernel.source("kernel", isa))], isa)["kernel"]


class Check:
    """Runs a kernel on guarded copies of its operands."""

    def __init__(self, isa: Isa, threads: int) -> None:
        self.isa = isa
        self.runner = Runner(threads)

    def _guarded(self, operands: Sequence[Array], extents: Sequence[int]) -> list[Array]:
        """Each operand cut to its extent, between two guards."""
        guarded = []
        for operand, extent in zip(operands, extents, strict=True):
            assert operand.size >= extent, "a test operand is smaller than the kernel's extent"
            whole = np.full(extent + 2 * GUARD, POISON, operand.dtype)
            whole[GUARD : GUARD + extent] = operand.reshape(-1)[:extent]
            guarded.append(whole)
        return guarded

    def run(self, kernel: Kernel, operands: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        """The outputs of the C function; guards and inputs must be untouched."""
        extents = kernel.extents(sizes)
        guarded = self._guarded(operands, extents)
        before = [whole.copy() for whole in guarded]
        pointers = [whole.ctypes.data + GUARD * whole.itemsize for whole in guarded]
        step = Step(
            address_of(kernel, self.isa),
            pointers,
            sizes,
            kernel.items(sizes),
            kernel.scratch_nbytes(sizes),
        )
        self.runner.run(self.runner.prepare([step]))
        inputs = kernel.operand_count - kernel.output_count
        for position, (whole, old) in enumerate(zip(guarded, before, strict=True)):
            if position < inputs:
                np.testing.assert_array_equal(whole, old)
            np.testing.assert_array_equal(whole[:GUARD], old[:GUARD])
            np.testing.assert_array_equal(whole[-GUARD:], old[-GUARD:])
        return [whole[GUARD:-GUARD] for whole in guarded[inputs:]]

    def twin(self, kernel: Kernel, operands: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        """The outputs of the NumPy twin on operands cut to their extents."""
        guarded = self._guarded(operands, kernel.extents(sizes))
        inside = [whole[GUARD : whole.size - GUARD] for whole in guarded]
        kernel.twin(inside, sizes)
        return inside[kernel.operand_count - kernel.output_count :]

    def agree(
        self,
        kernel: Kernel,
        operands: Sequence[Array],
        sizes: Sequence[int],
        *,
        tolerance: float = 1e-4,
    ) -> Array:
        """The output, after C and twin were found to agree (poison between rows included)."""
        compiled = self.run(kernel, operands, sizes)
        for left, right in zip(compiled, self.twin(kernel, operands, sizes), strict=True):
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)
        return compiled[0]


def _runnable() -> list[str]:
    """Instruction sets that this machine executes."""
    best = detect().name
    return {"avx512": ["generic", "avx2", "avx512"], "avx2": ["generic", "avx2"]}.get(
        best, sorted({"generic", best})
    )


@pytest.fixture(scope="session", params=_runnable())
def check(request: pytest.FixtureRequest) -> Check:
    """A checker for plain C and for each kind of vectors that this machine has."""
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    return Check(ISAS[request.param], 2)


@pytest.fixture(scope="session")
def normal() -> Callable[..., Array]:
    """Seeded normal float32 values of a shape."""

    def make(seed: int, *shape: int) -> Array:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    return make
