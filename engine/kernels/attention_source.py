"""C text of the attention kernel.

The lanes of all vectors are queries: a block of queries is transposed once into scratch, scores are
kept as [key][query], so that the softmax needs no sums across lanes, and neither keys nor values
are packed. Keys pass in blocks with a running maximum and sum (the online softmax of Milakov and
Gimelshein, arXiv 1805.02867, as FlashAttention uses it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kernels.c_expression import PRELUDE
from engine.kernels.isa import Isa

if TYPE_CHECKING:
    from engine.kernels.attention import Attention

__all__ = ["print_attention"]

_TYPES = r"""
typedef float vector __attribute__((vector_size({bytes}), aligned(4), may_alias));
EF_FUNCTION vector ef_load(const float *p) {{ return *(const vector *)p; }}
EF_FUNCTION void ef_store(float *p, vector v) {{ *(vector *)p = v; }}
EF_FUNCTION vector ef_all(float x) {{ return x - (vector){{}}; }}
"""


def _scores(kernel: Attention, isa: Isa) -> str:
    """s[key][query] = sum over d of k[key][d] qt[d][query] for a few keys and a few vectors."""
    width = isa.vector_floats
    vectors = min(2, kernel.query_block // width)
    rows = _score_rows(isa)
    lines = [
        "EF_FUNCTION void ef_scores(const float *k, int64_t stride, int64_t count,",
        "    const float *qt, float *s) {",
    ]
    # Rows past the last key repeat it; their scores are never read.
    for row in range(rows):
        lines.append(f"const float *k{row} = k + ({row} < count ? {row} : count - 1) * stride;")
    lines += [f"vector a{r}_{v} = {{}};" for r in range(rows) for v in range(vectors)]
    lines.append(f"for (int d = 0; d < {kernel.head_size}; ++d) {{")
    for v in range(vectors):
        lines.append(f"vector q{v} = ef_load(qt + d * {kernel.query_block} + {v * width});")
    for row in range(rows):
        lines += [f"a{row}_{v} += q{v} * k{row}[d];" for v in range(vectors)]
    lines.append("}")
    for row in range(rows):
        for v in range(vectors):
            place = row * kernel.query_block + v * width
            lines.append(f"ef_store(s + {place}, a{row}_{v});")
    return "\n".join([*lines, "}"])


def _score_rows(isa: Isa) -> int:
    return 12 if isa.registers >= 32 else 6


def _columns(kernel: Attention, isa: Isa) -> list[list[tuple[int, int]]]:
    """The head's elements as groups of vectors: (first element, how many)."""
    width = isa.vector_floats
    parts = [(d, min(width, kernel.head_size - d)) for d in range(0, kernel.head_size, width)]
    group = 4 if isa.registers >= 32 else 2
    return [parts[start : start + group] for start in range(0, len(parts), group)]


def _values(kernel: Attention, isa: Isa) -> str:
    """o[query][d] = o alpha[query] + sum over keys of p[key][query] v[key][d], four queries."""
    lines = [
        "EF_FUNCTION void ef_values(const float *p, int64_t count, const float *v,",
        "    int64_t stride, const float *alpha, float *o) {",
    ]
    padded = padded_head(kernel, isa)
    for group in _columns(kernel, isa):
        lines.append("{")
        rows = 4 if len(group) > 2 or isa.registers < 32 else 8
        lines.append(f"for (int i = 0; i < {kernel.query_block}; i += {rows}) {{")
        for row in range(rows):
            for place, (start, _) in enumerate(group):
                source = f"o + (i + {row}) * {padded} + {start}"
                lines.append(f"vector a{row}_{place} = ef_load({source}) * alpha[i + {row}];")
        lines.append("for (int64_t j = 0; j < count; ++j) {")
        lines.append(f"const float *row = v + j * stride, *w = p + j * {kernel.query_block} + i;")
        for place, (start, size) in enumerate(group):
            if size == isa.vector_floats:
                lines.append(f"vector b{place} = ef_load(row + {start});")
            else:
                lines.append(f"vector b{place} = {{}};")
                lines.append(f"memcpy(&b{place}, row + {start}, {size * 4});")
        for row in range(rows):
            lines += [f"a{row}_{place} += b{place} * w[{row}];" for place in range(len(group))]
        lines.append("}")
        for row in range(rows):
            for place, (start, _) in enumerate(group):
                lines.append(f"ef_store(o + (i + {row}) * {padded} + {start}, a{row}_{place});")
        lines.append("}}")
    return "\n".join([*lines, "}"])


