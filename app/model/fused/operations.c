/* GELU and cross entropy of bfloat16 numbers, each with its slope, computed in fp32.

   Vectors of 16 numbers are the compiler's own, so this serves every processor. OpenMP's symbols are
   left open when this is linked, so that they are those of the library that torch has loaded. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE floats all(float x) { return x - (floats){0}; }

INLINE floats choose(ints which, floats yes, floats no) {
    return (floats)((which & (ints)yes) | (~which & (ints)no));
}

INLINE floats widen(halves x) { return (floats)(__builtin_convertvector(x, words) << 16); }

/* Rounded to the nearest, and to even where two are as near; NaN stays NaN. */
INLINE halves narrow(floats x) {
    words bits = (words)x;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words quiet = (bits >> 16) | 0x40;
    ints number = x == x;
    return __builtin_convertvector(((words)number & rounded) | (~(words)number & quiet), halves);
}

INLINE floats load(const uint16_t *from) {
    halves found;
    memcpy(&found, from, sizeof found);
    return widen(found);
}

INLINE void store(uint16_t *to, floats x) {
    halves made = narrow(x);
    memcpy(to, &made, sizeof made);
}

/* The last numbers of a row, then `rest`. */
INLINE floats load_some(const uint16_t *from, int64_t count, float rest) {
    float found[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t bits = lane < count ? (uint32_t)from[lane] << 16 : 0;
        memcpy(&found[lane], &bits, sizeof bits);
        if (lane >= count) found[lane] = rest;
    }
    floats x;
    memcpy(&x, found, sizeof x);
    return x;
}

INLINE void store_some(uint16_t *to, floats x, int64_t count) {
    halves made = narrow(x);
    memcpy(to, &made, count * sizeof *to);
}

/* NaN stays NaN. */
INLINE floats between(float least, floats x, float most) {
    x = choose(x < least, all(least), x);
    return choose(x > most, all(most), x);
}

/* exp(x) within 2 units in the last place, from exp(-87) to exp(88). */
INLINE floats exponential(floats x) {
    x = between(-87, x, 88);
    floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    /* the shifted number's last bits are n */
    ints power = (ints)(((words)shifted + 127) << 23);
    return (p * r * r + r + 1) * (floats)power;
}

/* Beyond 20 the share of x that passes is 0 or 1. */
INLINE void gelu_tanh(floats given, floats *y, floats *slope) {
    floats x = between(-20, given, 20);
    floats square = x * x;
    floats u = 1.59576912f * x * (1 + 0.044715f * square);
    floats share = 1 / (1 + exponential(-u));
    *y = given * share;
    *slope = share + x * share * (1 - share) * (1.59576912f * (1 + 0.134145f * square));
}

/* With erf as in Abramowitz and Stegun 7.1.26, within 1.5e-7. */
INLINE void gelu_erf(floats given, floats *y, floats *slope) {
    floats x = between(-20, given, 20);
    floats z = choose(x < 0, -x, x) * 0.707106781f;
    floats t = 1 / (1 + 0.3275911f * z);
    floats p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    floats bell = exponential(-z * z);
    floats above = 0.5f * p * t * bell;
    floats share = choose(x > 0, 1 - above, above);
    *y = given * share;
    *slope = share + x * bell * 0.398942280f;
}

/* gelu(x) and its slope for `count` numbers; with tanh, or exact. */
void polyprefix_gelu(int64_t count, const uint16_t *x, uint16_t *y, uint16_t *slope,
                     int64_t with_tanh) {
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < count; at += LANES) {
        int64_t left = count - at;
        floats of = left >= LANES ? load(x + at) : load_some(x + at, left, 0), made, steep;
        if (with_tanh) gelu_tanh(of, &made, &steep);
        else gelu_erf(of, &made, &steep);
        if (left >= LANES) {
            store(y + at, made);
            store(slope + at, steep);
        } else {
            store_some(y + at, made, left);
            store_some(slope + at, steep, left);
        }
    }
}

/* What a row of logits is like: its largest, the sum of exp(logit - largest), the sum of all. */
struct facts {
    float largest, sum, total;
};

static struct facts look_at(const uint16_t *row, int64_t vocabulary) {
    int64_t whole = vocabulary - vocabulary % LANES, rest = vocabulary % LANES;
    floats largest = all(-INFINITY), total = all(0), sum = all(0);
    for (int64_t at = 0; at < whole; at += LANES) {
        floats x = load(row + at);
        largest = choose(x > largest, x, largest);
        total += x;
    }
    if (rest) {
        floats x = load_some(row + whole, rest, -INFINITY);
        largest = choose(x > largest, x, largest);
        total += load_some(row + whole, rest, 0);
    }
    struct facts found = {-INFINITY, 0, 0};
    for (int lane = 0; lane < LANES; lane++) {
        if (largest[lane] > found.largest) found.largest = largest[lane];
        found.total += total[lane];
    }
    for (int64_t at = 0; at < whole; at += LANES) sum += exponential(load(row + at) - found.largest);
    for (int lane = 0; lane < LANES; lane++) found.sum += sum[lane];
    if (rest) {
        floats last = exponential(load_some(row + whole, rest, 0) - found.largest);
        for (int lane = 0; lane < rest; lane++) found.sum += last[lane];
    }
    return found;
}

/* For each row of `logits` [rows, vocabulary] the loss on its label, times its weight; `smoothing`
   is the share of the target that is spread over the vocabulary. `slopes` is like `logits`, or NULL.
   A row of weight 0 has no loss and no slope, and its label is not read. */
void polyprefix_cross_entropy(int64_t rows, int64_t vocabulary, const uint16_t *logits,
                              const int64_t *labels, const float *weights, const float *smoothing,
                              float *losses, uint16_t *slopes) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < rows; at++) {
        const uint16_t *row = logits + at * vocabulary;
        uint16_t *to = slopes ? slopes + at * vocabulary : NULL;
        float weight = weights[at], share = smoothing[at];
        losses[at] = 0;
        if (weight == 0) {
            if (to) memset(to, 0, vocabulary * sizeof *to);
            continue;
        }
        struct facts found = look_at(row, vocabulary);
        float label = load_some(row + labels[at], 1, 0)[0], mean = found.total / vocabulary;
        float target = share ? (1 - share) * label + share * mean : label;
        losses[at] = weight * (found.largest + logf(found.sum) - target);
        if (!to) continue;
        float scale = weight / found.sum, spread = weight * share / vocabulary;
        for (int64_t k = 0; k < vocabulary; k += LANES) {
            int64_t left = vocabulary - k;
            if (left >= LANES)
                store(to + k, exponential(load(row + k) - found.largest) * scale - spread);
            else
                store_some(to + k, exponential(load_some(row + k, left, 0) - found.largest) * scale -
                           spread, left);
        }
        floats sure = exponential(all(label - found.largest)) * scale - spread - weight * (1 - share);
        store_some(to + labels[at], sure, 1);
    }
}
