/* The parts of a training step that are no matrix product of whole batches, for one core.
 *
 * Compiled on first use by native.py, once with activations in fp32 and once (-DBF16) in bf16; sums are always fp32.
 * Arrays are dense and row-major. Vectors are GCC's generic ones, so the same source serves AVX2, AVX-512 and NEON.
 * Nothing here may assume that numbers are finite: a run that diverges must show it. What Python calls returns 0; 1
 * where there is no memory for scratch space; 2 where a target is no token.
 *
 * Trade-offs: one thread, because a fleet runs one process per core; attention holds one block of rows of the scores as
 * a whole (no running softmax), which is simpler and exact, and fits a cache up to contexts of some thousand tokens.
 */
#include "vectors.h"

#ifdef BF16
typedef uint16_t act;
typedef uint16_t hvec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#ifdef __AVX512BF16__
#define PAIRS /* products of bf16 by the processor's own instruction, two at a time */
static inline uvec widened(const act *p) { return (uvec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline void vstore(act *p, vec value) { *(hvec *)p = (hvec)_mm512_cvtneps_pbh((__m512)value); }
#else
static inline uvec widened(const act *p) { return __builtin_convertvector(*(const hvec *)p, uvec); }
static inline void vstore(act *p, vec value) {
    uvec bits = (uvec)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    uvec nan = (uvec)(value != value);
    *(hvec *)p = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), hvec);
}
#endif
static inline vec vload(const act *p) { return (vec)(widened(p) << 16); }
static inline float load(const act *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline act store(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return value != value ? 0x7fc0 : (act)rounded;
}
#else
typedef float act;
static inline vec vload(const act *p) { return *(const vec *)p; }
static inline void vstore(act *p, vec value) { *(vec *)p = value; }
static inline float load(const act *p) { return *p; }
static inline act store(float value) { return value; }
#endif

#define MR (LANES / 2) /* rows of a register tile; with two vectors across, its sums fill half of the registers */
#define NR (2 * LANES) /* columns of a register tile */
#define BLOCK 32       /* query rows whose scores are held at once; a multiple of MR */

/* What attention multiplies: `num`, of which a `part` holds STEP, so many that lie one behind the other in the sum. */
#ifdef PAIRS
#define STEP 2
typedef act num;
typedef uint32_t part __attribute__((may_alias)); /* two neighbours in an array of num */
#else
#define STEP 1
typedef float num;
typedef float part;
#endif

static float *room(size_t floats) {
    return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
}

/* ---- RMSNorm behind the residual sum ------------------------------------------------------------------------- */

/* sum[r] = x[r] + delta[r] (delta may be absent), y[r] = sum[r] / rms(sum[r]) * gain; rows of `width`.
 * `group` rows share a gain; scale[r] keeps 1 / rms. */
int add_norm(long rows, long width, long group, float eps, const float *x, const act *delta, const float *gains,
              float *sum, act *y, float *scale) {
    for (long r = 0; r < rows; r++) {
        const float *gain = gains + r / group * width, *in = x + r * width;
        float *s = sum + r * width;
        act *out = y + r * width;
        float squares = 0;
        const act *d = delta ? delta + r * width : 0;
        for (int i = 0; i < width; i++) s[i] = d ? in[i] + load(d + i) : in[i];
        for (int i = 0; i < width; i++) squares += s[i] * s[i];
        float factor = scale[r] = 1.0f / sqrtf(squares / width + eps);
        for (int i = 0; i < width; i++) out[i] = store(s[i] * factor * gain[i]);
    }
    return 0;
}

/* Gradient of add_norm: into the sum (and so into x and delta alike, `half` being delta's copy where its type is
 * another), and added to the gains' (fp32). `direct` is the gradient that reaches the sum on the residual path. */
int add_norm_back(long rows, long width, long group, const float *sum, const float *scale, const float *gains,
                   const float *direct, const act *grad, float *grad_sum, act *half, float *grad_gains) {
    for (long r = 0; r < rows; r++) {
        const float *gain = gains + r / group * width, *s = sum + r * width;
        const act *g = grad + r * width;
        float *out = grad_sum + r * width, *gg = grad_gains + r / group * width, factor = scale[r], dot = 0;
        for (int i = 0; i < width; i++) dot += load(g + i) * gain[i] * s[i];
        dot *= factor * factor * factor / width;
        for (int i = 0; i < width; i++) gg[i] += load(g + i) * s[i] * factor;
        if (direct) {
            const float *d = direct + r * width;
            for (int i = 0; i < width; i++) out[i] = load(g + i) * gain[i] * factor - s[i] * dot + d[i];
        } else {
            for (int i = 0; i < width; i++) out[i] = load(g + i) * gain[i] * factor - s[i] * dot;
        }
        if (half)
            for (int i = 0; i < width; i++) half[r * width + i] = store(out[i]);
    }
    return 0;
}

/* ---- SwiGLU -------------------------------------------------------------------------------------------------- */

static void gated(const act *gate, const act *up_, act *out) {
    vec g = vload(gate), u = vload(up_);
    vstore(out, g * sigmoid(g) * u);
}

/* out[r, i] = silu(in[r, i]) * in[r, width + i] */
int swiglu(long size, const act *gate, const act *linear, act *out) {
    long i = 0;
    for (; i + LANES <= size; i += LANES) gated(gate + i, linear + i, out + i);
    if (i < size) {
        act a[LANES] = {0}, b[LANES] = {0}, c[LANES];
        memcpy(a, gate + i, (size - i) * sizeof(act));
        memcpy(b, linear + i, (size - i) * sizeof(act));
        gated(a, b, c);
        memcpy(out + i, c, (size - i) * sizeof(act));
    }
    return 0;
}

static void gated_back(const act *gate, const act *linear, const act *grad, act *grad_gate, act *grad_linear) {
    vec g = vload(gate), u = vload(linear), d = vload(grad);
    vec s = sigmoid(g);
    vstore(grad_linear, d * g * s);
    vstore(grad_gate, d * u * s * (1.0f + g * (1.0f - s)));
}

int swiglu_back(long size, const act *gate, const act *linear, const act *grad, act *grad_gate, act *grad_linear) {
    long i = 0;
    for (; i + LANES <= size; i += LANES) gated_back(gate + i, linear + i, grad + i, grad_gate + i, grad_linear + i);
    if (i < size) {
        act a[LANES] = {0}, b[LANES] = {0}, c[LANES] = {0}, ga[LANES], gb[LANES];
        size_t bytes = (size - i) * sizeof(act);
        memcpy(a, gate + i, bytes);
        memcpy(b, linear + i, bytes);
        memcpy(c, grad + i, bytes);
        gated_back(a, b, c, ga, gb);
        memcpy(grad_gate + i, ga, bytes);
        memcpy(grad_linear + i, gb, bytes);
    }
    return 0;
}

/* sum[i] += x[i] */
int add_into(long size, const act *x, float *sum) {
    long i = 0;
    for (; i + LANES <= size; i += LANES) *(vec *)(sum + i) += vload(x + i);
    for (; i < size; i++) sum[i] += load(x + i);
    return 0;
}

/* ---- Cross entropy ------------------------------------------------------------------------------------------- */

/* Adds to sums[0] the cross entropy of each row of logits and to sums[1] the squared log of its partition function,
 * each times the row's weight (1 where `weights` is absent); with `gradient` the logits become the gradient of
 * sums[0] + z sums[1]: weight (p (1 + 2 z log Z) - 1[target]). A row of weight 0 is left out, whatever its target. */
int cross_entropy(long rows, long width, act *logits, const int64_t *targets, const float *weights, float z,
                  long gradient, double *sums) {
    float *e = room(up(width, LANES));
    if (!e) return 1;
    for (long r = 0; r < rows; r++) {
        act *row = logits + r * width;
        float weight = weights ? weights[r] : 1.0f;
        if (weight == 0) {
            if (gradient) memset(row, 0, width * sizeof(act));
            continue;
        }
        if (targets[r] < 0 || targets[r] >= width) {
            free(e);
            return 2;
        }
        float total = 0, wanted = load(row + targets[r]);
        for (int i = 0; i < width; i++) e[i] = load(row + i);
        for (int i = width; i < up(width, LANES); i++) e[i] = -INFINITY;
        vec top = *(vec *)e, sum = {0};
        for (int i = LANES; i < width; i += LANES) top = vmax(top, *(vec *)(e + i));
        float most = largest(top);
        for (int i = 0; i < width; i += LANES) {
            vec p = vexp(*(vec *)(e + i) - most);
            *(vec *)(e + i) = p;
            sum += p;
        }
        for (int i = width; i < up(width, LANES); i++) total -= e[i];
        total += vsum(sum);
        float log_z = most + logf(total);
        sums[0] += weight * (double)(log_z - wanted);
        sums[1] += weight * (double)log_z * log_z;
        if (!gradient) continue;
        float factor = weight * (1.0f + 2.0f * z * log_z) / total;
        for (int i = 0; i < width; i++) row[i] = store(e[i] * factor);
        row[targets[r]] = store(e[targets[r]] * factor - weight);
    }
    free(e);
    return 0;
}

/* ---- Attention ----------------------------------------------------------------------------------------------- */

static inline num as_num(float x) {
#ifdef PAIRS
    return store(x);
#else
    return x;
#endif
}

static inline void put(num *p, vec x) {
#ifdef PAIRS
    vstore(p, x);
#else
    *(vec *)p = x;
#endif
}

static inline vec fma_parts(vec sum, part a, const part *b) {
#ifdef PAIRS
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
#else
    return sum + a * *(const vec *)b;
#endif
}

/* c[MR, NR] (+)= sum over k in [from, to) of a(r, k) * b[k, :], where a(r, k) = a[r * ar + k * ak]; k counts parts. */
static inline void tile(int from, int to, const part *a, long ar, long ak, const part *b, long ldb, float *c,
                        long ldc, int add) {
    vec s[MR][2];
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < 2; j++) s[r][j] = add ? *(vec *)(c + r * ldc + j * LANES) : (vec){0};
#pragma GCC unroll 4
    for (long k = from; k < to; k++)
        for (int r = 0; r < MR; r++) {
            part x = a[r * ar + k * ak];
            s[r][0] = fma_parts(s[r][0], x, b + k * ldb);
            s[r][1] = fma_parts(s[r][1], x, b + k * ldb + LANES);
        }
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < 2; j++) *(vec *)(c + r * ldc + j * LANES) = s[r][j];
}