def padded_head(kernel: Attention, isa: Isa) -> int:
    """Elements of a scratch row of the output."""
    return -(-kernel.head_size // isa.vector_floats) * isa.vector_floats


def _mask(kernel: Attention) -> str:
    """Statements that add the mask to the scores of key j (row t)."""
    lines = []
    if kernel.mask == "key":
        lines.append("const float add = mask[j];")
        lines.append("for (int l = 0; l < LANES; ++l) t[l] += add;")
    if kernel.mask == "full":
        lines.append("for (int l = 0; l < lanes; ++l) t[l] += mask[l * m_row + j];")
    if kernel.causal:
        lines.append("if (j > first + past)")
        lines.append("  for (int l = 0; l < LANES; ++l)")
        lines.append("    t[l] = j <= first + l + past ? t[l] : -INFINITY;")
    return "\n      ".join(lines)


_BODY = r"""
void @NAME@(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
  enum { LANES = @LANES@, HEAD = @HEAD@, PADDED = @PADDED@, BLOCK = @BLOCK@, ROWS = @ROWS@ };
  const int64_t heads = size[1], group = size[2], queries = size[3], keys = size[4];
  const int64_t past = size[5];
  const int64_t *z = size + 6;
  const int64_t q_batch = z[0], q_head = z[1], q_row = z[2], k_batch = z[3], k_head = z[4];
  const int64_t k_row = z[5], v_batch = z[6], v_head = z[7], v_row = z[8], o_batch = z[9];
  const int64_t o_head = z[10], o_row = z[11], m_batch = z[12], m_head = z[13], m_row = z[14];
  const int64_t blocks = (queries + LANES - 1) / LANES;
  float *const qt = (float *)scratch, *const s = qt + HEAD * LANES;
  float *const o = s + (BLOCK + ROWS) * LANES, *const high = o + LANES * PADDED;
  float *const sum = high + LANES, *const alpha = sum + LANES;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % blocks * LANES, head = item / blocks % heads;
    const int64_t batch = item / blocks / heads, left = queries - first;
    const int lanes = left < LANES ? (int)left : LANES;
    const float *q = (const float *)pointer[0] + batch * q_batch + head * q_head + first * q_row;
    const float *k = (const float *)pointer[1] + batch * k_batch + head / group * k_head;
    const float *v = (const float *)pointer[2] + batch * v_batch + head / group * v_head;
    @MASK_POINTER@
    float *out = (float *)pointer[@OUTPUT@] + batch * o_batch + head * o_head + first * o_row;
    for (int l = 0; l < LANES; ++l) {
      const float *row = q + (l < lanes ? l : 0) * q_row;
      for (int d = 0; d < HEAD; ++d) qt[d * LANES + l] = row[d] * @SCALE@;
      high[l] = -INFINITY;
      sum[l] = 0.0f;
    }
    for (int l = 0; l < LANES * PADDED; ++l) o[l] = 0.0f;
    int64_t limit = keys;
    @LIMIT@
    for (int64_t from = 0; from < limit; from += BLOCK) {
      const int64_t to = from + BLOCK < limit ? from + BLOCK : limit;
      for (int64_t j = from; j < to; j += ROWS)
        for (int l = 0; l < LANES; l += @STEP@)
          ef_scores(k + j * k_row, k_row, to - j, qt + l, s + (j - from) * LANES + l);
      float top[LANES], add_up[LANES];
      for (int l = 0; l < LANES; ++l) top[l] = high[l];
      for (int64_t j = from; j < to; ++j) {
        float *t = s + (j - from) * LANES;
        @MASK@
        for (int l = 0; l < LANES; ++l) top[l] = ef_maximum(t[l], top[l]);
      }
      for (int l = 0; l < LANES; ++l) {
        const float shift = top[l] == -INFINITY ? 0.0f : top[l];
        alpha[l] = ef_exp(high[l] - shift);
        high[l] = top[l];
        top[l] = shift;
        add_up[l] = sum[l] * alpha[l];
      }
      for (int64_t j = from; j < to; ++j) {
        float *t = s + (j - from) * LANES;
        for (int l = 0; l < LANES; ++l) {
          const float e = ef_exp(t[l] - top[l]);
          t[l] = e;
          add_up[l] += e;
        }
      }
      for (int l = 0; l < LANES; ++l) sum[l] = add_up[l];
      ef_values(s, to - from, v + from * v_row, v_row, alpha, o);
    }
    for (int l = 0; l < lanes; ++l) {
      const float inverse = @INVERSE@;
      for (int d = 0; d < HEAD; ++d) out[l * o_row + d] = o[l * PADDED + d] * inverse;
    }
  }
}
"""


def print_attention(kernel: Attention, name: str, isa: Isa) -> str:
    """The C file of an attention kernel."""
    masked = kernel.mask != "none"
    pointer = "const float *mask = (const float *)pointer[3] + batch * m_batch + head * m_head"
    pointer += " + first * m_row;" if kernel.mask == "full" else ";"
    limit = "limit = first + lanes + past < keys ? first + lanes + past : keys;"
    values = {
        "NAME": name,
        "LANES": str(kernel.query_block),
        "HEAD": str(kernel.head_size),
        "PADDED": str(padded_head(kernel, isa)),
        "BLOCK": str(kernel.key_block),
        "ROWS": str(_score_rows(isa)),
        "STEP": str(min(2, kernel.query_block // isa.vector_floats) * isa.vector_floats),
        "OUTPUT": "4" if masked else "3",
        "SCALE": f"({float(kernel.scale).hex()}f)",
        "MASK_POINTER": pointer if masked else "",
        "MASK": _mask(kernel),
        "LIMIT": limit if kernel.causal else "",
        "INVERSE": "sum[l] == 0.0f ? 0.0f : 1.0f / sum[l]" if kernel.guarded else "1.0f / sum[l]",
    }
    body = _BODY
    for key, value in values.items():
        body = body.replace(f"@{key}@", value)
    types = _TYPES.format(bytes=isa.vector_floats * 4)
    return "\n".join([PRELUDE, types, _scores(kernel, isa), _values(kernel, isa), body])
