"""Matrix products and convolutions in plain CUDA C: every size, stride, group and element type.

The reference on a device: sums are float32, products are exact or rounded once, nothing is split.
A block computes a tile of the result from tiles of both operands in shared memory, each thread a
small square in registers, while the next tiles are on their way (the textbook scheme of Volkov and
Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.cuda.c_expression import PRELUDE, storage_type
from engine.cuda.contraction import SumStore, joined, read_sum
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType

__all__ = ["TILES", "ConvForm", "Tile", "direct_convolution", "tiled_convolution", "tiled_matmul"]


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and depth of a block's tile; each thread has 4 x 4 of it."""

    rows: int
    columns: int
    depth: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.columns // 16


TILES = (Tile(64, 64, 16), Tile(32, 32, 8), Tile(128, 64, 16))


@dataclass(frozen=True, slots=True)
class ConvForm:
    """What a convolution kernel knows at compile time; sizes of the image are parameters.

    ``outputs`` and ``inputs`` are channels per group; ``filter_strides`` are the elements between
    filters, channels, rows and columns of the filters as they lie in memory.
    """

    groups: int
    outputs: int
    inputs: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    filter_strides: tuple[int, int, int, int]

    @property
    def depth(self) -> int:
        """Products in one sum."""
        return self.inputs * self.taps[0] * self.taps[1]


_TILED = """{prelude}
extern "C" __global__ void __launch_bounds__({threads}, 1) {entry}({parameters}) {{
    const int t = threadIdx.x;
{head}
    const int tiles_n = (N + {bn} - 1) / {bn}, tiles_m = (M + {bm} - 1) / {bm};
    const int m0 = (int)(blockIdx.x / (unsigned)tiles_n % (unsigned)tiles_m) * {bm};
    const int n0 = (int)(blockIdx.x % (unsigned)tiles_n) * {bn};
    int z = (int)(blockIdx.x / (unsigned)tiles_n / (unsigned)tiles_m);
    __shared__ __align__(16) float left[{bk}][{bm} + 4];
    __shared__ __align__(16) float right[{bk}][{bn} + 4];
{setup}
    float next_a[{per_a}], next_b[{per_b}];
    auto fetch = [&](int k0) {{
{fetch_a}
{fetch_b}
    }};
    float sums[4][4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        #pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    const int down = t / {across} * 4, over = t % {across} * 4;
    ef_wait();
    fetch(0);
    for (int k0 = 0; k0 < K; k0 += {bk}) {{
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < {per_a}; ++i) left[ak][am + i * {a_step}] = next_a[i];
        #pragma unroll
        for (int i = 0; i < {per_b}; ++i) right[{b_place_k}][{b_place_n}] = next_b[i];
        __syncthreads();
        if (k0 + {bk} < K) fetch(k0 + {bk});
        #pragma unroll
        for (int k = 0; k < {bk}; ++k) {{
            const float4 a4 = *(const float4 *)&left[k][down];
            const float4 b4 = *(const float4 *)&right[k][over];
            const float u[4] = {{a4.x, a4.y, a4.z, a4.w}}, v[4] = {{b4.x, b4.y, b4.z, b4.w}};
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(u[i], v[j], sums[i][j]);
        }}
    }}
    ef_launch_dependents();
    #pragma unroll
    for (int i = 0; i < 4; ++i) {{
        const int m = m0 + down + i;
        if (m >= M) continue;
        const int row = {row};
        #pragma unroll
        for (int j = 0; j < 4; ++j) {{
            const int n = n0 + over + j;
            if (n >= N) continue;
            const int column = {column};
{store}
        }}
    }}
}}
"""