/* Where the numbers of a head lie and how large they are; dense scratch is padded with zeros to whole tiles. */
typedef struct {
    int length, dim, rows, width, columns; /* rows, columns: length padded to MR, NR; width: dim padded to NR */
    const float *cos, *sin;
    const int64_t *starts; /* of each row its document's first row, growing; absent where all is one document */
    float eps;
} shape;

/* The first key that query row r sees; that of the last row for those that only fill up a tile. */
static inline int begin(const shape *s, int r) {
    return s->starts ? (int)s->starts[r < s->length ? r : s->length - 1] : 0;
}

/* Rows of a head lie far apart, one or two lines of the cache each: what comes AHEAD rows later is asked for now. */
#define AHEAD 12
static inline void fetch(const act *row, int size, long stride) {
    const char *p = (const char *)(row + AHEAD * stride);
    for (int i = 0; i < size * (int)sizeof(act); i += 64) __builtin_prefetch(p + i);
}

static void put_out(int size, const float *x, float factor, act *out) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) vstore(out + i, *(vec *)(x + i) * factor);
    for (; i < size; i++) out[i] = store(x[i] * factor);
}

/* dst[t] = (normalised and) rotated src[t] times factor; `rms` keeps 1 / rms of each row where there is a gain. */
static void turn_in(const shape *s, const act *restrict src, long stride, const float *gain, float factor,
                    num *restrict dst, float *rms) {
    int length = s->length, dim = s->dim, half = dim / 2, width = s->width;
    for (int t = 0; t < length; t++) {
        const act *x = src + t * stride;
        const float *c = s->cos + (long)t * dim, *n = s->sin + (long)t * half;
        float z[dim];
        num *y = dst + (long)t * width;
        int i = 0;
        fetch(x, dim, stride);
        for (; i + LANES <= dim; i += LANES) *(vec *)(z + i) = vload(x + i) * factor;
        for (; i < dim; i++) z[i] = load(x + i) * factor;
        if (gain) {
            float squares = 0;
            for (int i = 0; i < dim; i++) squares += load(x + i) * load(x + i);
            rms[t] = 1.0f / sqrtf(squares / dim + s->eps);
            for (int i = 0; i < dim; i++) z[i] *= rms[t] * gain[i];
        }
        for (i = 0; i + LANES <= half; i += LANES) {
            vec a = *(vec *)(z + i), e = *(vec *)(z + i + half), by = *(vec *)(c + i), with = *(vec *)(n + i);
            put(y + i, a * by - e * with);
            put(y + i + half, e * by + a * with);
        }
        for (; i < half; i++) {
            y[i] = as_num(z[i] * c[i] - z[i + half] * n[i]);
            y[i + half] = as_num(z[i + half] * c[i] + z[i] * n[i]);
        }
    }
}

