/* One step of a decoder-only transformer on the processor: rows of (token, position, sequence) to logits.
 *
 * Compiled on first use. A model is a list of operations (`Op`), which every thread walks through in order; each
 * operation is cut into items that the threads take from a counter, with a barrier behind it. A row may be a token of a
 * prompt or a new one: they are computed alike.
 *
 * The arithmetic of a row depends on nothing but the row and its own sequence: every sum runs over its terms in one
 * order, whatever the number of rows, the tile that a row falls into and the number of threads. This file must not be
 * compiled with reassociation (-ffast-math, -fassociative-math), which would break that.
 *
 * Rows of buffers, and weights, are padded with zeros to whole register tiles. The keys of a sequence are stored in
 * blocks of LANES positions, transposed, so that the scores of a block are computed without a sum across a vector.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "vectors.h"

#ifdef __AVX512F__
#define TILE 12         /* rows of a register tile: with two vectors across, 24 of 32 registers hold sums */
#else
#define TILE 6          /* 12 of 16 registers */
#endif
#define NR (2 * LANES)  /* columns of a panel of weights */
#define PANELS 4        /* panels of an item of work, and the most that one row goes through at once */
#define ATTEND_HEADS 3  /* query heads of a group that share what is loaded of the cache */
#define SPINS 4000      /* looks at a barrier before the processor is given to others */

enum { EMBED, NORM, PRODUCT, PREPARE, ATTEND, JOIN, ROUTE, COMBINE };
enum { STORE, ADD, SWIGLU, RELU2 };

/* One operation; `in`, `in2`, `in3` and `out` are numbers of buffers, the others mean what the operation says. */
typedef struct {
    int64_t kind, mode, in, in2, in3, out, n, k, at, at2, at3, layer, experts, gather;
    const float *weight, *gain, *gain2;
    double eps, scale;
} Op;

typedef struct {
    const Op *ops;
    int64_t count, heads, kv_heads, dim, value_dim, buffers;
    const int64_t *widths; /* floats of a row of each buffer */
    float **buffer;
    const float *cos, *sin; /* [positions, dim] and [positions, dim / 2] */
    int64_t active; /* experts of a token */
    int32_t *chosen, *entries, *starts; /* of each entry its expert; entries by expert; where each expert's begin */
    float *shares; /* weight of each entry */
} Model;

typedef struct {
    int64_t rows, wanted, longest; /* longest: keys of the row that sees most */
    const int32_t *tokens, *positions, *sequence; /* of each row */
    float *const *caches;        /* of each sequence */
    const int64_t *capacities;   /* positions that it has room for, whole blocks */
    const int32_t *wanted_rows;  /* rows whose logits are asked for */
    float *logits;               /* [wanted, stride] */
    int64_t stride;
} Step;

typedef struct {
    const Model *model;
    const Step *step;
    _Atomic int64_t threads; /* 0 until all are started */
    _Atomic int64_t *next; /* item of each operation that is taken next */
    _Atomic int64_t arrived, passed;
    _Atomic int failed;
} Team;

static void barrier(Team *t, int64_t *round) {
    int64_t mine = ++*round, threads = atomic_load_explicit(&t->threads, memory_order_relaxed);
    if (threads == 1) return;
    if (atomic_fetch_add(&t->arrived, 1) + 1 == mine * threads) {
        atomic_store(&t->passed, mine);
        return;
    }
    for (int64_t spins = 0; atomic_load_explicit(&t->passed, memory_order_acquire) < mine; spins++) {
        if (spins > SPINS) sched_yield();
#if defined(__x86_64__)
        else __builtin_ia32_pause();
#endif
    }
}

