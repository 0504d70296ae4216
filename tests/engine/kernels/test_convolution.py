import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.kernels.blocked import Split, Tile
from engine.kernels.convolution import Convolution, candidates
from engine.kernels.epilogue import standard
from engine.kernels.isa import ISAS
from engine.kernels.packing import pack
from engine.kernels.winograd import Winograd
from engine.kernels.winograd import candidates as winograd_candidates

SEVERAL = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TILES = [Tile(6, 32, 32), Tile(5, 16, 16)]
SPLITS = st.builds(Split, st.integers(1, 3), st.integers(1, 3), st.booleans())
EPILOGUES = [standard(), standard("column", "full", relu=True), standard("row", "scalar")]


def convolve(x, w, stride, dilation, pads, groups):
    """The textbook sum over NHWC input and [N, C, R, S] filters, in double precision."""
    top, left, bottom, right = pads
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    high = (x.shape[1] - (w.shape[2] - 1) * dilation[0] - 1) // stride[0] + 1
    wide = (x.shape[2] - (w.shape[3] - 1) * dilation[1] - 1) // stride[1] + 1
    inputs, outputs = w.shape[1], w.shape[0] // groups
    y = np.zeros((x.shape[0], high, wide, w.shape[0]))
    for r in range(w.shape[2]):
        for s in range(w.shape[3]):
            i, j = r * dilation[0], s * dilation[1]
            part = x[:, i : i + (high - 1) * stride[0] + 1 : stride[0]]
            part = part[:, :, j : j + (wide - 1) * stride[1] + 1 : stride[1]]
            for g in range(groups):
                taps = w[g * outputs : (g + 1) * outputs, :, r, s].T
                rows = part[..., g * inputs : (g + 1) * inputs]
                y[..., g * outputs : (g + 1) * outputs] += rows @ taps
    return y


def operands_of(epilogue, normal, pixels, channels, wide):
    """Epilogue operands, what they are to the truth, and their pixel strides."""
    arrays, values, strides = [], [], []
    for i, kind in enumerate(epilogue.operands):
        shape = {"column": (channels,), "row": (pixels, 1), "full": (pixels, wide), "scalar": (1,)}
        arrays.append(normal(10 + i, *shape[kind]))
        values.append(arrays[-1][..., :channels])
        strides.append({"row": 1, "full": wide}.get(kind, 0))
    return arrays, values, strides


def compare(check, kernel, operands, sizes, truth, epilogue_values, wide, tolerance):
    pixels, channels = truth.reshape(-1, truth.shape[-1]).shape
    y = np.full((pixels, wide), 7, np.float32)
    found = check.agree(kernel, [*operands, y], sizes, tolerance=tolerance)
    whole = y.reshape(-1).copy()
    whole[: found.size] = found
    whole = whole.reshape(pixels, wide)
    sums = truth.reshape(pixels, channels).astype(np.float32)
    expected = kernel.epilogue.evaluate([sums, *epilogue_values])
    np.testing.assert_allclose(whole[:, :channels], expected, rtol=tolerance, atol=tolerance)
    assert (whole[:, channels:] == 7).all()