/* The gradient of turn_in: grad[t] (in place of y) back to dst[t] in the activations' type. */
static void turn_back(const shape *s, const float *grad, float factor, const act *src, long stride, const float *gain,
                      const float *rms, float *grad_gain, act *dst) {
    int half = s->dim / 2;
    for (int t = 0; t < s->length; t++) {
        const float *g = grad + (long)t * s->width, *c = s->cos + (long)t * s->dim, *n = s->sin + (long)t * half;
        float z[s->dim];
        for (int i = 0; i < half; i++) {
            z[i] = (g[i] * c[i] + g[i + half] * n[i]) * factor;
            z[i + half] = (g[i + half] * c[i] - g[i] * n[i]) * factor;
        }
        act *out = dst + t * stride;
        if (gain) {
            const act *x = src + t * stride;
            float dot = 0;
            for (int i = 0; i < s->dim; i++) dot += z[i] * gain[i] * load(x + i);
            dot *= rms[t] * rms[t] * rms[t] / s->dim;
            for (int i = 0; i < s->dim; i++) {
                grad_gain[i] += z[i] * load(x + i) * rms[t];
                z[i] = z[i] * gain[i] * rms[t] - load(x + i) * dot;
            }
        }
        put_out(s->dim, z, 1, out);
    }
}