def _tiled(
    entry: str,
    tile: Tile,
    store: SumStore,
    *,
    parameters: list[str],
    head: Sequence[str] = (),
    setup: list[str],
    fetch_a: list[str],
    b_element: str,
    k_first: bool,
    row: str,
    column: str,
) -> DeviceKernel:
    """A kernel from its parts; with ``k_first`` neighbours in memory of B differ by k."""
    threads = tile.threads
    per_b = tile.columns * tile.depth // threads
    if k_first:
        places = [f"const int bk = t % {tile.depth}, bn = t / {tile.depth};"]
        place_k, place_n = "bk", f"bn + i * {threads // tile.depth}"
    else:
        places = [f"const int bk = t / {tile.columns}, bn = t % {tile.columns};"]
        place_k, place_n = f"bk + i * {threads // tile.columns}", "bn"
    places.insert(0, f"const int ak = t % {tile.depth}, am = t / {tile.depth};")
    fetch_b = [
        "#pragma unroll",
        f"for (int i = 0; i < {per_b}; ++i) {{",
        f"    const int k = k0 + {place_k}, n = n0 + {place_n};",
        f"    next_b[i] = k < K && n < N ? {b_element} : 0.0f;",
        "}",
    ]
    source = _TILED.format(
        prelude=PRELUDE,
        threads=threads,
        entry=entry,
        parameters=", ".join(parameters),
        bm=tile.rows,
        bn=tile.columns,
        bk=tile.depth,
        across=tile.columns // 4,
        per_a=tile.rows * tile.depth // threads,
        per_b=per_b,
        a_step=threads // tile.depth,
        b_place_k=place_k,
        b_place_n=place_n,
        head=joined(head, 4),
        setup=joined([*places, *setup], 4),
        fetch_a=joined(fetch_a, 8),
        fetch_b=joined(fetch_b, 8),
        row=row,
        column=column,
        store=joined(store.statements("sums[i][j]", "row", "column"), 12),
    )
    return DeviceKernel("nvrtc", entry, source, threads, waits=True)


def tiled_matmul(
    a: DType, b: DType, store: SumStore, *, transposed: bool, axes: int, tile: Tile
) -> DeviceKernel:
    """A [M, K] times B [K, N], or B [N, K] when ``transposed``, over ``axes`` batch axes.

    Its sizes are M, N, K (int), the elements between rows of A (long), then per batch axis,
    outermost first, its size (int) and the elements between matrices of A and of B (long); then
    the strides of `SumStore`. The grid is tiles of columns x tiles of rows x batches.
    """
    names = [f"size{i}" for i in range(axes)]
    parameters = [
        f"const {storage_type(a)} *a",
        f"const {storage_type(b)} *b",
        *store.pointers(),
        *("int M", "int N", "int K", "long long a_row"),
    ]
    for i, name in enumerate(names):
        parameters += [f"int {name}", f"long long a_step{i}", f"long long b_step{i}"]
    parameters += [f"long long {name}" for name in store.strides()]
    setup = ["const int batch = z;"]
    for i in reversed(range(axes)):
        setup.append(f"a += z % size{i} * a_step{i}; b += z % size{i} * b_step{i}; z /= size{i};")
    fetch_a = [
        "#pragma unroll",
        f"for (int i = 0; i < {tile.rows * tile.depth // tile.threads}; ++i) {{",
        f"    const int k = k0 + ak, m = m0 + am + i * {tile.threads // tile.depth};",
        f"    next_a[i] = k < K && m < M ? {read_sum(a, 'a[m * a_row + k]')} : 0.0f;",
        "}",
    ]
    place = "(long long)n * K + k" if transposed else "(long long)k * N + n"
    return _tiled(
        "plain_matmul",
        tile,
        store,
        parameters=parameters,
        setup=setup,
        fetch_a=fetch_a,
        b_element=read_sum(b, f"b[{place}]"),
        k_first=transposed,
        row="batch * M + m",
        column="n",
    )


_IMAGE = ("height", "width", "out_height", "out_width")
_STEPS = ("a_image", "a_line", "a_pixel", "a_channel")


def _conv_parameters(a: DType, b: DType, store: SumStore) -> list[str]:
    return [
        f"const {storage_type(a)} *a",
        f"const {storage_type(b)} *b",
        *store.pointers(),
        *(f"int {name}" for name in ("M", *_IMAGE)),
        *(f"long long {name}" for name in (*_STEPS, *store.strides())),
    ]