static inline int64_t whole(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- Products ---- */

/* The sums over k of `rows` rows with `panels` panels; each sum is one chain of multiply-adds from the first k on.
 * `next` is prefetched meanwhile, as fast as `w` is read. */
static inline __attribute__((always_inline)) void sums(const int rows, const int panels, const float *const *a,
                                                       const float *w, const float *next, int64_t k, vec s[][2]) {
    for (int i = 0; i < rows * panels; i++) s[i][0] = s[i][1] = (vec){0};
    for (int64_t i = 0; i < k; i++)
        for (int p = 0; p < panels; p++) {
            const float *from = w + (p * k + i) * NR;
            vec w0 = *(const vec *)from, w1 = *(const vec *)(from + LANES);
            if (rows > 2)
                for (int line = 0; line < NR; line += 16) __builtin_prefetch(next + (p * k + i) * NR + line);
            for (int r = 0; r < rows; r++) {
                s[r * panels + p][0] += a[r][i] * w0;
                s[r * panels + p][1] += a[r][i] * w1;
            }
        }
}

static inline vec silu(vec x) { return x * sigmoid(x); }

static inline vec biased(vec x, const float *bias, int64_t at) {
    if (bias) x += *(const vec *)(bias + at);
    return x;
}

static inline __attribute__((always_inline)) void put(int64_t mode, vec s[2], float *out, int64_t panel,
                                                      const float *bias, const float *bias2) {
    vec zero = {0};
    if (mode == SWIGLU) { /* the first half of a panel is of the gate, the second of what it lets through */
        int64_t at = panel * LANES;
        *(vec *)(out + at) = silu(biased(s[0], bias, at)) * biased(s[1], bias2, at);
        return;
    }
    for (int j = 0; j < 2; j++) {
        int64_t at = panel * NR + j * LANES;
        vec *to = (vec *)(out + at), x = biased(s[j], bias, at);
        if (mode == RELU2) {
            x = pick(x < zero, zero, x);
            x = x * x;
        }
        if (mode == ADD) x = *to + x;
        *to = x;
    }
}

/* Rows of buffers of a product: the entries of one expert, the rows whose logits are wanted, or all. */
typedef struct {
    const float *in;
    float *out;
    int64_t in_width, out_width, count, share; /* an entry reads row entry / share */
    const int32_t *from; /* the rows or entries that are read; NULL: 0, 1, ... */
    int scattered;       /* whether they are also what is written; else 0, 1, ... */
} Rows;

#define TILE_OF(R, P)                                                                              \
    {                                                                                              \
        vec s[(R) * (P)][2];                                                                       \
        sums(R, P, a, w, next, k, s);                                                              \
        for (int r = 0; r < (R); r++)                                                              \
            for (int p = 0; p < (P); p++) put(mode, s[r * (P) + p], out[r], panel + p, bias, bias2); \
        break;                                                                                     \
    }

/* The panels from `panel` to `last`: one goes through all rows while it is near; few rows go through several at once. */
static void product(const Rows *rows, const Op *op, const float *weight, int64_t panel, int64_t last) {
    const float *bias = op->gain, *bias2 = op->gain2; /* padded to whole panels; NULL: none */
    int64_t k = op->k, mode = op->mode;
    int64_t tiles = (rows->count + TILE - 1) / TILE;
    while (panel < last) {
        const float *w = weight + panel * k * NR;
        int together = 1;
        if (rows->count == 1 && last - panel >= 4) together = 4;
        else if (rows->count <= 2 && last - panel >= 2) together = 2;
        for (int64_t i = 0, done = 0; i < tiles; i++) {
            int size = (int)((rows->count - done + tiles - i - 1) / (tiles - i)); /* as equal as can be */
            const float *a[TILE], *next = tiles == 1 ? w + 16 * NR : i == tiles - 1 ? w + k * NR : w;
            float *out[TILE];
            for (int r = 0; r < size; r++) {
                int64_t at = rows->from ? rows->from[done + r] : done + r;
                a[r] = rows->in + at / rows->share * rows->in_width;
                out[r] = rows->out + (rows->scattered ? at : done + r) * rows->out_width;
            }
            done += size;
            switch (size * 8 + together) {
                case 8 + 4: TILE_OF(1, 4)
                case 8 + 2: TILE_OF(1, 2)
                case 8 + 1: TILE_OF(1, 1)
                case 16 + 2: TILE_OF(2, 2)
                case 16 + 1: TILE_OF(2, 1)
                case 24 + 1: TILE_OF(3, 1)
                case 32 + 1: TILE_OF(4, 1)
                case 40 + 1: TILE_OF(5, 1)
#if TILE > 6
                case 56 + 1: TILE_OF(7, 1)
                case 64 + 1: TILE_OF(8, 1)
                case 72 + 1: TILE_OF(9, 1)
                case 80 + 1: TILE_OF(10, 1)
                case 88 + 1: TILE_OF(11, 1)
                case 96 + 1: TILE_OF(12, 1)
#endif
                default: TILE_OF(6, 1)
            }
        }
        panel += together;
    }
}

/* ---- Norms and rotary positions ---- */

static void norm(const float *x, const float *gain, float *out, int64_t width, double eps) {
    vec squares = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) squares += *(const vec *)(x + i) * *(const vec *)(x + i);
    float total = vsum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    float factor = 1.0f / sqrtf(total / width + (float)eps);
    for (i = 0; i < width; i++) out[i] = x[i] * factor * gain[i];
}

