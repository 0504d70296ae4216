import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.kernels.blocked import Split, Tile
from engine.kernels.epilogue import Epilogue, standard
from engine.kernels.gemm import Gemm, candidates
from engine.kernels.isa import ISAS
from engine.kernels.kernel import KERNELS
from engine.kernels.packing import pack

SEVERAL = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TILES = [Tile(6, 32, 32), Tile(5, 16, 16), Tile(1, 64, 64)]
SPLITS = st.builds(Split, st.integers(1, 3), st.integers(1, 3), st.booleans())
ONE = Split(1, 1)
EPILOGUES = [standard(), standard("column", "full", relu=True), standard("row", "scalar")]


def sizes_of(kernel, outer, inner, m, n, k, *, spread=0, shared=False, split=ONE):
    """Dense sizes; rows `spread` apart from dense ones, B shared by the batch when asked."""
    a, b, c = k + spread, n + spread, n + spread
    sizes = dict.fromkeys(kernel.size_names, 0)
    sizes.update(split.to_json(), outer=outer, inner=inner, m=m, n=n, k=k)
    sizes.update(a_outer=inner * m * a, a_inner=m * a, a_row=a, a_column=1)
    packed = -(-n // kernel.tile.columns) * kernel.tile.columns * k
    matrix = packed if kernel.packed else k * b
    if not shared:
        sizes.update(b_outer=inner * matrix, b_inner=matrix)
    sizes.update(b_row=b, b_column=1)
    sizes.update(c_outer=inner * m * c, c_inner=m * c, c_row=c)
    for i, kind in enumerate(kernel.epilogue.operands, 1):
        if kind == "full":
            sizes.update({f"e{i}_outer": inner * m * c, f"e{i}_inner": m * c, f"e{i}_row": c})
        if kind == "row":
            sizes[f"e{i}_row"] = 1
    return [sizes[name] for name in kernel.size_names]


def expected(kernel, a, b, extra):
    return kernel.epilogue.evaluate([a @ b, *extra])


@SEVERAL
@given(
    st.sampled_from(TILES),
    st.sampled_from(EPILOGUES),
    st.booleans(),
    SPLITS,
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 5),
    st.booleans(),
)
def test_any_product_equals_numpy_and_its_twin(
    check, normal, tile, epilogue, packed, split, batch, shape, spread, shared
):
    kernel = Gemm(tile, epilogue, packed)
    (outer, inner), (m, n, k) = batch, shape
    wide = n + spread
    a = normal(1, outer, inner, m, k + spread)
    b = normal(2, *((1, 1) if shared else batch), k, n if packed else wide)
    extra, views = [], []
    for i, kind in enumerate(epilogue.operands):
        count = {"column": (n,), "row": (m, 1), "full": (outer, inner, m, wide), "scalar": (1,)}
        extra.append(normal(3 + i, *count[kind]))
        views.append(extra[-1][..., :n])
    stored = pack("columns", b, [tile.columns]) if packed else b
    c = np.full((outer, inner, m, wide), 7, np.float32)
    sizes = sizes_of(kernel, outer, inner, m, n, k, spread=spread, shared=shared, split=split)
    found = check.agree(kernel, [a, stored, *extra, c], sizes)
    whole = c.copy().reshape(-1)
    whole[: found.size] = found
    whole = whole.reshape(c.shape)
    truth = expected(kernel, a[..., :k], b[..., :n], views)
    np.testing.assert_allclose(whole[..., :n], truth, rtol=1e-4, atol=1e-4)
    assert (whole[..., n:] == 7).all()


@pytest.mark.parametrize("column", [1, 9])
def test_transposed_operands_are_packed_on_the_fly(check, normal, column):
    kernel = Gemm(Tile(6, 16, 16), standard(), packed=False)
    m, n, k = 19, 37, 41
    a, b = normal(1, k, m), normal(2, n, k * column)
    sizes = dict(zip(kernel.size_names, sizes_of(kernel, 1, 1, m, n, k), strict=True))
    sizes.update(a_row=1, a_column=m, b_row=column, b_column=k * column)
    found = check.agree(kernel, [a, b, np.zeros((m, n), np.float32)], list(sizes.values()))
    truth = a.T @ b[:, ::column].T
    np.testing.assert_allclose(found.reshape(m, n), truth, rtol=1e-4, atol=1e-4)