static void copy_in(const shape *s, const act *restrict src, long stride, num *restrict dst) {
    for (int t = 0; t < s->length; t++) {
        const act *x = src + t * stride;
        num *y = dst + (long)t * s->width;
        int i = 0;
        fetch(x, s->dim, stride);
        for (; i + LANES <= s->dim; i += LANES) put(y + i, vload(x + i));
        for (; i < s->dim; i++) y[i] = as_num(load(x + i));
    }
}

/* dst[i, t] = part i of row t of src */
static void transpose(const shape *s, const num *restrict src, part *restrict dst) {
    int length = s->length, parts = up(s->dim, STEP) / STEP, width = s->width / STEP, columns = s->columns;
    const part *from = (const part *)src;
    for (int t = 0; t < length; t += LANES) /* by columns of one vector, so that what is read stays near */
        for (int i = 0; i < parts; i++)
            for (int r = t; r < t + LANES && r < length; r++) dst[(long)i * columns + r] = from[(long)r * width + i];
}

/* Rows of `width` numbers as parts of STEP rows each: part c of row r of the result has column c of rows r * STEP and
 * what follows. Where a part is one number that is what they are already, and the result is `src`. */
static const part *weave(const num *src, int rows, int width, part *dst) {
#ifdef PAIRS
    for (int r = 0; r < rows; r += 2)
        for (int c = 0; c < width; c += LANES) {
            const num *at = src + (long)r * width + c;
            *(uvec *)(dst + (long)r / 2 * width + c) = widened(at) | widened(at + width) << 16;
        }
    return dst;
#else
    return src;
#endif
}

/* Scores of the query rows [first, first + BLOCK) against the keys each may see: p[BLOCK, columns]. */
static void scores(const shape *s, int first, int last, const num *q, const part *kt, float *p) {
    int width = s->width / STEP;
    for (int r = first; r < last; r += MR)
        for (int c = begin(s, r) / NR * NR; c < r + MR && c < s->columns; c += NR)
            tile(0, up(s->dim, STEP) / STEP, (const part *)q + (long)r * width, width, 1, kt + c, s->columns,
                 p + (long)(r - first) * s->columns + c, s->columns, 0);
}

static shape make_shape(int length, int dim, const float *cos, const float *sin, float eps) {
    shape s = {length, dim, up(length, MR), up(dim, NR), up(length, NR), cos, sin, 0, eps};
    return s;
}

