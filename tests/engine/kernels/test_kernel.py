import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.blocked import balanced_split, product_cost, ranked_shapes
from engine.kernels.isa import ISAS, compiler_flags, detect
from engine.kernels.kernel import KERNELS, Kernel, take_integer, window
from engine.kernels.winograd import ranked_candidates

COUNTS = st.integers(1, 5000)


def test_every_kind_is_found_in_the_folder():
    assert {"gemm", "convolution", "winograd"} <= set(KERNELS)
    for kind, kernel in KERNELS.items():
        assert issubclass(kernel, Kernel)
        assert kernel.kind == kind


def test_a_kind_that_nobody_wrote_is_missing():
    with pytest.raises(KeyError):
        KERNELS["sorcery"]


@pytest.mark.parametrize("value", [None, True, 1.5, "3", 0, 10])
def test_integers_are_checked(value):
    with pytest.raises(ValueError, match="field rows"):
        take_integer({"rows": value}, "rows", 1, 9)


def test_a_view_may_not_leave_its_operand():
    flat = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(window(flat, (3, 4), (4, 1)), flat.reshape(3, 4))
    np.testing.assert_array_equal(window(flat, (2, 2), (0, 1), offset=10), [[10, 11], [10, 11]])
    with pytest.raises(ValueError, match="reaches element 13"):
        window(flat, (3, 4), (4, 1), offset=1)


@given(COUNTS, COUNTS, st.sampled_from([(14, 32), (6, 16), (1, 64)]), st.integers(1, 20))
def test_blocks_are_within_bounds_and_enough_when_there_are_tiles(rows, columns, shape, items):
    most = (8, 4)
    split = balanced_split(rows, columns, shape, most=most, items=items)
    tiles = [-(-rows // shape[0]), -(-columns // shape[1])]
    count = 1
    for block, limit, all_tiles in zip(split.sizes[:2], most, tiles, strict=True):
        assert 1 <= block <= limit
        count *= -(-all_tiles // block)
    # Equal blocks may be fewer than asked for, by less than half.
    assert 2 * count >= min(items, tiles[0] * tiles[1])


@given(COUNTS, COUNTS, st.sampled_from(sorted(ISAS)))
def test_shapes_are_ranked_by_cost_and_no_shape_beats_the_arithmetic(rows, columns, name):
    isa = ISAS[name]
    costs = [product_cost(rows, columns, s, isa) for s in ranked_shapes(rows, columns, isa)]
    assert costs[0] <= min(costs) * 1.04 + 1
    assert min(costs) >= rows * columns / isa.vector_floats


def test_both_winograd_sizes_are_offered_early():
    found = ranked_candidates((1, 14, 14), 256, 256)
    assert {kernel.outputs_per_side for kernel, _ in found[:2]} == {2, 4}
    assert len(found) <= 6


def test_this_machine_has_an_instruction_set_with_flags():
    isa = detect()
    assert ISAS[isa.name] is isa
    assert "-ffast-math" not in compiler_flags(isa)
    assert ("-mavx512f" in compiler_flags(isa)) == (isa.name == "avx512")