def test_a_product_over_nothing_is_the_epilogue_of_zero(check, normal):
    kernel = Gemm(TILES[0], standard("column"))
    bias = normal(1, 5)
    sizes = sizes_of(kernel, 1, 1, 3, 5, 0)
    empty = np.zeros(0, np.float32)
    found = check.agree(kernel, [empty, empty, bias, np.zeros((3, 5), np.float32)], sizes)
    np.testing.assert_array_equal(found.reshape(3, 5), np.broadcast_to(bias, (3, 5)))


def test_empty_outputs_have_no_items_and_touch_nothing(check):
    kernel = Gemm(TILES[0])
    sizes = sizes_of(kernel, 1, 1, 0, 5, 4)
    assert kernel.items(sizes) == 0
    assert kernel.extents(sizes) == (0, 0, 0)


def test_not_a_number_reaches_the_output_through_relu(check, normal):
    kernel = Gemm(TILES[0], standard(relu=True))
    a, b = normal(1, 4, 8), normal(2, 8, 32)
    a[2, 3] = np.nan
    stored = pack("columns", b, [32])
    found = check.run(
        kernel, [a, stored, np.zeros((4, 32), np.float32)], sizes_of(kernel, 1, 1, 4, 32, 8)
    )[0].reshape(4, 32)
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 1, 3]]).all()


@pytest.mark.parametrize("isa", ISAS.values(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("m", [1, 49, 128])
def test_candidates_are_few_distinct_and_survive_json(isa, m):
    found = candidates(m, 768, 768, isa=isa, epilogue=standard("column", relu=True))
    assert 1 <= len(found) <= 6
    assert len(set(found)) == len(found)
    for kernel, split in found:
        assert kernel.items(sizes_of(kernel, 1, 1, m, 768, 768, split=split)) >= 1
        fields = json.loads(json.dumps(kernel.to_json()))
        assert KERNELS["gemm"].from_json(fields) == kernel
        assert "kernel(" in kernel.source("kernel", isa)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 0),
        ("rows", 17),
        ("rows", True),
        ("columns", 24),
        ("depth", 1 << 40),
        ("packed", 1),
        ("epilogue", None),
        ("epilogue", {"expression": [], "operands": []}),
        ("epilogue", {**standard().to_json(), "operands": ["everything"]}),
        ("surprise", 1),
    ],
)
def test_hostile_fields_are_refused_by_name(field, value):
    fields = Gemm(TILES[0]).to_json() | {field: value}
    with pytest.raises(ValueError, match=r"field|expression"):
        Gemm.from_json(fields)


def test_an_epilogue_may_not_load_beyond_its_operands():
    fields = standard("column").to_json() | {"operands": []}
    with pytest.raises(ValueError, match="expression"):
        Epilogue.from_json(fields)


def test_wrong_counts_and_negative_sizes_are_refused():
    kernel = Gemm(TILES[0])
    with pytest.raises(ValueError, match="found 3 sizes"):
        kernel.extents([1, 2, 3])
    sizes = sizes_of(kernel, 1, 1, 3, 5, 2)
    sizes[kernel.size_names.index("m")] = -3
    with pytest.raises(ValueError, match="size m"):
        kernel.extents(sizes)


@pytest.mark.parametrize(
    ("name", "value"), [("row_tiles", 0), ("column_tiles", 65), ("by_columns", 2)]
)
def test_a_hostile_split_is_refused_by_name(name, value):
    kernel = Gemm(TILES[0])
    sizes = sizes_of(kernel, 1, 1, 3, 5, 2)
    sizes[kernel.size_names.index(name)] = value
    for question in (kernel.extents, kernel.items, kernel.scratch_nbytes):
        with pytest.raises(ValueError, match=name):
            question(sizes)