/* To the b-th sequence: its documents, and its tables where each has its own. */
static void turn_to(shape *s, long b, long own, const float *cos, const float *sin, const int64_t *starts) {
    s->cos = cos + (own ? b * s->length * s->dim : 0);
    s->sin = sin + (own ? b * s->length * (s->dim / 2) : 0);
    s->starts = starts ? starts + b * s->length : 0;
}

/* Scratch space, cut from one piece; 64 bytes, a line of the cache, are the unit. */
static void *cut(char **from, size_t count, size_t size) {
    void *piece = *from;
    *from += (count * size + 63) / 64 * 64;
    return piece;
}

/* Causal grouped-query attention with rotary positions and, where q_gains is given, QK-norm.
 *
 * queries [batch, length, heads * dim], keys and values [batch, length, kv_heads * dim] to out, shaped as the queries;
 * logz [batch, heads, length] keeps the log of each row's partition function. `group` sequences share gains [dim].
 * cos and sin [length, ...], or [batch, length, ...] with `own`. Where `starts` [batch, length] is given, a row sees no
 * key before its start. */
int attention(long batch, long length, long heads, long kv_heads, long dim, long group, long own, float eps,
              const act *queries, const act *keys, const act *values, const float *cos, const float *sin,
              const int64_t *starts, const float *q_gains, const float *k_gains, act *out, float *logz) {
    shape s = make_shape(length, dim, cos, sin, eps);
    long q_stride = heads * dim, stride = kv_heads * dim, rows = up(s.rows, BLOCK), dense = rows * s.width;
    long flat = (long)s.width * s.columns, block = (long)BLOCK * s.columns;
    size_t numbers = 3 * dense + block, parts = flat + dense, floats = block + (long)BLOCK * s.width + length;
    char *work = (char *)room(numbers + parts + floats + 9 * 16), *at_work = work;
    if (!work) return 1;
    num *q = cut(&at_work, dense, sizeof(num)), *k = cut(&at_work, dense, sizeof(num)), *v = cut(&at_work, dense, sizeof(num));
    part *kt = cut(&at_work, flat, sizeof(part)), *vw = cut(&at_work, dense, sizeof(part));
    memset(work, 0, at_work - work);
    float *p = cut(&at_work, block, sizeof(float)), *o = cut(&at_work, (long)BLOCK * s.width, sizeof(float));
    float *rms = cut(&at_work, length, sizeof(float));
    num *w = STEP == 1 ? (num *)p : cut(&at_work, block, sizeof(num)); /* probabilities, without their divisor */
    const part *woven = 0;
    for (int b = 0; b < batch; b++) {
        const float *q_gain = q_gains ? q_gains + b / group * dim : 0, *k_gain = k_gains ? k_gains + b / group * dim : 0;
        turn_to(&s, b, own, cos, sin, starts);
        for (int h = 0; h < heads; h++) {
            if (h % (heads / kv_heads) == 0) {
                long at = b * length * stride + h / (heads / kv_heads) * dim;
                turn_in(&s, keys + at, stride, k_gain, 1, k, rms);
                transpose(&s, k, kt);
                copy_in(&s, values + at, stride, v);
                woven = weave(v, rows, s.width, vw);
            }
            turn_in(&s, queries + b * length * q_stride + h * dim, q_stride, q_gain, 1.0f / sqrtf(dim), q, rms);
            for (int first = 0; first < length; first += BLOCK) {
                int last = first + BLOCK < s.rows ? first + BLOCK : s.rows;
                scores(&s, first, last, q, kt, p);
                float inverse[BLOCK];
                for (int r = first; r < last; r++) {
                    float *row = p + (long)(r - first) * s.columns;
                    num *weight = w + (long)(r - first) * s.columns;
                    int seen = r < length ? r + 1 : length, whole = up(seen, LANES), end = up(r / MR * MR + MR, LANES);
                    int start = begin(&s, r), from = start / LANES * LANES;
                    for (int c = from; c < start; c++) row[c] = -INFINITY;
                    for (int c = seen; c < whole; c++) row[c] = -INFINITY;
                    vec top = *(vec *)(row + from), sum = {0};
                    for (int c = from + LANES; c < whole; c += LANES) top = vmax(top, *(vec *)(row + c));
                    float most = largest(top);
                    for (int c = from; c < whole; c += LANES) {
                        vec e = vexp(*(vec *)(row + c) - most);
                        sum += e;
                        put(weight + c, e);
                    }
                    float total = vsum(sum);
                    for (int c = begin(&s, r / MR * MR) / NR * NR; c < start; c++) weight[c] = 0;
                    for (int c = seen; c < end && c < s.columns; c++) weight[c] = 0;
                    inverse[r - first] = 1.0f / total;
                    if (r < length) logz[((long)b * heads + h) * length + r] = most + logf(total);
                }
                for (int r = first; r < last; r += MR)
                    for (int c = 0; c < s.dim; c += NR)
                        tile(begin(&s, r) / STEP, up(r + MR < length ? r + MR : length, STEP) / STEP,
                             (const part *)w + (long)(r - first) * s.columns / STEP, s.columns / STEP, 1, woven + c,
                             s.width, o + (long)(r - first) * s.width + c, s.width, 0);
                for (int r = first; r < last && r < length; r++)
                    put_out(dim, o + (long)(r - first) * s.width, inverse[r - first],
                            out + ((long)b * length + r) * heads * dim + (long)h * dim);
            }
        }
    }
    free(work);
    return 0;
}

