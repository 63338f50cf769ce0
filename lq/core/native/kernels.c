/* Fake quantization of float32 tensors in one pass over memory, where PyTorch's operations take one each.
 *
 * Every function computes what the operations compute, to the bit, apart from sums, which are added in another order;
 * tests/core/test_native.py compares them. Tensors are dense and come as a pointer and a number of values, or as rows
 * of values: those of a weight are its output channels.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16          /* floats of the widest register */
#ifndef BLOCK
#error "BLOCK, the values that stay in the first-level cache between two passes: build.py says how many"
#endif
#define PARALLEL_FROM 32768 /* values below which PyTorch uses one thread, too */

static inline float on_grid(float value, float inverse, float low, float high) {
  float rounded = nearbyintf(value * inverse);
  rounded = rounded < low ? low : rounded; /* in this order NaN stays NaN */
  return rounded > high ? high : rounded;
}

/* The lowest and highest value of a block; NaN if one is. */
static void find_ends(const float *x, ptrdiff_t count, float *lowest, float *highest) {
  float low[LANES], high[LANES];
  ptrdiff_t i = 0;
  for (int k = 0; k < LANES; k++) low[k] = INFINITY, high[k] = -INFINITY;
  for (; i + LANES <= count; i += LANES)
    for (int k = 0; k < LANES; k++) {
      float value = x[i + k];
      low[k] = value < low[k] || value != value ? value : low[k];
      high[k] = value > high[k] || value != value ? value : high[k];
    }
  for (int k = 0; i < count; i++, k++) {
    low[k] = x[i] < low[k] || x[i] != x[i] ? x[i] : low[k];
    high[k] = x[i] > high[k] || x[i] != x[i] ? x[i] : high[k];
  }
  *lowest = INFINITY, *highest = -INFINITY;
  for (int k = 0; k < LANES; k++) {
    *lowest = low[k] < *lowest || low[k] != low[k] ? low[k] : *lowest;
    *highest = high[k] > *highest || high[k] != high[k] ? high[k] : *highest;
  }
}

/* Ends that include those of one more block; `nan` is set instead if it holds one. */
static void widen(const float *x, ptrdiff_t count, float *lowest, float *highest, int *nan) {
  float least, most;
  find_ends(x, count, &least, &most);
  *nan |= least != least;
  *lowest = least < *lowest ? least : *lowest;
  *highest = most > *highest ? most : *highest;
}

/* out = clamp(round(x * inverse), low, high) * scale; `out` may be `x`. `ends`, unless it is null, receives the lowest
 * and highest value of x: torch.aminmax. */
void lq_round(const float *x, float *out, ptrdiff_t count, float inverse, float low, float high, float scale,
              float *ends, int threads) {
  float lowest = INFINITY, highest = -INFINITY;
  int nan = 0;
  ptrdiff_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && count > PARALLEL_FROM) \
    reduction(min : lowest) reduction(max : highest) reduction(| : nan)
  for (ptrdiff_t block = 0; block < blocks; block++) {
    const float *from = x + block * BLOCK;
    float *to = out + block * BLOCK;
    ptrdiff_t here = block + 1 < blocks ? BLOCK : count - block * BLOCK;
    if (ends) widen(from, here, &lowest, &highest, &nan);
    for (ptrdiff_t i = 0; i < here; i++) to[i] = on_grid(from[i], inverse, low, high) * scale;
  }
  if (ends) ends[0] = nan ? NAN : lowest, ends[1] = nan ? NAN : highest;
}

/* As lq_round, and packs the integers clamp(round(x * inverse), packed_low, packed_high) as distances from packed_low,
 * of nine bits: the lower eight in `bytes`, the ninth of eight values in each byte of `bits`. */
void lq_round_and_pack(const float *x, float *out, ptrdiff_t count, float inverse, float low, float high, float scale,
                       float packed_low, float packed_high, uint8_t *bytes, uint8_t *bits, float *ends, int threads) {
  float lowest = INFINITY, highest = -INFINITY;
  int nan = 0;
  ptrdiff_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && count > PARALLEL_FROM) \
    reduction(min : lowest) reduction(max : highest) reduction(| : nan)
  for (ptrdiff_t block = 0; block < blocks; block++) {
    const float *from = x + block * BLOCK;
    float *to = out + block * BLOCK;
    uint8_t *low_bits = bytes + block * BLOCK, *ninth_bits = bits + block * (BLOCK / 8), ninth[BLOCK];
    ptrdiff_t here = block + 1 < blocks ? BLOCK : count - block * BLOCK;
    if (ends) widen(from, here, &lowest, &highest, &nan);
    for (ptrdiff_t i = 0; i < here; i++) {
      float rounded = nearbyintf(from[i] * inverse), kept = rounded < low ? low : rounded;
      /* In the other order than above, since NaN has to become an integer. */
      float packed = packed_low < rounded ? rounded : packed_low;
      int32_t distance = (int32_t)((packed < packed_high ? packed : packed_high) - packed_low);
      to[i] = (kept > high ? high : kept) * scale;
      low_bits[i] = (uint8_t)distance;
      ninth[i] = (uint8_t)(distance >> 8);
    }
    for (ptrdiff_t i = here; i % 8; i++) ninth[i] = 0;
    for (ptrdiff_t i = 0; i < here; i += 8) {
      uint64_t eight; /* bytes of 0 or 1, which the product brings together in the highest byte */
      memcpy(&eight, ninth + i, sizeof eight);
      ninth_bits[i / 8] = (uint8_t)((eight * 0x0102040810204080u) >> 56);
    }
  }
  if (ends) ends[0] = nan ? NAN : lowest, ends[1] = nan ? NAN : highest;
}

