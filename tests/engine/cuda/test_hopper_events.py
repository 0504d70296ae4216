"""Hopper's asynchronous kernels at their ends: what the model of the hardware refuses, and the
tiles that large batches take, at small sizes that keep their turns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engine.cuda.c_expression import PRELUDE
from engine.cuda.hopper_attention import (
    HopperAttentionForm,
    HopperAttentionTile,
    hopper_attention_kernel,
)
from engine.cuda.hopper_gemm import HopperTail, HopperTile, hopper_kernel
from engine.cuda.hopper_prelude import HOPPER_PRELUDE
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.ops.expression import cast
from engine.ops.fused_attention import HeadAccess
from engine.plan.device import Scalar, TensorMap, TensorMapForm
from tests import hopper_shim
from tests.cuda_shim import ShimError
from tests.engine.cuda.test_hopper_gemm import listing
from tests.engine.tactics import test_nvrtc_hopper_attention as attention
from tests.engine.tactics import test_nvrtc_hopper_gemm as products
from tests.engine.tactics.test_nvrtc_hopper_gemm import EPILOGUES

HALF = DType.FLOAT16
#: Eight rows of 128 bytes are loaded and stored; at 2048 lies a barrier.
_PROBE = """
extern "C" __global__ void probe(const __grid_constant__ ef_map x, const __grid_constant__ ef_map y,
                                 int mode) {
  extern __shared__ __align__(1024) unsigned char ef_dynamic[];
  const uint32_t start = ef_shared_address(ef_dynamic), barrier = start + 2048;
  if (threadIdx.x == 0 && mode != 3) {
    ef_barrier_init(barrier, 1);
    if (mode == 8) ef_barrier_init(barrier, 1);
    ef_fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ef_expect(barrier, mode == 4 ? 1 << 20 : mode == 9 ? 2048 : 1024);
    ef_load(start + (mode == 5 ? 3072 : mode == 6 ? 2048 : 0), &x, 0, 0, barrier);
  }
  if (mode == 7) ef_await(barrier + 8, 0);
  if (mode == 1 || mode == 9) return;
  ef_await(barrier, 0);
  __syncwarp();
  if (threadIdx.x == 0) {
    ef_store(&y, 0, 0, start);
    if (mode != 2) ef_await_reads<0>();
  }
}
"""
_FORM = TensorMapForm("float16", (8, 64), 128)
PROBE = DeviceKernel(
    "nvrtc",
    "probe",
    "".join([PRELUDE, HOPPER_PRELUDE, _PROBE]),
    32,
    shared_nbytes=3072 + 512,
    maps=(_FORM, _FORM),
)
#: What a probe does, when its loads and stores happen, and what is said of it.
WRONG = {
    "a load at the end": (1, 1, "loads that nobody waited for"),
    "a store at the end": (2, 4, "stores that nobody waited for"),
    "a store at the end, early": (2, 0, "stores that nobody waited for"),
    "no barrier": (3, 0, "not initialised"),
    "too many bytes": (4, 1, "more bytes than a barrier counts"),
    "past the end": (5, 0, "outside of the block's shared memory"),
    "past the end, late": (5, 1, "outside of the block's shared memory"),
    "over a barrier": (6, 1, "over a barrier"),
    "another barrier": (7, 0, "not initialised"),
    "a barrier twice": (8, 0, "initialised twice"),
    "bytes that never come": (9, 0, "expects bytes"),
}


@dataclass(frozen=True)
class _Places:
    """Arrays as the slots of a launch."""

    arrays: list[np.ndarray]

    def address(self, slot: int, offset: int) -> int:
        return int(self.arrays[slot].ctypes.data) + offset


def probe(mode: int, late: int, backwards: bool, blocks: int = 1) -> np.ndarray:
    held = np.zeros(4096, np.uint8)
    place = -held.ctypes.data % 256
    x, y = (held[at : at + 1024].view(np.float16) for at in (place, place + 1024))
    x[:] = np.arange(512)
    slots: Any = _Places([x, y])
    parameters = [TensorMap(slot, 0, (8, 64), (64, 1), slot) for slot in (0, 1)]
    values = [
        hopper_shim._value(PROBE, slots, item, {}) for item in (*parameters, Scalar("i32", mode))
    ]
    hopper_shim._run(PROBE, (blocks, 1, 1), values, backwards, late)
    return y.copy()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_hardware_answers_with_a_fault_is_refused(name: str, backwards: bool) -> None:
    mode, late, said = WRONG[name]
    for blocks in (1, 2):
        with pytest.raises(ShimError, match=said):
            probe(mode, late, backwards, blocks)
    for other in (0, 1, 4, 7):
        expected = np.arange(512).astype(np.float16)
        np.testing.assert_array_equal(probe(0, other, backwards, 2), expected)


#: Tiles of products of many rows: epilogue, tile, steps of k beyond one turn of the ring, blocks.
#: Of three units a block takes one to three: a warpgroup in ping-pong has two, one or none.
LARGE = {
    "qkv": ("bias", HopperTile(128, 192, True, 4, 2), 5, (1, 2)),
    "up": ("gelu", HopperTile(128, 128, True, 6, 2), 7, (1, 2)),
    "projection": ("residual", HopperTile(128, 192, False, 4, 3), 5, (2,)),
    "down": ("residual", HopperTile(192, 128, False, 4, 2), 5, (2,)),
    "square": ("residual", HopperTile(192, 192, False, 3, 2), 4, (2,)),
}


def kernel_of(name: str, tile: HopperTile) -> DeviceKernel:
    expression, kinds, dtypes = EPILOGUES[name]
    staged = kinds.index("full") + 1 if "full" in kinds else 0
    tail = HopperTail(cast(expression, HALF), kinds, dtypes, "boxes", staged)
    return hopper_kernel(HALF, tail, tile, constant=True)


@pytest.mark.parametrize("name", LARGE)
def test_tiles_of_many_rows_keep_to_their_memory_and_turns(name: str) -> None:
    """The last tile has rows past the end, the last step of k columns."""
    epilogue, tile, steps, counts = LARGE[name]
    m = 2 * tile.rows + 45
    graph, node = products.product(epilogue, m, tile.columns, 64 * steps - 24)
    for blocks in counts:
        products.check(graph, node, tile, blocks=blocks, M=m)
    reached = hopper_shim._library(kernel_of(epilogue, tile)).shim_shared_reached()
    # A block's memory begins at a multiple of 1024 here: what is left for that is not used. The
    # last barriers are those of an operand that is loaded ahead.
    room = tile.shared_nbytes - 1024
    assert reached == room - (0 if epilogue == "residual" else 32 * tile.groups * tile.buffers)


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "197"])
def test_attention_in_turns_keeps_to_its_memory(hidden: bool) -> None:
    details: dict[str, Any] = {}
    feeds: list[np.ndarray] = []
    if hidden:
        rows, tile = 128, HopperAttentionTile(1, 2, 4)
        mask = attention.random(2, 1, 1, rows, seed=1)
        mask[1, ..., 90:] = -65504
        details = {"mask": "key", "mask_access": HeadAccess(0, rows, 0, 0)}
        details["mask_shape"] = mask.shape
        feeds.append(mask)
    else:
        rows, tile = 197, HopperAttentionTile(1, 4, 3)
    x = attention.random(2, rows, 3 * 2 * 64)
    op = attention.packed(2, 2, rows, 64, **details)
    attention.check(op, [x, x, x, *feeds], tile)
    form = HopperAttentionForm(
        HALF, 64, 64**-0.5, rows, rows, -(-rows // 8) * 8, mask=HALF if hidden else None
    )
    kernel = hopper_attention_kernel(form, tile)
    reached = hopper_shim._library(kernel).shim_shared_reached()
    # What a mask adds lies last and is written without the model's knowledge.
    added = 4 * form.rows if hidden else 0
    assert 0 < reached <= tile.shared_nbytes(form) - 1024 - added


@pytest.mark.parametrize("name", LARGE)
def test_loading_warps_use_no_register_that_they_gave_away(name: str, tmp_path: Any) -> None:
    epilogue, tile, _, _ = LARGE[name]
    text = listing(kernel_of(epilogue, tile), tmp_path)
    computing, loading = text.split("USETMAXREG.TRY_ALLOC")[1].split("USETMAXREG.DEALLOC")
    given = [int(number, 16) for number in re.findall(r"^\S* (?:UP\d, )?0x(\w+)", computing)]
    left = int(re.findall(r"0x(\w+) ;", loading)[0], 16)
    # Behind the last end of a thread stand the computing warps' loops of waiting.
    own = loading[: loading.rindex("EXIT")]
    assert max(map(int, re.findall(r"\bR(\d+)\b", own))) < left
    used = [int(number) for number in re.findall(r"\bR(\d+)\b", computing)]
    for width, first in re.findall(r"HGMMA\.64x(\d+)x16\S* R(\d+)", computing):
        used.append(int(first) + int(width) // 2 - 1)
    assert given and max(used) < given[0]
    assert left + tile.groups * given[0] <= 65536 // 128