/* A head [dim], normalised where there is a gain, turned, times `scale`; written with the distance `stride`. */
static void turn(const Model *m, const float *x, const float *gain, const Op *op, int64_t position, float scale,
                 float *out, int64_t stride) {
    int64_t dim = m->dim, half = dim / 2;
    const float *cos = m->cos + position * dim, *sin = m->sin + position * half;
    float head[dim];
    if (gain) norm(x, gain, head, dim, op->eps);
    else memcpy(head, x, dim * sizeof(float));
    for (int64_t i = 0; i < half; i++) {
        float a = head[i] * cos[i] - head[i + half] * sin[i], b = head[i + half] * cos[i + half] + head[i] * sin[i];
        out[i * stride] = a * scale;
        out[(i + half) * stride] = b * scale;
    }
}

/* Floats of the keys and of the values of one head in one layer. */
static inline int64_t key_floats(const Model *m, int64_t capacity) { return capacity * whole(m->dim, LANES); }
static inline int64_t value_floats(const Model *m, int64_t capacity) { return capacity * whole(m->value_dim, LANES); }

static float *layer_of(const Model *m, const Step *s, int64_t row, int64_t layer) {
    int64_t capacity = s->capacities[s->sequence[row]];
    return s->caches[s->sequence[row]] + layer * m->kv_heads * (key_floats(m, capacity) + value_floats(m, capacity));
}

/* Turns queries (scaled, padded, to `out`) and keys of a row, and puts keys and values into the cache. */
static void prepare(const Model *m, const Step *s, const Op *op, int64_t row) {
    int64_t position = s->positions[row], capacity = s->capacities[s->sequence[row]];
    int64_t padded = whole(m->dim, LANES), wide = whole(m->value_dim, LANES);
    float *cache = layer_of(m, s, row, op->layer), *values = cache + m->kv_heads * key_floats(m, capacity);
    const float *q = m->buffer[op->in] + row * m->widths[op->in] + op->at;
    const float *k = m->buffer[op->in2] + row * m->widths[op->in2] + op->at2;
    const float *v = m->buffer[op->in3] + row * m->widths[op->in3] + op->at3;
    float *out = m->buffer[op->out] + row * m->widths[op->out];
    for (int64_t h = 0; h < m->heads; h++)
        turn(m, q + h * m->dim, op->gain, op, position, (float)op->scale, out + h * padded, 1);
    for (int64_t h = 0; h < m->kv_heads; h++) {
        float *keys = cache + h * key_floats(m, capacity) + position / LANES * LANES * padded + position % LANES;
        turn(m, k + h * m->dim, op->gain2, op, position, 1.0f, keys, LANES);
        memcpy(values + h * value_floats(m, capacity) + position * wide, v + h * m->value_dim, m->value_dim * sizeof(float));
    }
}

/* ---- Attention ---- */

static inline __attribute__((always_inline)) void score(const int heads, const float *q, int64_t padded, int64_t dim,
                                                        const float *keys, int64_t blocks, float *p, int64_t stride) {
    int64_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
        vec s[heads][2];
        for (int h = 0; h < heads; h++) s[h][0] = s[h][1] = (vec){0};
        const float *one = keys + b * LANES * padded, *two = one + LANES * padded;
        for (int64_t d = 0; d < dim; d++) {
            vec k0 = *(const vec *)(one + d * LANES), k1 = *(const vec *)(two + d * LANES);
            for (int h = 0; h < heads; h++) {
                s[h][0] += q[h * padded + d] * k0;
                s[h][1] += q[h * padded + d] * k1;
            }
        }
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < 2; j++) *(vec *)(p + h * stride + (b + j) * LANES) = s[h][j];
    }
    for (; b < blocks; b++) {
        vec s[heads];
        for (int h = 0; h < heads; h++) s[h] = (vec){0};
        for (int64_t d = 0; d < dim; d++) {
            vec k = *(const vec *)(keys + (b * padded + d) * LANES);
            for (int h = 0; h < heads; h++) s[h] += q[h * padded + d] * k;
        }
        for (int h = 0; h < heads; h++) *(vec *)(p + h * stride + b * LANES) = s[h];
    }
}