/* The values that lq_round_and_pack has written to `out`. */
void lq_unpack(const uint8_t *bytes, const uint8_t *bits, float *out, ptrdiff_t count, float packed_low, float low,
               float high, float scale, int threads) {
  ptrdiff_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && count > PARALLEL_FROM)
  for (ptrdiff_t block = 0; block < blocks; block++) {
    const uint8_t *low_bits = bytes + block * BLOCK, *ninth_bits = bits + block * (BLOCK / 8);
    uint8_t ninth[BLOCK];
    float *to = out + block * BLOCK;
    ptrdiff_t here = block + 1 < blocks ? BLOCK : count - block * BLOCK;
    for (ptrdiff_t i = 0; i < here; i += 8) {
      /* Copied into eight bytes, each of which keeps another bit, carries it to its top, and from there to its end. */
      uint64_t eight = ninth_bits[i / 8] * 0x0101010101010101u & 0x8040201008040201u;
      eight = (eight + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
      memcpy(ninth + i, &eight, sizeof eight);
    }
    for (ptrdiff_t i = 0; i < here; i++) {
      float value = (float)(low_bits[i] + (ninth[i] << 8)) + packed_low;
      value = value < low ? low : value;
      to[i] = (value > high ? high : value) * scale;
    }
  }
}

/* max(|w|) / quant_max of a row. */
static float covering_scale(const float *row, ptrdiff_t columns, float quant_max) {
  /* Without their sign, floats have the order of the integers with the same bits, NaN above all. */
  const uint32_t *bits = (const uint32_t *)row;
  uint32_t most = 0;
  float largest;
  for (ptrdiff_t i = 0; i < columns; i++) {
    uint32_t magnitude = bits[i] & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  memcpy(&largest, &most, sizeof largest);
  return largest / quant_max;
}

/* Raise scales to max(scale) / 2^16, but not above eps for that reason, and to eps where all rows are zeros; all are NaN
 * if one is. Scales above eps stay what they are otherwise. */
static void raise_scales(float *scale, ptrdiff_t rows, float eps) {
  float most = 0;
  for (ptrdiff_t row = 0; row < rows; row++) most = scale[row] > most || scale[row] != scale[row] ? scale[row] : most;
  float least = most * 0x1p-16f;
  least = least > eps ? eps : least;
  least = least <= 0 ? eps : least;
  for (ptrdiff_t row = 0; row < rows; row++) scale[row] = scale[row] < least || least != least ? least : scale[row];
}

/* The scale of each row that clips nothing. */
void lq_weight_scale(const float *weight, ptrdiff_t rows, ptrdiff_t columns, float quant_max, float eps, float *scale,
                     int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t row = 0; row < rows; row++)
    scale[row] = covering_scale(weight + row * columns, columns, quant_max);
  raise_scales(scale, rows, eps);
}

/* The scale of each row that explains most of it: of some parts of the covering scale, each with the best scale in
 * closed form for the integers that it gives, <w, n> / <n, n>. The sums are more precise than PyTorch's. */
void lq_search_scale(const float *weight, ptrdiff_t rows, ptrdiff_t columns, const float *covering, float quant_max,
                     const float *parts, int count, float *scale, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t row = 0; row < rows; row++) {
    const float *values = weight + row * columns;
    double best = 0;
    scale[row] = covering[row];
    for (int part = 0; part < count; part++) {
      float inverse = 1.0f / (covering[row] * parts[part]);
      double product = 0, square = 0;
      for (ptrdiff_t start = 0; start < columns; start += BLOCK) {
        ptrdiff_t end = columns - start < BLOCK ? columns : start + BLOCK;
        float products = 0, squares = 0;
#pragma omp simd reduction(+ : products, squares)
        for (ptrdiff_t i = start; i < end; i++) {
          float integer = on_grid(values[i], inverse, -quant_max, quant_max);
          products += values[i] * integer;
          squares += integer * integer;
        }
        product += products, square += squares;
      }
      /* With the best scale for these integers, the error is |w|^2 less this. */
      double explained = product * product / square;
      if (explained > best) best = explained, scale[row] = (float)(product / square);
    }
  }
}

static void round_row(const float *from, float *to, ptrdiff_t columns, float scale, float step, float low, float high) {
  float inverse = 1.0f / scale;
  for (ptrdiff_t i = 0; i < columns; i++) to[i] = on_grid(from[i], inverse, low, high) * step;
}

