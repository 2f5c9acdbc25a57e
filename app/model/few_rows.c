/* Products of few rows with a frozen weight: gelu(x weight' + bias), bfloat16, sums in fp32.

   With few rows the time goes into reading the weight. It is read as oneDNN has laid it out: panels
   of 64 outputs, and in a panel for each pair of inputs the 64 outputs' two elements. A thread takes
   panels that follow each other; a piece of a panel stays in the cache while one block of rows after
   the other meets it, and meanwhile the next piece is asked for. A row's sums run over the inputs in
   their order, whatever stands beside it.

   OpenMP's symbols are left open when this is linked, so that they are those of the library that
   torch has loaded. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#ifndef __AVX512BF16__
#error "this processor has no AVX512-BF16"
#endif

enum {
    LANES = 16,
    VECTORS = 4,                     /* of fp32 sums: one panel of one row */
    PANEL = VECTORS * LANES,
    BLOCK = 7,                       /* rows whose sums, with one pair of a panel, fill 32 registers */
    PIECE = 1536,                    /* pairs of inputs: 384 KiB of a panel */
    LINE = 64,
/* Tiles multiply more rows at once than vectors do. */
#ifdef __AMX_BF16__
    MAX_ROWS = 16
#else
    MAX_ROWS = 64
#endif
};

/* `x` [rows, inputs] has a stride for rows in elements; `weight` is [panels, pairs, PANEL, 2], zero
   beyond the inputs; `bias` [panels * PANEL] is fp32; `out` [rows, outputs] is dense; `packed` has
   room for rows * pairs words. */
struct call {
    int64_t rows, inputs, pairs, outputs, x_row;
    const uint16_t *x, *weight;
    const float *bias;
    uint16_t *out;
    uint32_t *packed;
    int64_t gelu;                    /* 0: none, 1: with erf, 2: with tanh */
};

typedef __m512 sums[VECTORS];

/* Rows that are taken together: `count` of them from `first` on. */
struct block {
    int64_t first, count;
};

const int64_t polyprefix_few_rows_most = MAX_ROWS;

static inline __m512 all(float x) { return _mm512_set1_ps(x); }