/* The gradient of attention; grad and out as the queries. The gains' gradients are added to. */
int attention_back(long batch, long length, long heads, long kv_heads, long dim, long group, long own, float eps,
                   const act *queries, const act *keys, const act *values, const float *cos, const float *sin,
                   const int64_t *starts, const float *q_gains, const float *k_gains, const act *out, const float *logz, const act *grad,
                   act *grad_queries, act *grad_keys, act *grad_values, float *grad_q_gains, float *grad_k_gains) {
    shape s = make_shape(length, dim, cos, sin, eps);
    long q_stride = heads * dim, stride = kv_heads * dim, rows = up(s.rows, BLOCK), dense = rows * s.width;
    long flat = (long)s.width * s.columns, block = (long)BLOCK * s.columns;
    char *work = (char *)room(10 * dense + 2 * flat + 5 * block + 3 * length + 21 * 16), *at_work = work;
    if (!work) return 1;
    num *q = cut(&at_work, dense, sizeof(num)), *k = cut(&at_work, dense, sizeof(num)), *v = cut(&at_work, dense, sizeof(num));
    num *g = cut(&at_work, dense, sizeof(num));
    part *kt = cut(&at_work, flat, sizeof(part)), *vt = cut(&at_work, flat, sizeof(part));
    float *gq = cut(&at_work, dense, sizeof(float)), *gk = cut(&at_work, dense, sizeof(float)), *gv = cut(&at_work, dense, sizeof(float));
    memset(work, 0, at_work - work);
    float *p = cut(&at_work, block, sizeof(float)), *d = cut(&at_work, block, sizeof(float));
    float *q_rms = cut(&at_work, length, sizeof(float)), *k_rms = cut(&at_work, length, sizeof(float));
    float *dots = cut(&at_work, length, sizeof(float)); /* of each row of the result with its gradient */
    part *qs = cut(&at_work, dense, sizeof(part)), *ks = cut(&at_work, dense, sizeof(part)), *gs = cut(&at_work, dense, sizeof(part));
    num *pn = STEP == 1 ? (num *)p : cut(&at_work, block, sizeof(num)), *dn = STEP == 1 ? (num *)d : cut(&at_work, block, sizeof(num));
    part *ps = cut(&at_work, block / STEP, sizeof(part)), *ds = cut(&at_work, block / STEP, sizeof(part));
    const part *kw = 0;
    int share = heads / kv_heads;
    for (int b = 0; b < batch; b++) {
        const float *q_gain = q_gains ? q_gains + b / group * dim : 0, *k_gain = k_gains ? k_gains + b / group * dim : 0;
        turn_to(&s, b, own, cos, sin, starts);
        float *gq_gain = q_gains ? grad_q_gains + b / group * dim : 0, *gk_gain = k_gains ? grad_k_gains + b / group * dim : 0;
        for (int h = 0; h < heads; h++) {
            long at_q = b * length * q_stride + h * dim, at = b * length * stride + h / share * dim;
            if (h % share == 0) {
                turn_in(&s, keys + at, stride, k_gain, 1, k, k_rms);
                transpose(&s, k, kt);
                kw = weave(k, rows, s.width, ks);
                copy_in(&s, values + at, stride, v);
                transpose(&s, v, vt);
                memset(gk, 0, dense * sizeof(float));
                memset(gv, 0, dense * sizeof(float));
            }
            float factor = 1.0f / sqrtf(dim);
            turn_in(&s, queries + at_q, q_stride, q_gain, factor, q, q_rms);
            copy_in(&s, grad + at_q, q_stride, g);
            for (int t = 0; t < length; t++) { /* in a pass of its own, in which what comes next is foreseen */
                const act *o = out + at_q + t * q_stride, *at_g = grad + at_q + t * q_stride;
                vec sum = {0};
                int i = 0;
                fetch(o, dim, q_stride);
                for (; i + LANES <= dim; i += LANES) sum += vload(o + i) * vload(at_g + i);
                dots[t] = vsum(sum);
                for (; i < dim; i++) dots[t] += load(o + i) * load(at_g + i);
            }
            const part *qw = weave(q, rows, s.width, qs), *gw = weave(g, rows, s.width, gs);
            for (int first = 0; first < length; first += BLOCK) {
                int last = first + BLOCK < s.rows ? first + BLOCK : s.rows;
                scores(&s, first, last, q, kt, p);
                scores(&s, first, last, g, vt, d);
                for (int r = first; r < last; r++) {
                    float *row = p + (long)(r - first) * s.columns, *slope = d + (long)(r - first) * s.columns;
                    num *weight = pn + (long)(r - first) * s.columns, *turn = dn + (long)(r - first) * s.columns;
                    int seen = r < length ? r + 1 : 0, end = up(r / BLOCK * BLOCK + BLOCK, LANES);
                    float dot = r < length ? dots[r] : 0, z = r < length ? logz[((long)b * heads + h) * length + r] : 0;
                    int start = r < length ? begin(&s, r) : 0;
                    for (int c = start / LANES * LANES; c < seen; c += LANES) {
                        vec e = vexp(*(vec *)(row + c) - z), slant = e * (*(vec *)(slope + c) - dot);
                        put(weight + c, e);
                        put(turn + c, slant);
                    }
                    for (int c = begin(&s, first) / NR * NR; c < start; c++) weight[c] = turn[c] = 0;
                    for (int c = seen; c < end && c < s.columns; c++) weight[c] = turn[c] = 0;
                }
                const part *pw = weave(pn, last - first, s.columns, ps), *dw = weave(dn, last - first, s.columns, ds);
                for (int r = first; r < last; r += MR)
                    for (int c = 0; c < s.dim; c += NR)
                        tile(begin(&s, r) / STEP, up(r + MR < length ? r + MR : length, STEP) / STEP,
                             (const part *)dn + (long)(r - first) * s.columns / STEP, s.columns / STEP, 1, kw + c,
                             s.width, gq + (long)r * s.width + c, s.width, 0);
                /* keys: each tile sums over the query rows of this block that may see it */
                for (int t = begin(&s, first) / MR * MR; t < last && t < s.rows; t += MR) {
                    int from = t > first ? (t - first) / STEP : 0, to = (last - first) / STEP;
                    for (int c = 0; c < s.dim; c += NR) {
                        long at_row = (long)first / STEP * s.width + c, at_key = (long)t * s.width + c;
                        tile(from, to, dw + t, 1, s.columns, qw + at_row, s.width, gk + at_key, s.width, 1);
                        tile(from, to, pw + t, 1, s.columns, gw + at_row, s.width, gv + at_key, s.width, 1);
                    }
                }
            }
            turn_back(&s, gq, factor, queries + at_q, q_stride, q_gain, q_rms, gq_gain, grad_queries + at_q);
            if (h % share == share - 1) {
                turn_back(&s, gk, 1, keys + at, stride, k_gain, k_rms, gk_gain, grad_keys + at);
                for (int t = 0; t < length; t++) put_out(dim, gv + (long)t * s.width, 1, grad_values + at + t * stride);
            }
        }
    }
    free(work);
    return 0;
}