static inline __attribute__((always_inline)) void mix(const int heads, const int vectors, const float *p, int64_t stride,
                                                      const float *values, int64_t wide, int64_t keys, vec o[][4]) {
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < vectors; j++) o[h][j] = (vec){0};
    for (int64_t t = 0; t < keys; t++)
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < vectors; j++) o[h][j] += p[h * stride + t] * *(const vec *)(values + t * wide + j * LANES);
}

/* `heads` query heads (q [heads, padded]) of one row over the keys and values of their head; out [heads, value_dim]. */
static inline __attribute__((always_inline)) void attend(const int heads, const Model *m, const float *q,
                                                         const float *keys, const float *values, int64_t seen,
                                                         float *p, float *out) {
    int64_t padded = whole(m->dim, LANES), wide = whole(m->value_dim, LANES), blocks = (seen + LANES - 1) / LANES;
    int64_t stride = blocks * LANES;
    score(heads, q, padded, m->dim, keys, blocks, p, stride);
    float inverse[heads];
    for (int h = 0; h < heads; h++) {
        float *row = p + h * stride;
        for (int64_t c = seen; c < stride; c++) row[c] = -INFINITY;
        vec top = *(vec *)row, sum = {0};
        for (int64_t c = LANES; c < stride; c += LANES) top = vmax(top, *(vec *)(row + c));
        float most = largest(top);
        for (int64_t c = 0; c < stride; c += LANES) *(vec *)(row + c) = vexp(*(vec *)(row + c) - most);
        for (int64_t c = seen; c < stride; c++) row[c] = 0;
        for (int64_t c = 0; c < stride; c += LANES) sum += *(vec *)(row + c);
        inverse[h] = 1.0f / vsum(sum);
    }
    for (int64_t d = 0; d < wide; d += 4 * LANES) {
        vec o[heads][4];
        int vectors = (int)((wide - d) / LANES);
        if (vectors >= 4) mix(heads, 4, p, stride, values + d, wide, seen, o);
        else if (vectors == 3) mix(heads, 3, p, stride, values + d, wide, seen, o);
        else if (vectors == 2) mix(heads, 2, p, stride, values + d, wide, seen, o);
        else mix(heads, 1, p, stride, values + d, wide, seen, o);
        for (int h = 0; h < heads; h++)
            for (int64_t j = 0; j < 4 * LANES && d + j < m->value_dim; j++)
                out[h * m->value_dim + d + j] = o[h][j / LANES][j % LANES] * inverse[h];
    }
}

static void attend_group(const Model *m, const Step *s, const Op *op, int64_t row, int64_t head, float *p) {
    int64_t capacity = s->capacities[s->sequence[row]], seen = s->positions[row] + 1, group = m->heads / m->kv_heads;
    int64_t padded = whole(m->dim, LANES);
    float *cache = layer_of(m, s, row, op->layer);
    const float *keys = cache + head * key_floats(m, capacity);
    const float *values = cache + m->kv_heads * key_floats(m, capacity) + head * value_floats(m, capacity);
    const float *q = m->buffer[op->in] + row * m->widths[op->in] + head * group * padded;
    float *out = m->buffer[op->out] + row * m->widths[op->out] + head * group * m->value_dim;
    for (int64_t h = 0; h < group;) {
        int64_t left = group - h;
        if (left >= 3) attend(3, m, q, keys, values, seen, p, out);
        else if (left == 2) attend(2, m, q, keys, values, seen, p, out);
        else attend(1, m, q, keys, values, seen, p, out);
        int64_t took = left < ATTEND_HEADS ? left : ATTEND_HEADS;
        h += took;
        q += took * padded;
        out += took * m->value_dim;
    }
}