/* out = clamp(round(w / scale), low, high) * step, with a scale and a step for each row. */
void lq_round_rows(const float *x, float *out, ptrdiff_t rows, ptrdiff_t columns, const float *scale, const float *step,
                   float low, float high, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t row = 0; row < rows; row++)
    round_row(x + row * columns, out + row * columns, columns, scale[row], step[row], low, high);
}

/* lq_weight_scale, and lq_round_rows with that scale, times a factor for each row unless it is null: each row is rounded
 * while it is in the cache. */
void lq_round_weight(const float *weight, float *out, ptrdiff_t rows, ptrdiff_t columns, float quant_max, float eps,
                     const float *factor, float *scale, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t row = 0; row < rows; row++) {
    const float *from = weight + row * columns;
    scale[row] = covering_scale(from, columns, quant_max);
    if (scale[row] > eps)
      round_row(from, out + row * columns, columns, scale[row], factor ? scale[row] * factor[row] : scale[row],
                -INFINITY, INFINITY);
  }
  raise_scales(scale, rows, eps);
  for (ptrdiff_t row = 0; row < rows; row++) /* what other rows have a say in */
    if (!(scale[row] > eps))
      round_row(weight + row * columns, out + row * columns, columns, scale[row],
                factor ? scale[row] * factor[row] : scale[row], -INFINITY, INFINITY);
}

/* The backward pass of a weight that was multiplied by a factor for each row: grad_factor is the sum of out * grad over
 * a row, divided by the factor, and grad is multiplied by it, in place. */
void lq_factor_gradients(const float *out, float *grad, ptrdiff_t rows, ptrdiff_t columns, const float *factor,
                         float *grad_factor, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t row = 0; row < rows; row++) {
    const float *values = out + row * columns;
    float *given = grad + row * columns, multiple = factor[row];
    double total = 0;
    for (ptrdiff_t start = 0; start < columns; start += BLOCK) {
      ptrdiff_t end = columns - start < BLOCK ? columns : start + BLOCK;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (ptrdiff_t i = start; i < end; i++) {
        sum += values[i] * given[i];
        given[i] *= multiple;
      }
      total += sum;
    }
    grad_factor[row] = (float)total / multiple;
  }
}

/* A BatchNorm as a factor for each channel, and the bias that it leaves; pointers may be null where it has no weight or
 * shift, or the layer in front of it no bias. `kept` receives 1 / sqrt(variance + eps) and bias - mean of all channels. */
void lq_fold_batch_norm(const float *mean, const float *variance, const float *weight, const float *shift,
                        const float *bias, float eps, float smallest, ptrdiff_t channels, float *factor, float *moved,
                        float *kept, int threads) {
  (void)threads;
  for (ptrdiff_t i = 0; i < channels; i++) {
    float inverse = 1.0f / sqrtf(variance[i] + eps), centered = bias ? bias[i] - mean[i] : -mean[i];
    float multiple = weight ? inverse * weight[i] : inverse;
    multiple = fabsf(multiple) < smallest ? multiple + smallest : multiple;
    factor[i] = multiple, kept[i] = inverse, kept[channels + i] = centered;
    moved[i] = shift ? centered * multiple + shift[i] : centered * multiple;
  }
}

/* The gradients of rounding with a learned scale for each row: of a value, where that is moved by less than `most`
 * steps, and 0 elsewhere; of the scale, the sum of each gradient times (integer - value / scale), or times the integer
 * where the value has saturated. `sums` has a place for each block of a row, so that they are added in one order,
 * whatever the number of threads. */
void lq_learned_gradients(const float *x, const float *grad, float *grad_x, ptrdiff_t rows, ptrdiff_t columns,
                          const float *scale, float low, float high, float most, double *sums, float *grad_scale,
                          int threads) {
  ptrdiff_t blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > PARALLEL_FROM)
  for (ptrdiff_t part = 0; part < rows * blocks; part++) {
    ptrdiff_t row = part / blocks, start = (part % blocks) * BLOCK;
    ptrdiff_t here = columns - start < BLOCK ? columns - start : BLOCK;
    const float *values = x + row * columns + start, *given = grad + row * columns + start;
    float *to = grad_x + row * columns + start, inverse = 1.0f / scale[row], sum = 0;
#pragma omp simd reduction(+ : sum)
    for (ptrdiff_t i = 0; i < here; i++) {
      float real = values[i] * inverse, integer = nearbyintf(real);
      integer = integer < low ? low : integer;
      integer = integer > high ? high : integer;
      float moved = integer - real;
      int rounded = moved > -most && moved < most; /* NaN is not */
      to[i] = rounded ? given[i] : 0;
      sum += given[i] * (integer - (rounded ? real : 0));
    }
    sums[part] = sum;
  }
  for (ptrdiff_t row = 0; row < rows; row++) {
    double sum = 0;
    for (ptrdiff_t block = 0; block < blocks; block++) sum += sums[row * blocks + block];
    grad_scale[row] = (float)sum;
  }
}
