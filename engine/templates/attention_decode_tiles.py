"""Which ways of splitting the keys of one query are worth measuring, by a small model of a GPU."""

from __future__ import annotations

from dataclasses import replace

from engine.target import CudaTarget
from engine.templates.attention import AttentionForm
from engine.templates.attention_decode import DecodeTile

__all__ = ["decode_tiles"]

#: Candidates of one layer that are worth compiling, and of them with as many splits.
MOST, MOST_ALIKE = 14, 6
#: Caches of up to so many keys are read whole, whatever the position.
LONGEST_EAGER = 2048
#: Bytes per second and multiprocessor that one of this class reads, and seconds of a launch.
_BANDWIDTH, _LAUNCH = 4.3e12 / 132, 1.5e-6
#: Seconds from memory to a multiprocessor that is busy reading, and from a block to the next.
_TRIP, _BLOCK = 0.9e-6, 1.28e-9


def decode_tiles(form: AttentionForm, rows: int, keys: int, target: CudaTarget) -> list[DecodeTile]:
    """Ways of splitting keys, the likeliest first; ``rows`` are queries of all heads."""
    found = []
    for columns in (32, 64, 128, 256):
        for warps in (4, 8):
            # Sums of all streams are held in registers.
            held = columns * form.width // (warps * 32)
            if columns > max(32, keys) or not 2 <= held <= 32:
                continue
            for splits in (1, 2, 4, 8, 16, 32):
                if splits > 1 and (splits - 1) * columns >= keys:
                    continue
                steps = -(-keys // (columns * splits))
                for stages in (1,) if steps == 1 else (1, 3, 4) if steps > 2 else (1, 3):
                    tile = DecodeTile(columns, splits, warps, stages=stages)
                    if _stages_nbytes(form, tile) <= target.shared_nbytes:
                        found.append((_decode_seconds(form, tile, rows, keys, target), tile))
    found.sort(key=lambda item: item[0])
    tiles: list[DecodeTile] = []
    for _, tile in found:
        if len(tiles) < MOST and sum(item.splits == tile.splits for item in tiles) < MOST_ALIKE:
            tiles.append(tile)
    # Measured times must not depend on how full a cache is in the trial: short caches are read
    # whole without waiting for the position, of long ones every candidate reads what counts.
    eager = form.position != "none" and keys <= LONGEST_EAGER
    return [replace(tile, eager=eager) for tile in tiles]


def _stages_nbytes(form: AttentionForm, tile: DecodeTile) -> int:
    """Shared memory for the steps that arrive while one is taken."""
    return (tile.stages - 1) * 2 * tile.keys * form.width * form.dtype.nbytes


def _decode_seconds(
    form: AttentionForm, tile: DecodeTile, rows: int, keys: int, target: CudaTarget
) -> float:
    """A rough time: what is in flight on a multiprocessor bounds what it reads."""
    step_nbytes = 2 * tile.keys * form.width * form.dtype.nbytes
    steps, threads = -(-keys // (tile.keys * tile.splits)), 32 * tile.warps
    blocks = rows * tile.splits
    registers = 36 + 2 * tile.keys * form.width // threads
    fit = min(2048 // threads, 65536 // (threads * registers))
    shared = _stages_nbytes(form, tile)
    fit = min(fit, target.shared_nbytes // shared) if shared else fit
    share = -(-blocks // target.multiprocessors)
    resident = max(1, min(fit, share))
    # Without stages a block waits for each step, and computes while nothing of its own arrives.
    waiting = 1.0 if steps == 1 else 0.6 if tile.stages == 1 else min(tile.stages - 1, steps)
    rate = min(_BANDWIDTH, resident * step_nbytes * waiting / _TRIP)
    work = share * steps * (0.15e-6 + threads * 2e-10) / resident
    time = _LAUNCH + 1.5 * _TRIP + max(share * steps * step_nbytes / rate, work, blocks * _BLOCK)
    time += -(-share // resident) * 0.3e-6 + tile.warps * 0.03e-6
    return time + (1.2e-6 if tile.splits > 1 else 0.0) + tile.splits * 0.01e-6
