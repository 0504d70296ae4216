"""Memory between pages without access: where accesses outside of a buffer are found."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cuda.kernel import DeviceKernel
from tests import triton_shim
from tests.paged_memory import Paged, Reach, place_of

_SOURCE = """
import triton
import triton.language as tl


@triton.jit
def part(x, y, count, AHEAD: tl.constexpr):
    at = tl.arange(0, 16)
    tl.store(y + at, tl.load(x + at + AHEAD, mask=at < count), mask=at < count)
"""


@pytest.mark.parametrize("nbytes", [0, 1, 16, 100, 4096, 5000])
@pytest.mark.parametrize("grain", [16, 256])
def test_a_buffer_ends_or_begins_at_a_page(nbytes: int, grain: int) -> None:
    last = Paged(nbytes, at_end=True, grain=grain)
    assert last.address % grain == 0 and 0 <= -(last.address + nbytes) % 4096 < grain
    first = Paged(nbytes, at_end=False)
    assert first.address % 4096 == 0
    for item in (last, first):
        item.inside[:] = 7
        assert item.inside.size == nbytes and item.untouched() == (True, True)
    if nbytes % 4096:
        first.memory[nbytes] = 0
        assert first.untouched() == (True, False)


def test_the_nearest_buffer_names_a_place() -> None:
    buffers = [("a", 1000, 10), ("b", 3000, 10)]
    assert place_of(1012, buffers) == "2 bytes past the end of a"
    assert place_of(2990, buffers) == "10 bytes before b"
    assert place_of(3009, buffers) == "inside of b"


def test_an_access_may_not_leave_its_buffer_in_the_middle() -> None:
    array = np.zeros(8, np.float16)
    start = np.array([array.ctypes.data + 14], np.uint64)
    Reach([array]).check("read", start, 2)
    with pytest.raises(AssertionError, match="a read of 4 bytes"):
        Reach([array]).check("read", start, 4)
    Reach([array]).check("read", start, 4, np.array([False]))


@pytest.mark.parametrize("ahead", [0, 1, -1])
def test_a_triton_kernel_that_reads_past_its_array_is_told(ahead: int) -> None:
    pytest.importorskip("triton")
    kernel = DeviceKernel(
        "triton",
        "part",
        _SOURCE,
        128,
        signature=(("x", "*fp32"), ("y", "*fp32"), ("count", "i32")),
        constants=(("AHEAD", ahead),),
    )
    x, y = np.arange(12, dtype=np.float32), np.zeros(12, np.float32)
    if not ahead:
        triton_shim.run(kernel, (1,), {"x": x, "y": y, "count": 12})
        np.testing.assert_array_equal(y, x)
        return
    with pytest.raises(AssertionError, match=r"a read of 4 bytes at \d+ bytes (past|before)"):
        triton_shim.run(kernel, (1,), {"x": x, "y": y, "count": 12})
