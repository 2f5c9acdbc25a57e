/* Attention of a step's tokens to columns of K/V memory.

   Compiled at start for one machine, one element type (BFLOAT16 or float) and one HEAD_DIM; called
   once per layer for all rows. A token attends to one or several parts, columns that stand together
   in memory, under one softmax; only columns in use are read, once for a group of tokens of one row.
   Sums are in fp32, and nothing of one token reaches another.

   OpenMP's symbols are left open when this is linked, so that they are those of the library that
   torch has loaded: its workers do this work too. */

#include <stdint.h>
#include <string.h>

#if BFLOAT16
typedef uint16_t element;
#else
typedef float element;
#endif

enum {
    HEAD_BYTES = HEAD_DIM * sizeof(element),
    LOWEST = HEAD_BYTES & -HEAD_BYTES,
    BYTES = LOWEST < 64 ? LOWEST : 64,
    LANES = BYTES / 4,
    VECTORS = HEAD_DIM / LANES,
    BLOCK = 128,
    QUERIES = 64,
    LINE = 64 / sizeof(element)
};

typedef float vector __attribute__((vector_size(BYTES)));
typedef uint32_t words __attribute__((vector_size(BYTES)));

/* Columns that stand together: those of one slot. Addresses are those of the first layer's, strides
   are in elements; columns of one head follow each other. */
struct part {
    element *keys, *values;
    int64_t layer_stride, head_stride, columns;
};

/* Tokens of one row that follow each other, `count` of them from `first` on. They attend to `parts`
   from `begin` to before `end`, of the last one to `columns` alone; with new keys each token to one
   column more than the token before it, which is its own. */
struct group {
    int64_t first, count, begin, end, columns;
};

/* What a call computes. `new_keys` (or NULL) and `new_values` are written before anything is read.
   Queries, new keys and values have strides for tokens and heads; `output` is dense. */
struct call {
    int64_t groups, kv_heads, heads_per_kv, layer;
    const struct group *group;
    const struct part *parts;
    const element *queries, *new_keys, *new_values;
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;
    element *output;
    float scaling;
};

/* exp(x) for x <= 0, within 2 units in the last place; NaN stays NaN. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* One head in fp32. Of bfloat16 each word gives an even and an odd element: one instruction each,
   at the price of an order of its own, which `store_head` undoes. */
static inline void load_head(const element *from, vector to[VECTORS]) {
#if BFLOAT16
    for (int v = 0; v < VECTORS; v += 2) {
        words pair;
        memcpy(&pair, from + v * LANES, sizeof pair);
        to[v] = (vector)(pair << 16);
        to[v + 1] = (vector)(pair & 0xffff0000u);
    }
#else
    memcpy(to, from, HEAD_BYTES);
#endif
}

static inline void store_head(const vector from[VECTORS], element *to) {
#if BFLOAT16
    for (int v = 0; v < VECTORS; v++) {
        words bits = (words)from[v];
        words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        for (int lane = 0; lane < LANES; lane++)
            to[(v & ~1) * LANES + 2 * lane + (v & 1)] =
                from[v][lane] == from[v][lane] ? (element)rounded[lane] : 0x7fc0;
    }
#else
    memcpy(to, from, HEAD_BYTES);
#endif
}

/* Adds the halves of blocks of 2 * `width` lanes of vectors i and i + `width`, side by side. */
static inline __attribute__((always_inline)) void halve(vector parts[LANES], const int width) {
    words left = {0};
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
        const int block = lane / width;
        left[lane] = block % 2 * LANES + block / 2 * 2 * width + lane % width;
    }
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        parts[i] = __builtin_shuffle(parts[i], parts[i + width], left) +
                   __builtin_shuffle(parts[i], parts[i + width], left + width);
}

/* The sums of LANES vectors, one a lane. */
static inline vector sums_of(vector parts[LANES]) {
    if (LANES > 8) halve(parts, 8);
    if (LANES > 4) halve(parts, 4);
    if (LANES > 2) halve(parts, 2);
    if (LANES > 1) halve(parts, 1);
    return parts[0];
}

/* Ask for a column that is needed soon; without it memory is idle while numbers are computed. */
static inline void fetch(const element *column) {
    for (int at = 0; at < HEAD_DIM; at += LINE) __builtin_prefetch(column + at, 0, 2);
}

/* Scores of LANES columns; those from `columns` on repeat the last one. */
static inline vector score(const vector query[VECTORS], const element *keys, int columns,
                           int64_t ahead) {
    vector parts[LANES];
    for (int c = 0; c < LANES; c++) {
        vector key[VECTORS], sum = {0};
        if (ahead) fetch(keys + ahead + c * HEAD_DIM);
        load_head(keys + (c < columns ? c : columns - 1) * HEAD_DIM, key);
        for (int v = 0; v < VECTORS; v++) sum += query[v] * key[v];
        parts[c] = sum;
    }
    return sums_of(parts);
}

/* Adds a block of at most BLOCK columns to what a head has: the largest score so far, the sum of
   exponentials, and the weighted sum of values. What is `ahead` elements on is fetched,
   unless that is 0. */