/* ---- Mixtures of experts ---- */

/* Chooses `active` experts of each row from its logits, in the order of their numbers, and sorts entries by expert. */
static void route(const Model *m, const Op *op, int64_t rows) {
    int64_t count = op->experts, active = m->active;
    int sigmoids = op->mode & 1, normalise = op->mode & 2;
    memset(m->starts, 0, (count + 1) * sizeof(int32_t));
    for (int64_t r = 0; r < rows; r++) {
        const float *logits = m->buffer[op->in] + r * m->widths[op->in];
        float score[count], choosing[count], total = 0, most = logits[0], sum = 0;
        for (int64_t e = 1; e < count; e++) most = most < logits[e] ? logits[e] : most;
        for (int64_t e = 0; e < count; e++) {
            score[e] = sigmoids ? 1.0f / (1.0f + expf(-logits[e])) : expf(logits[e] - most);
            total += score[e];
        }
        for (int64_t e = 0; e < count; e++) {
            if (!sigmoids) score[e] /= total;
            choosing[e] = score[e] + (op->gain ? op->gain[e] : 0.0f);
        }
        int32_t *chosen = m->chosen + r * active;
        float *shares = m->shares + r * active;
        char taken[count];
        memset(taken, 0, count);
        for (int64_t i = 0; i < active; i++) {
            int64_t best = -1;
            for (int64_t e = 0; e < count; e++)
                if (!taken[e] && (best < 0 || choosing[e] > choosing[best])) best = e;
            taken[best] = 1;
        }
        for (int64_t e = 0, i = 0; e < count; e++)
            if (taken[e]) {
                chosen[i] = (int32_t)e;
                shares[i++] = score[e];
                sum += score[e];
                m->starts[e + 1]++;
            }
        for (int64_t i = 0; i < active; i++) shares[i] = (normalise ? shares[i] / sum : shares[i]) * (float)op->scale;
    }
    for (int64_t e = 0; e < count; e++) m->starts[e + 1] += m->starts[e];
    int32_t at[count];
    memcpy(at, m->starts, count * sizeof(int32_t));
    for (int64_t entry = 0; entry < rows * active; entry++) m->entries[at[m->chosen[entry]]++] = (int32_t)entry;
}

/* ---- The step ---- */

static int64_t panels_of(const Op *op) { return whole(op->mode == SWIGLU ? 2 * op->n : op->n, NR) / NR; }

static int64_t groups_of(const Op *op) { return (panels_of(op) + PANELS - 1) / PANELS; }

/* Rows that an operation is for: of the last ones, those whose logits are wanted. */
static int64_t rows_of(const Op *op, const Step *s) { return op->at < 0 ? s->wanted : s->rows; }

static int64_t items(const Model *m, const Step *s, const Op *op) {
    switch (op->kind) {
        case PRODUCT: return groups_of(op) * (op->experts ? op->experts : 1);
        case ATTEND: return s->rows * m->kv_heads;
        case ROUTE: return 1;
        default: return rows_of(op, s);
    }
}

