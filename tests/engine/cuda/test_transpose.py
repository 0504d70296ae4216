"""Transposition kernels in every form, under the host shim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine.cuda.size_text import divides
from engine.cuda.transpose import Problem, TransposeChoice, generate, transpose_choices
from engine.ir.sizes import evaluate, symbol
from engine.kernels.transpose import kernel_of
from tests.cuda_shim import run_kernel


def problem_of(shape: Sequence[int], perm: Sequence[int], dtype: np.dtype) -> Problem:
    from engine.ir.types import DType

    found = kernel_of(shape, perm, DType.of(dtype))
    assert found is not None
    kernel, sizes = found
    rank = kernel.rank
    rows, columns, x_row, y_column = sizes[rank : rank + 4]
    rest = sizes[rank + 4 :]
    outer = (sizes[:rank], rest[:rank], rest[rank:])
    return Problem(dtype.itemsize, rows, columns, x_row, y_column, *outer)


def check(shape: Sequence[int], perm: Sequence[int], dtype: np.dtype) -> set[str]:
    """All choices offered turn the tensor; the forms among them."""
    x = np.random.default_rng(1).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    x = x.view(dtype)[..., 0]
    problem = problem_of(shape, perm, dtype)
    expected = np.ascontiguousarray(x.transpose(perm))
    offered = transpose_choices(problem)
    for choice in offered:
        kernel, grid, scalars = generate(problem, choice)
        found = np.zeros_like(expected)
        assert not scalars
        run_kernel(kernel, [int(str(size)) for size in grid], [np.ascontiguousarray(x), found])
        np.testing.assert_array_equal(found, expected, err_msg=str(choice))
    return {choice.form for choice in offered}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int64])
def test_elements_of_all_sizes(dtype: type) -> None:
    item = np.dtype(dtype)
    assert "block" in check((2, 48, 80), (0, 2, 1), item)
    assert check((37, 45), (1, 0), item) == {"tile"}


@pytest.mark.parametrize(
    ("shape", "perm", "form"),
    [
        ((2, 3, 16, 24), (0, 2, 3, 1), "narrow"),
        ((2, 16, 24, 3), (0, 3, 1, 2), "narrow"),
        ((1, 3, 5, 7), (0, 2, 3, 1), "narrow"),
        ((1, 5, 7, 3), (0, 3, 1, 2), "narrow"),
        ((2, 7, 7, 64), (0, 3, 1, 2), "block"),
        ((2, 64, 7, 7), (0, 2, 3, 1), "block"),
        ((2, 4, 8, 6, 16), (4, 1, 3, 0, 2), "block"),
        ((3, 24, 5, 8), (3, 1, 2, 0), "tile"),
    ],
)
def test_images_and_heads(shape: Sequence[int], perm: Sequence[int], form: str) -> None:
    assert form in check(shape, perm, np.dtype(np.float16))


def test_sizes_of_a_profile_run_by_one_kernel() -> None:
    n = symbol("n")
    problem = Problem(2, 3, 64, 64, 3, (n,), (192,), (192,))
    (choice,) = transpose_choices(problem)
    assert choice == TransposeChoice("narrow", 3, 8, 32)
    kernel, grid, scalars = generate(problem, choice, {"n": (1, 64)})
    for images in (1, 5):
        x = np.arange(images * 192, dtype=np.uint16).reshape(images, 3, 64)
        y = np.zeros((images, 64, 3), np.uint16)
        sizes = [("i32", evaluate(s.value, {"n": images})) for s in scalars]  # type: ignore[arg-type]
        run_kernel(kernel, [evaluate(size, {"n": images}) for size in grid], [x, y, *sizes])
        np.testing.assert_array_equal(y, x.transpose(0, 2, 1))
    wide = generate(problem, choice)[2]
    assert {item.kind for item in wide} == {"i64"}


def test_blocks_that_do_not_fit_are_refused() -> None:
    problem = Problem(2, 30, 64, 64, 30)
    assert not divides(8, problem.rows)
    with pytest.raises(ValueError, match="not made of such blocks"):
        generate(problem, TransposeChoice("block", 8, 8, 8))