static inline void add_block(const vector query[VECTORS], const element *keys,
                             const element *values, int columns, int64_t ahead, float *largest,
                             float *total, vector sum[VECTORS]) {
    float scores[BLOCK], most = *largest, weight = 0;
    int filled = 0;
    for (; filled < columns; filled += LANES) {
        const element *at = keys + filled * HEAD_DIM;
        vector some = columns - filled < LANES ? score(query, at, columns - filled, ahead)
                                               : score(query, at, LANES, ahead);
        memcpy(scores + filled, &some, sizeof some);
    }
#pragma omp simd reduction(max : most)
    for (int c = 0; c < filled; c++) most = scores[c] > most ? scores[c] : most;
#pragma omp simd
    for (int c = 0; c < filled; c++) scores[c] = exponential(scores[c] - most);
    for (int c = columns; c < filled; c++) scores[c] = 0;
#pragma omp simd reduction(+ : weight)
    for (int c = 0; c < filled; c++) weight += scores[c];
    float shrink = exponential(*largest - most);
    vector local[VECTORS];
    for (int v = 0; v < VECTORS; v++) local[v] = sum[v] * shrink;
    for (int c = 0; c < columns; c++) {
        vector value[VECTORS];
        if (ahead) fetch(values + ahead + c * HEAD_DIM);
        load_head(values + c * HEAD_DIM, value);
        for (int v = 0; v < VECTORS; v++) local[v] += scores[c] * value[v];
    }
    for (int v = 0; v < VECTORS; v++) sum[v] = local[v];
    *total = *total * shrink + weight;
    *largest = most;
}

/* The part's columns of one layer and head: keys, and values by the same offset. */
static inline int64_t place_of(const struct call *call, const struct part *part, int64_t head) {
    return call->layer * part->layer_stride + head * part->head_stride;
}

static void write_columns(const struct call *call, const struct group *group, int64_t head) {
    const struct part *own = call->parts + group->end - 1;
    int64_t at = place_of(call, own, head) + (group->columns - 1) * HEAD_DIM;
    for (int64_t t = 0; t < group->count; t++, at += HEAD_DIM) {
        int64_t token = group->first + t;
        memcpy(own->keys + at, call->new_keys + token * call->key_token + head * call->key_head,
               HEAD_BYTES);
        memcpy(own->values + at,
               call->new_values + token * call->value_token + head * call->value_head, HEAD_BYTES);
    }
}

/* Some tokens of one row and the query heads that share one K/V head. */
static void attend_some(const struct call *call, const struct group *group, int64_t head) {
    int64_t heads = call->heads_per_kv, count = group->count * heads;
    vector query[count][VECTORS], sum[count][VECTORS];
    float largest[count], total[count];
    for (int64_t q = 0; q < count; q++) {
        load_head(call->queries + (group->first + q / heads) * call->query_token +
                      (head * heads + q % heads) * call->query_head,
                  query[q]);
        for (int v = 0; v < VECTORS; v++) {
            query[q][v] *= call->scaling;
            sum[q][v] = (vector){0};
        }
        largest[q] = -3.4e38f;
        total[q] = 0;
    }
    for (int64_t p = group->begin; p < group->end; p++) {
        const struct part *part = call->parts + p;
        int is_last = p == group->end - 1, grows = is_last && call->new_keys != NULL;
        int64_t first = is_last ? group->columns : part->columns;
        int64_t most = grows ? first + group->count - 1 : first;
        int64_t at = place_of(call, part, head);
        for (int64_t c = 0; c < most; c += BLOCK) {
            const element *keys = part->keys + at + c * HEAD_DIM;
            const element *values = part->values + at + c * HEAD_DIM;
            for (int64_t q = 0; q < count; q++) {
                int64_t columns = (grows ? first + q / heads : first) - c;
                if (columns <= 0) continue;
                add_block(query[q], keys, values, columns < BLOCK ? (int)columns : BLOCK,
                          q ? 0 : part->head_stride, largest + q, total + q, sum[q]);
            }
        }
    }
    for (int64_t q = 0; q < count; q++) {
        for (int v = 0; v < VECTORS; v++) sum[q][v] /= total[q];
        int64_t place = (group->first + q / heads) * call->kv_heads + head;
        store_head(sum[q], call->output + (place * heads + q % heads) * HEAD_DIM);
    }
}

/* A group's tokens, as many at once as leave room on a thread's stack. */
static void attend(const struct call *call, const struct group *group, int64_t head) {
    int64_t most = QUERIES / call->heads_per_kv > 0 ? QUERIES / call->heads_per_kv : 1;
    for (int64_t done = 0; done < group->count; done += most) {
        struct group some = *group;
        some.first += done;
        some.count = group->count - done < most ? group->count - done : most;
        some.columns += call->new_keys ? done : 0;
        attend_some(call, &some, head);
    }
}

void polyprefix_attention(const struct call *call) {
    int64_t tasks = call->groups * call->kv_heads;
    int64_t share = tasks / 32 > 0 ? tasks / 32 : 1;
#pragma omp parallel
    {
        if (call->new_keys) {
#pragma omp for schedule(static)
            for (int64_t task = 0; task < tasks; task++)
                write_columns(call, call->group + task / call->kv_heads, task % call->kv_heads);
        }
#pragma omp for schedule(dynamic, share)
        for (int64_t task = 0; task < tasks; task++)
            attend(call, call->group + task / call->kv_heads, task % call->kv_heads);
    }
}