static void work(const Model *m, const Step *s, const Op *op, int64_t item, float *scratch) {
    float *in = m->buffer[op->in], *out = m->buffer[op->out];
    int64_t in_width = m->widths[op->in], out_width = m->widths[op->out];
    switch (op->kind) {
        case EMBED: { /* mode 0: rows as they are; 1: panels of the output matrix */
            int64_t token = s->tokens[item], k = op->k;
            float *to = out + item * out_width;
            if (op->mode == 0) memcpy(to, op->weight + token * k, k * sizeof(float));
            else
                for (int64_t i = 0; i < k; i++) to[i] = op->weight[(token / NR * k + i) * NR + token % NR];
            break;
        }
        case NORM: {
            int64_t row = op->at < 0 ? s->wanted_rows[item] : item;
            norm(in + row * in_width, op->gain, out + item * out_width, op->n, op->eps);
            break;
        }
        case PRODUCT: {
            int64_t groups = groups_of(op), panel = item % groups * PANELS, expert = item / groups;
            int64_t last = panel + PANELS < panels_of(op) ? panel + PANELS : panels_of(op);
            Rows rows = {in, out, in_width, out_width, rows_of(op, s), 1, 0, 0};
            if (op->at < 0) rows.out = s->logits, rows.out_width = s->stride;
            if (op->experts) { /* gather: an entry reads the row that it belongs to, else what the same entry has written */
                rows.from = m->entries + m->starts[expert];
                rows.count = m->starts[expert + 1] - m->starts[expert];
                rows.share = op->gather ? m->active : 1;
                rows.scattered = 1;
            }
            if (rows.count) product(&rows, op, op->weight + expert * panels_of(op) * op->k * NR, panel, last);
            break;
        }
        case PREPARE: prepare(m, s, op, item); break;
        case ATTEND: attend_group(m, s, op, item / m->kv_heads, item % m->kv_heads, scratch); break;
        case JOIN: { /* keys of latent attention: in each half of a head what is turned, the same in all, and the rest */
            int64_t half = m->dim / 2, turned = op->n / 2, still = half - turned;
            const float *shared = in + item * in_width, *own = m->buffer[op->in2] + item * m->widths[op->in2];
            float *to = out + item * out_width;
            for (int64_t h = 0; h < 2 * m->heads; h++) {
                memcpy(to + h * half, shared + h % 2 * turned, turned * sizeof(float));
                memcpy(to + h * half + turned, own + h * still, still * sizeof(float));
            }
            break;
        }
        case ROUTE: route(m, op, s->rows); break;
        case COMBINE: {
            float *to = out + item * out_width;
            for (int64_t i = 0; i < m->active; i++) {
                const float *from = in + (item * m->active + i) * in_width, share = m->shares[item * m->active + i];
                for (int64_t d = 0; d < op->n; d++) to[d] += share * from[d];
            }
        }
    }
}

static void walk(Team *t) {
    const Model *m = t->model;
    int64_t round = 0, threads = atomic_load(&t->threads);
    float *scratch = aligned_alloc(64, whole(ATTEND_HEADS * whole(t->step->longest, LANES) * sizeof(float), 64));
    if (!scratch) atomic_store(&t->failed, 1);
    barrier(t, &round); /* all of them go on, or none does */
    for (int64_t i = 0; i < m->count && !atomic_load(&t->failed); i++) {
        const Op *op = m->ops + i;
        int64_t total = items(m, t->step, op), few = total / (8 * threads) + 1;
        for (int64_t from; (from = atomic_fetch_add(t->next + i, few)) < total;)
            for (int64_t item = from; item < from + few && item < total; item++) work(m, t->step, op, item, scratch);
        barrier(t, &round);
    }
    free(scratch);
}

static void *begin(void *team) {
    while (!atomic_load(&((Team *)team)->threads)) sched_yield();
    walk(team);
    return 0;
}

/* Computes a step with up to `threads` threads; 0, or 1 where there is no memory for its scratch space.
 *
 * Threads live as long as the step: that costs less than 30 microseconds each, and a process may fork between steps. */
int step(const Model *m, const Step *s, long threads) {
    _Atomic int64_t *next = calloc(m->count, sizeof *next);
    pthread_t *ids = malloc(threads * sizeof *ids);
    Team team = {m, s, 0, next, 0, 0, 0};
    long started = 1; /* this one; those that the system refuses are done without */
    if (next && ids) {
        while (started < threads && !pthread_create(ids + started, 0, begin, &team)) started++;
        atomic_store(&team.threads, started);
        walk(&team);
        for (long i = 1; i < started; i++) pthread_join(ids[i], 0);
    } else atomic_store(&team.failed, 1);
    free(next), free(ids);
    return atomic_load(&team.failed);
}

/* Weights [n, k] into panels: out [n / NR, k, NR], zeros behind the last row; `second` (as `first`) shares each panel. */
void pack(long n, long k, const float *first, const float *second, float *out) {
    long across = second ? LANES : NR;
    for (long p = 0; p * across < n; p++)
        for (long i = 0; i < k; i++)
            for (long j = 0; j < across; j++) {
                long row = p * across + j, at = (p * k + i) * NR + j;
                out[at] = row < n ? first[row * k + i] : 0.0f;
                if (second) out[at + LANES] = row < n ? second[row * k + i] : 0.0f;
            }
}

/* Vectors of the processor: Python lays out buffers by it. */
int lanes(void) { return LANES; }