@SEVERAL
@given(st.data())
def test_any_convolution_equals_the_textbook_and_its_twin(check, normal, data):
    draw = data.draw
    groups, inputs, outputs = (draw(st.integers(1, top)) for top in (3, 21, 40))
    kernel_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 2))) for _ in range(2))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    least = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    images = draw(st.integers(1, 2))
    height, width = (draw(st.integers(size, size + 6)) for size in least)
    planar, spread = draw(st.booleans()), draw(st.integers(0, 5))
    kernel = Convolution(
        draw(st.sampled_from(TILES)),
        draw(st.sampled_from(EPILOGUES)),
    )
    x = normal(1, images, height, width, groups * inputs)
    w = normal(2, groups * outputs, inputs, *kernel_size)
    truth = convolve(x, w, stride, dilation, pads, groups)
    channels, wide = groups * outputs, groups * outputs + spread
    pixels = truth[..., 0].size
    extra, values, strides = operands_of(kernel.epilogue, normal, pixels, channels, wide)
    stored = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if planar else x
    view = np.moveaxis(stored, 1, -1) if planar else stored
    sizes = [
        *draw(SPLITS).sizes,
        *(images, height, width, groups, inputs, outputs, *kernel_size, *truth.shape[1:3]),
        *(*stride, *dilation, pads[0], pads[1]),
        *(step // 4 for step in view.strides),
        wide,
        *strides,
    ]
    packed = pack("filters", w, [kernel.tile.columns, groups])
    compare(check, kernel, [stored, packed, *extra], sizes, truth, values, wide, 2e-4)


@SEVERAL
@given(st.data())
def test_any_winograd_convolution_equals_the_textbook_and_its_twin(check, normal, data):
    draw = data.draw
    groups, inputs, outputs = (draw(st.integers(1, top)) for top in (2, 37, 40))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    height, width, images = (
        draw(st.integers(low, high)) for low, high in ((3, 11), (3, 11), (1, 2))
    )
    spread = draw(st.integers(0, 5))
    kernel = Winograd(
        draw(st.sampled_from(TILES)),
        draw(st.sampled_from([2, 4])),
        draw(st.sampled_from(EPILOGUES)),
    )
    channels = groups * inputs
    x, w = normal(1, images, height, width, channels), normal(2, groups * outputs, inputs, 3, 3)
    truth = convolve(x, w, (1, 1), (1, 1), pads, groups)
    wide, pixels = groups * outputs + spread, truth[..., 0].size
    extra, values, strides = operands_of(kernel.epilogue, normal, pixels, groups * outputs, wide)
    sizes = [
        *draw(SPLITS).sizes,
        *(images, height, width, groups, inputs, outputs, *truth.shape[1:3], pads[0], pads[1]),
        *(height * width * channels, width * channels, channels, wide, *strides),
    ]
    packed = pack("winograd", w, [kernel.tile.columns, kernel.outputs_per_side, groups])
    compare(check, kernel, [x, packed, *extra], sizes, truth, values, wide, 1e-3)


@pytest.mark.parametrize("side", [2, 4])
def test_winograd_loses_little_precision(check, normal, side):
    x, w = normal(1, 1, 24, 24, 128), normal(2, 64, 128, 3, 3)
    truth = convolve(x, w, (1, 1), (1, 1), (1, 1, 1, 1), 1)
    kernel, split = winograd_candidates(36, 64, 128, outputs_per_side=side)[0]
    sizes = [*split.sizes, 1, 24, 24, 1, 128, 64, 24, 24, 1, 1, 24 * 24 * 128, 24 * 128, 128, 64]
    packed = pack("winograd", w, [kernel.tile.columns, side, 1])
    found = check.run(kernel, [x, packed, np.zeros(24 * 24 * 64, np.float32)], sizes)[0]
    error = np.abs(found.reshape(truth.shape) - truth).max() / np.abs(truth).max()
    assert error < 2e-5


@pytest.mark.parametrize("isa", ISAS.values(), ids=lambda isa: isa.name)
def test_candidates_are_few_and_survive_json(isa):
    epilogue = standard("column", relu=True)
    for kernel, _ in [
        *candidates(196, 256, 2304, isa=isa, epilogue=epilogue),
        *winograd_candidates(16, 256, 256, isa=isa, epilogue=epilogue),
        *winograd_candidates(49, 16, 64, isa=isa, outputs_per_side=2),
    ]:
        assert type(kernel).from_json(json.loads(json.dumps(kernel.to_json()))) == kernel
    assert len(candidates(196, 256, 2304, isa=isa)) <= 6
    assert len(winograd_candidates(16, 256, 256, isa=isa)) <= 6


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Convolution, "order", "rows"),
        (Convolution, "columns", 8),
        (Winograd, "outputs_per_side", 3),
        (Winograd, "depth", -1),
        (Winograd, "order", "rows"),
    ],
)
def test_hostile_fields_are_refused_by_name(kind, field, value):
    fields = kind(TILES[0]).to_json() | {field: value}
    with pytest.raises(ValueError, match=field):
        kind.from_json(fields)


def test_blocks_that_would_need_giant_scratch_are_refused():
    kernel = Winograd(Tile(16, 64, 8192))
    sizes = [64, 64, 0, 1, 8, 8, 1, 16, 16, 8, 8, 1, 1, 1024, 128, 16, 16]
    with pytest.raises(ValueError, match="scratch"):
        kernel.extents(sizes)