/* exp(x) within 2 units in the last place; infinite where it is too large; NaN stays NaN. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(all(200), _mm512_max_ps(all(-200), x));
    __m512 n = _mm512_roundscale_ps(x * all(1.44269504f), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    __m512 p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    return _mm512_scalef_ps(p * r * r + r + all(1), n);
}

static inline __m512 gelu_tanh(__m512 x) {
    __m512 u = all(-1.59576912f) * (x + all(0.044715f) * x * x * x);
    return x / (all(1) + exponential(u));
}

/* With erf as in Abramowitz and Stegun 7.1.26, within 1.5e-7. */
static inline __m512 gelu_erf(__m512 x) {
    __m512 z = _mm512_abs_ps(x) * all(0.707106781f);
    __m512 t = all(1) / (all(1) + all(0.3275911f) * z);
    __m512 p = all(1.061405429f);
    p = p * t + all(-1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t + all(-0.284496736f);
    p = p * t + all(0.254829592f);
    __m512 above = all(0.5f) * p * t * exponential(-z * z);
    __mmask16 positive = _mm512_cmp_ps_mask(x, all(0), _CMP_GT_OQ);
    return x * _mm512_mask_blend_ps(positive, above, all(1) - above);
}

/* Blocks of about equal size. */
static inline struct block block_of(int64_t rows, int64_t blocks, int64_t index) {
    int64_t size = rows / blocks, larger = rows % blocks;
    struct block found = {index * size + (index < larger ? index : larger), size + (index < larger)};
    return found;
}

/* Lay a block's pairs of inputs side by side, row by row. */
static void pack(const struct call *call, struct block block) {
    uint32_t *to = call->packed + block.first * call->pairs;
    memset(to, 0, block.count * call->pairs * sizeof *to);
    for (int64_t row = 0; row < block.count; row++) {
        const uint16_t *from = call->x + (block.first + row) * call->x_row;
        int64_t whole = call->inputs / 2;
        for (int64_t k = 0; k < whole; k++) memcpy(to + k * block.count + row, from + 2 * k, 4);
        if (call->inputs % 2) memcpy(to + whole * block.count + row, from + 2 * whole, 2);
    }
}

/* Adds a piece of a panel to the sums of `count` rows; `lines` of what comes next are asked for with
   each pair. */
static inline __attribute__((always_inline)) void add(const int count, const int lines, sums *to,
                                                      const uint32_t *x, const uint16_t *weight,
                                                      int64_t pairs, const char *next) {
    __m512 sum[BLOCK][VECTORS];
#pragma GCC unroll 7
    for (int row = 0; row < count; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[row][v] = to[row][v];
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh pair[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            pair[v] = (__m512bh)_mm512_loadu_si512(weight + (k * VECTORS + v) * 2 * LANES);
#pragma GCC unroll 2
        for (int line = 0; line < lines; line++)
            _mm_prefetch(next + (k * lines + line) * LINE, _MM_HINT_T1);
#pragma GCC unroll 7
        for (int row = 0; row < count; row++) {
            __m512bh both = (__m512bh)_mm512_set1_epi32((int)x[k * count + row]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                sum[row][v] = _mm512_dpbf16_ps(sum[row][v], pair[v], both);
        }
    }
#pragma GCC unroll 7
    for (int row = 0; row < count; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) to[row][v] = sum[row][v];
}

/* The same for counts that are known when this is compiled, so that sums stay in registers. */
static void add_block(int64_t count, int lines, sums *to, const uint32_t *x, const uint16_t *weight,
                      int64_t pairs, const char *next) {
#define ROWS(n)                                                          \
    case n:                                                              \
        if (lines == 0) add(n, 0, to, x, weight, pairs, next);           \
        else if (lines == 1) add(n, 1, to, x, weight, pairs, next);      \
        else add(n, 2, to, x, weight, pairs, next);                      \
        break;
    switch (count) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7)
    }
}

/* The sums of all rows over one panel. */
static void add_panel(const struct call *call, int64_t panel, int64_t blocks, const char *end,
                      sums *to) {
    memset(to, 0, call->rows * sizeof *to);
    for (int64_t begin = 0; begin < call->pairs; begin += PIECE) {
        int64_t pairs = call->pairs - begin < PIECE ? call->pairs - begin : PIECE;
        const uint16_t *weight = call->weight + (panel * call->pairs + begin) * PANEL * 2;
        const char *next = (const char *)(weight + pairs * PANEL * 2);
        const char *enough = next + pairs * PANEL * 4;
        if (enough > end) enough = end;
        int rate = blocks < 5 ? 2 : 1;
        for (int64_t index = 0; index < blocks; index++) {
            struct block block = block_of(call->rows, blocks, index);
            /* the first block waits for the piece itself */
            int lines = index > 0 && next + pairs * rate * LINE <= enough ? rate : 0;
            add_block(block.count, lines, to + block.first,
                      call->packed + block.first * call->pairs + begin * block.count, weight, pairs,
                      next);
            next += pairs * lines * LINE;
        }
    }
}

static void store_panel(const struct call *call, int64_t panel, const sums *from) {
    for (int v = 0; v < VECTORS; v++) {
        int64_t at = panel * PANEL + v * LANES, left = call->outputs - at;
        if (left <= 0) return;
        __mmask16 mask = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 bias = _mm512_loadu_ps(call->bias + at);
        for (int64_t row = 0; row < call->rows; row++) {
            __m512 y = from[row][v] + bias;
            if (call->gelu == 1) y = gelu_erf(y);
            if (call->gelu == 2) y = gelu_tanh(y);
            _mm256_mask_storeu_epi16(call->out + row * call->outputs + at, mask,
                                     (__m256i)_mm512_cvtneps_pbh(y));
        }
    }
}

void polyprefix_few_rows(const struct call *call) {
    int64_t panels = (call->outputs + PANEL - 1) / PANEL;
    int64_t blocks = (call->rows + BLOCK - 1) / BLOCK;
    const char *end = (const char *)(call->weight + panels * call->pairs * PANEL * 2);
#pragma omp parallel
    {
        sums of_panel[MAX_ROWS];
#pragma omp for schedule(static)
        for (int64_t index = 0; index < blocks; index++)
            pack(call, block_of(call->rows, blocks, index));
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; panel++) {
            add_panel(call, panel, blocks, end, of_panel);
            store_panel(call, panel, of_panel);
        }
    }
}
