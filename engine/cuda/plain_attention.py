"""Attention in plain CUDA C: every head size, mask, group and cache; float32 throughout.

A block has a few rows of queries of one head. Tiles of keys and values pass through shared memory
with a running maximum and sum per row (the online softmax of Milakov and Gimelshein, arXiv
1805.02867).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cuda.c_expression import PRELUDE, print_number, storage_type, write_text
from engine.cuda.contraction import read_sum
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.ops.fused_attention import FusedAttention

__all__ = ["plain_attention", "query_rows"]

_THREADS = 128
_SOURCE = """{prelude}
extern "C" __global__ void __launch_bounds__(128, 1) plain_attention({parameters}) {{
    extern __shared__ __align__(16) float memory[];
    float *query = memory, *keys_at = query + {rows} * {size};
    float *values_at = keys_at + {tile} * ({size} + 1), *scores = values_at + {tile} * {size};
    const int t = threadIdx.x, mine = t / {lanes}, lane = t % {lanes};
    const int blocks = (queries + {rows} - 1) / {rows};
    const int first = (int)(blockIdx.x % (unsigned)blocks) * {rows};
    const int rest = (int)(blockIdx.x / (unsigned)blocks);
    const int head = rest % heads, batch = rest / heads, shared_head = head / {group};
    ef_wait();
    q += batch * q_batch + head * q_head;
    k += batch * k_batch + shared_head * k_head;
    v += batch * v_batch + shared_head * v_head;
    y += batch * y_batch + head * y_head;
{mask_base}
    for (int i = t; i < {rows} * {size}; i += 128) {{
        const int row = first + i / {size};
        query[i] = row < queries ? {query} * {scale} : 0.0f;
    }}
    float total[{columns}], most = -INFINITY, sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < {columns}; ++i) total[i] = 0.0f;
    const int offset = {offset}, last = {last};
    for (int start = 0; start < last; start += {tile}) {{
        __syncthreads();
        for (int i = t; i < {tile} * {size}; i += 128) {{
            const int j = i / {size}, d = i % {size}, row = start + j;
            keys_at[j * ({size} + 1) + d] = row < keys ? {key} : 0.0f;
            values_at[i] = row < keys ? {value} : 0.0f;
        }}
        __syncthreads();
        for (int i = t; i < {rows} * {tile}; i += 128) {{
            const int row = first + i / {tile}, j = i % {tile}, at = start + j;
            const float *left = query + i / {tile} * {size}, *right = keys_at + j * ({size} + 1);
            float score = 0.0f;
            #pragma unroll 8
            for (int d = 0; d < {size}; ++d) score = fmaf(left[d], right[d], score);
            const bool seen = row < queries && at < keys{seen};
            scores[i] = seen ? score{mask} : -INFINITY;
        }}
        __syncthreads();
        const float *row_scores = scores + mine * {tile};
        float now = most;
        for (int j = 0; j < {tile}; ++j) now = ef_maximum(now, row_scores[j]);
        // A row that sees nothing yet keeps its zeros; one that never does becomes NaN at the end.
        const float base = now == -INFINITY ? 0.0f : now, scale = expf(most - base);
        sum *= scale;
        #pragma unroll
        for (int i = 0; i < {columns}; ++i) total[i] *= scale;
        for (int j = 0; j < {tile}; ++j) {{
            const float weight = expf(row_scores[j] - base);
            sum += weight;
            #pragma unroll
            for (int i = 0; i < {columns}; ++i) {{
                const int d = lane + i * {lanes};
                if (d < {size}) total[i] = fmaf(weight, values_at[j * {size} + d], total[i]);
            }}
        }}
        most = now;
    }}
    ef_launch_dependents();
    if (first + mine >= queries || mine >= {rows}) return;
    #pragma unroll
    for (int i = 0; i < {columns}; ++i) {{
        const int d = lane + i * {lanes};
        const float result = {some} ? total[i] / sum : 0.0f;
        if (d < {size}) y[(first + mine) * y_row + d] = {result};
    }}
}}
"""


def query_rows(head_size: int) -> int:
    """Rows of queries of one block: a power of two, fewer for long heads."""
    rows = 16
    while rows > 1 and rows * head_size > 4096:
        rows //= 2
    return rows


def plain_attention(op: FusedAttention, dtypes: Sequence[DType]) -> DeviceKernel:
    """The attention that ``op`` means; ``dtypes`` are those of its inputs.

    Parameters are the inputs q, k, v, mask, position as far as there are any, y; heads, queries,
    keys, past (int); the elements between batches, heads and rows of q, k, v, y and the mask
    (long). The grid is blocks of `query_rows` x heads x batches.
    """
    size = op.head_size
    rows = query_rows(size)
    tile, lanes = 2 * rows, _THREADS // rows
    masked = op.mask_place is not None
    placed = op.position_place is not None
    names = ["q", "k", "v", *["mask"][:masked], *["position"][:placed]]
    types = dict(zip(names, dtypes, strict=True))
    pointers = [f"const {storage_type(dtype)} *{name}" for name, dtype in types.items()]
    pointers.append(f"{storage_type(op.dtype)} *y")
    strided = ["q", "k", "v", "y", *["mask"][:masked]]
    parameters = [*pointers, *(f"int {name}" for name in ("heads", "queries", "keys", "past"))]
    parameters += [f"long long {n}_{axis}" for n in strided for axis in ("batch", "head", "row")]
    # Query `row` sees keys up to `offset`, plus its own number when causal.
    position = f" + (int)position[{'batch' if op.position == 'batch' else '0'}]" if placed else ""
    bounded = op.causal or placed
    offset = f"past{position}" if bounded else "keys - 1"
    farthest = f"offset + first + {rows}" if op.causal else "offset + 1"
    seen = f" && at <= offset{' + row' if op.causal else ''}" if bounded else ""
    place = "mask[row * mask_row + at]" if op.mask == "full" else "mask[at]"
    source = _SOURCE.format(
        prelude=PRELUDE,
        parameters=", ".join(parameters),
        rows=rows,
        size=size,
        tile=tile,
        lanes=lanes,
        group=op.group,
        columns=-(-size // lanes),
        scale=print_number(op.scale, DType.FLOAT32),
        query=read_sum(types["q"], f"q[row * q_row + i % {size}]"),
        key=read_sum(types["k"], "k[row * k_row + d]"),
        value=read_sum(types["v"], "v[row * v_row + d]"),
        mask_base="    mask += batch * mask_batch + head * mask_head;" if masked else "",
        mask=" + " + read_sum(types["mask"], place) if masked else "",
        offset=offset,
        seen=seen,
        last=f"min(keys, {farthest})",
        some="sum > 0.0f" if op.guarded else "keys > 0",
        result=write_text(op.dtype, "result"),
    )
    floats = rows * size + tile * (2 * size + 1) + rows * tile
    return DeviceKernel("nvrtc", "plain_attention", source, _THREADS, 4 * floats, waits=True)
