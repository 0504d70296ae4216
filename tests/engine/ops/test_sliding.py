"""Windows lie where a walk over every place puts them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.ir.sizes import evaluate, symbol
from engine.ops.sliding import AUTO_PADS, Windows

small = st.integers(1, 4)


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    auto_pad = draw(st.sampled_from(AUTO_PADS))
    pads = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return Windows.of(
        (draw(small),),
        strides=(draw(small),),
        dilations=(draw(st.integers(1, 3)),),
        pads=pads if auto_pad == "NOTSET" else None,
        auto_pad=auto_pad,
        ceil=draw(st.integers(0, 1)),
    )


def count_by_walking(window: Windows, size: int) -> int:
    before, after = window.padding((size,))
    stride, span = window.strides[0], window.spans[0]
    if window.auto_pad.startswith("SAME"):
        return -(-size // stride)
    count = 0
    while True:
        start = count * stride - before[0]
        fits = start + span <= size + after[0]
        if window.ceil and window.auto_pad == "NOTSET":
            # The last window may reach past the padding, but begins inside the data or before it.
            previous_end = start - stride + span
            fits = start < size and (fits or (count > 0 and previous_end < size + after[0]))
        if not fits:
            return count
        count += 1


@given(windows(), st.integers(1, 12))
def test_the_number_of_windows_is_that_of_a_walk(window: Windows, size: int) -> None:
    expected = count_by_walking(window, size)
    assume(expected > 0)
    assert window.output((size,)) == (expected,)


@given(windows(), st.integers(1, 12))
def test_symbolic_sizes_evaluate_to_the_numbers(window: Windows, size: int) -> None:
    assume(count_by_walking(window, size) > 0)
    (symbolic,) = window.output((symbol("n"),))
    assert evaluate(symbolic, {"n": size}) == window.output((size,))[0]


@given(windows(), st.integers(1, 12))
def test_the_view_and_the_offsets_show_the_same_elements(window: Windows, size: int) -> None:
    assume(count_by_walking(window, size) > 0)
    padded, counts = window.pad(np.arange(1.0, size + 1)[None, None], 0)
    view = window.view(padded, counts)
    for place, index in enumerate(window.offsets(counts)):
        np.testing.assert_array_equal(view[:, :, place], padded[index])


def test_an_odd_padding_is_longer_behind_for_upper_and_before_for_lower() -> None:
    upper = Windows.of((2,), auto_pad="SAME_UPPER")
    lower = Windows.of((2,), auto_pad="SAME_LOWER")
    assert upper.padding((5,)) == ((0,), (1,))
    assert lower.padding((5,)) == ((1,), (0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (0,)}, "strides"),
        ({"dilations": (0,)}, "dilations"),
        ({"pads": (-1, 0)}, "pads"),
        ({"pads": (1,)}, "pads"),
        ({"auto_pad": "FULL"}, "auto_pad"),
    ],
)
def test_attributes_without_meaning_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Windows.of((3,), **change)  # type: ignore[arg-type]


def test_a_window_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Windows.of((5,)).output((3,))