def tiled_convolution(
    a: DType, b: DType, store: SumStore, form: ConvForm, tile: Tile
) -> DeviceKernel:
    """A convolution as a product whose left operand is gathered; rows are pixels of the result.

    Its sizes are M (all pixels), height, width of the input, then of the output (int), the elements
    between images, lines, pixels and channels of the input (long), the strides of `SumStore`. The
    grid is tiles of columns x tiles of rows x groups.
    """
    filters, channels, lines, points = form.filter_strides
    per_a, step = tile.rows * tile.depth // tile.threads, tile.threads // tile.depth
    setup = [
        f"a += (long long)z * {form.inputs} * a_channel;",
        f"b += (long long)z * {form.outputs} * {filters};",
        f"long long first[{per_a}];",
        f"int top[{per_a}], side[{per_a}];",
        "#pragma unroll",
        f"for (int i = 0; i < {per_a}; ++i) {{",
        f"    const int m = m0 + am + i * {step}, line = m / out_width;",
        f"    side[i] = m % out_width * {form.strides[1]} - {form.pads[1]};",
        f"    top[i] = line % out_height * {form.strides[0]} - {form.pads[0]};",
        "    first[i] = line / out_height * a_image;",
        "}",
    ]
    element = read_sum(a, "a[first[i] + y_at * a_line + x_at * a_pixel + c * a_channel]")
    fetch_a = [
        f"const int k = k0 + ak, c = k % {form.inputs}, tap = k / {form.inputs};",
        f"const int r = tap / {form.taps[1]} * {form.dilations[0]};",
        f"const int s = tap % {form.taps[1]} * {form.dilations[1]};",
        "#pragma unroll",
        f"for (int i = 0; i < {per_a}; ++i) {{",
        f"    const int m = m0 + am + i * {step}, y_at = top[i] + r, x_at = side[i] + s;",
        "    const bool inside = k < K && m < M && (unsigned)y_at < (unsigned)height",
        "        && (unsigned)x_at < (unsigned)width;",
        f"    next_a[i] = inside ? {element} : 0.0f;",
        "}",
    ]
    inputs, across = form.inputs, form.taps[1]
    place = f"n * {filters}LL + k % {inputs} * {channels}LL"
    place += f" + k / {inputs} / {across} * {lines}LL + k / {inputs} % {across} * {points}LL"
    return _tiled(
        "plain_convolution",
        tile,
        store,
        parameters=_conv_parameters(a, b, store),
        head=[f"const int N = {form.outputs}, K = {form.depth};"],
        setup=setup,
        fetch_a=fetch_a,
        b_element=read_sum(b, f"b[{place}]"),
        k_first=channels == 1 or inputs == 1,
        row="m",
        column=f"z * {form.outputs} + n",
    )


_DIRECT = """{prelude}
extern "C" __global__ void __launch_bounds__({threads}) plain_direct({parameters}) {{
    ef_wait();
    ef_launch_dependents();
    const long long index = blockIdx.x * {threads}LL + threadIdx.x;
    if (index >= (long long)M * {columns}) return;
    const int column = (int)(index % {columns}), row = (int)(index / {columns});
    const int line = row / out_width;
    const int side = row % out_width * {across} - {left};
    const int top = line % out_height * {down} - {above};
    a += line / out_height * a_image + column / {outputs} * {inputs} * a_channel;
    b += column * {filters}LL;
    float sum = 0.0f;
    for (int r = 0; r < {high}; ++r) {{
        const int y_at = top + r * {dilated_down};
        if ((unsigned)y_at >= (unsigned)height) continue;
        for (int s = 0; s < {wide}; ++s) {{
            const int x_at = side + s * {dilated_across};
            if ((unsigned)x_at >= (unsigned)width) continue;
            #pragma unroll 4
            for (int c = 0; c < {inputs}; ++c)
                sum = fmaf({element}, {tap}, sum);
        }}
    }}
{store}
}}
"""


def direct_convolution(a: DType, b: DType, store: SumStore, form: ConvForm) -> DeviceKernel:
    """A convolution with a thread per element of the result: for few channels per group.

    Sizes are those of `tiled_convolution`; the grid is blocks of 256 elements.
    """
    filters, channels, lines, points = form.filter_strides
    source = _DIRECT.format(
        prelude=PRELUDE,
        threads=256,
        parameters=", ".join(_conv_parameters(a, b, store)),
        columns=form.outputs * form.groups,
        outputs=form.outputs,
        inputs=form.inputs,
        filters=filters,
        down=form.strides[0],
        across=form.strides[1],
        above=form.pads[0],
        left=form.pads[1],
        high=form.taps[0],
        wide=form.taps[1],
        dilated_down=form.dilations[0],
        dilated_across=form.dilations[1],
        element=read_sum(a, "a[y_at * a_line + x_at * a_pixel + c * a_channel]"),
        tap=read_sum(b, f"b[c * {channels}LL + r * {lines}LL + s * {points}LL]"),
        store=joined(store.statements("sum", "row", "column"), 4),
    )
    return DeviceKernel("nvrtc", "plain_direct", source, 256, waits=True)
