/* The point-wise half of a ConvLSTM step, forward and backward, in one pass over memory each.
 *
 * Every tensor has `pixels` rows, channels contiguous within a row. A row of gates is i, f, z, o, 4 * width values. A
 * peephole table has `period` rows of 3 * width (i, f, o): 1 for peepholes per channel, else one per pixel of the
 * grid. A null pointer is an absent tensor. Compiled once per precision: RAINCAST_F32 (float),
 * RAINCAST_BF16 (gates and hidden states bfloat16, arithmetic and cell states float), RAINCAST_F64.
 */
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(RAINCAST_F64)
typedef double real;
typedef double stored;
INLINE real load(stored v) { return v; }
INLINE stored store(real v) { return v; }
INLINE real sigmoid(real x) { return 1.0 / (1.0 + exp(-x)); }
INLINE real hyperbolic(real x) { return tanh(x); }
#else
typedef float real;

/* e^x: x = n ln 2 + r, 2^n from the exponent bits, e^r by the polynomial of Moshier's Cephes library (expf), two
 * units in the last place. NaN propagates. */
INLINE real exponential(real x) {
  x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
  real n = __builtin_rintf(x * 1.44269504088896341f);
  real r = x - n * 0.693359375f + n * 2.12194440e-4f;
  real p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
  return p * power.value;
}

INLINE real sigmoid(real x) { return 1.0f / (1.0f + exponential(-x)); }

/* Near 0 the odd polynomial of Cephes (tanhf), since 1 - e^-2|x| would cancel there. */
INLINE real hyperbolic(real x) {
  real a = __builtin_fabsf(x), s = x * x;
  real e = exponential(-2.0f * a);
  real p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  return __builtin_copysignf(a < 0.625f ? p * s * a + a : (1.0f - e) / (1.0f + e), x);
}

#if defined(RAINCAST_BF16)
typedef uint16_t stored;
INLINE real load(stored v) {
  union { uint32_t bits; float value; } u = {.bits = (uint32_t)v << 16};
  return u.value;
}
INLINE stored store(real v) { /* to nearest, ties to even */
  union { float value; uint32_t bits; } u = {.value = v};
  return v != v ? 0x7fc0 : (stored)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}
#else
typedef float stored;
INLINE real load(stored v) { return v; }
INLINE stored store(real v) { return v; }
#endif
#endif

/* With fewer values per call, threads cost more than they gain. */
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads) if (pixels * width > 8192)")

/* Constants say which tensors are present, not null tests within the loop: only then is every case vectorised. */
enum { B = 1, OLD = 2, PEEP = 4, KEEP = 8, KEEP_O = 16, OUT = 32, NEXT = 64, DPEEP = 128 };

INLINE void forward_row(const int has, const stored *restrict a, const stored *restrict b, const real *restrict old,
                        const real *restrict peep, stored *restrict gates, stored *restrict out_gate,
                        real *restrict cell, stored *restrict hidden, int64_t w) {
#pragma omp simd
  for (int64_t k = 0; k < w; k++) {
    real i = load(a[k]), f = load(a[w + k]), z = load(a[2 * w + k]), o = load(a[3 * w + k]);
    if (has & B) {
      i += load(b[k]);
      f += load(b[w + k]);
      z += load(b[2 * w + k]);
      o += load(b[3 * w + k]);
    }
    if ((has & PEEP) && (has & OLD)) {
      i += peep[k] * old[k];
      f += peep[w + k] * old[k];
    }
    i = sigmoid(i);
    f = sigmoid(f);
    z = hyperbolic(z);
    real c = (has & OLD) ? f * old[k] + i * z : i * z;
    if (has & PEEP) o += peep[2 * w + k] * c;
    o = sigmoid(o);
    cell[k] = c;
    hidden[k] = store(o * hyperbolic(c));
    if (has & KEEP) {
      gates[k] = store(i);
      gates[w + k] = store(f);
      gates[2 * w + k] = store(z);
      gates[3 * w + k] = store(o);
    }
    if (has & KEEP_O) out_gate[k] = store(o);
  }
}

/* Absent pointers are not dereferenced, so their value does not matter. */
#define AT(pointer, flag, has, offset) (((has) & (flag)) ? (pointer) + (offset) : (pointer))

#define FORWARD(has)                                                                                               \
  case has:                                                                                                        \
    PARALLEL for (int64_t p = 0; p < pixels; p++)                                                                  \
        forward_row(has, a + 4 * p * width, AT(b, B, has, 4 * p * width), AT(old, OLD, has, p * width),            \
                    AT(peep, PEEP, has, 3 * (p % period) * width), AT(gates, KEEP, has, 4 * p * width),            \
                    AT(out_gate, KEEP_O, has, p * width), cell + p * width, hidden + p * width, width);            \
    break;
#define FORWARD_KEEP(has) FORWARD(has) FORWARD((has) | KEEP) FORWARD((has) | KEEP_O)
#define FORWARD_PEEP(has) FORWARD_KEEP(has) FORWARD_KEEP((has) | PEEP)

/* a, b: pre-activations from input and state (b may be null); old: the previous cell (null: zeros, and then no b);
 * gates, out_gate: storage for all four gates, or for o alone (null: not stored; gates may be a). */
void raincast_forward(int threads, int64_t pixels, int64_t width, int64_t period, const stored *a, const stored *b,
                      const real *old, const real *peep, stored *gates, stored *out_gate, real *cell,
                      stored *hidden) {
  switch ((b ? B : 0) | (old ? OLD : 0) | (peep ? PEEP : 0) | (gates ? KEEP : 0) | (out_gate ? KEEP_O : 0)) {
    FORWARD_PEEP(0) FORWARD_PEEP(OLD) FORWARD_PEEP(B | OLD)
  }
}

INLINE void regate_row(const int has, const stored *restrict a, const stored *restrict b, const real *restrict old,
                       const real *restrict peep, const stored *restrict out_gate, stored *restrict gates,
                       real *restrict cell, int64_t w) {
#pragma omp simd
  for (int64_t k = 0; k < w; k++) {
    real i = load(a[k]), f = load(a[w + k]), z = load(a[2 * w + k]);
    if (has & B) {
      i += load(b[k]);
      f += load(b[w + k]);
      z += load(b[2 * w + k]);
    }
    if ((has & PEEP) && (has & OLD)) {
      i += peep[k] * old[k];
      f += peep[w + k] * old[k];
    }
    i = sigmoid(i);
    f = sigmoid(f);
    z = hyperbolic(z);
    cell[k] = (has & OLD) ? f * old[k] + i * z : i * z;
    gates[k] = store(i);
    gates[w + k] = store(f);
    gates[2 * w + k] = store(z);
    gates[3 * w + k] = out_gate[k];
  }
}

#define REGATE(has)                                                                                                \
  case has:                                                                                                        \
    PARALLEL for (int64_t p = 0; p < pixels; p++)                                                                  \
        regate_row(has, a + 3 * p * width, AT(b, B, has, 3 * p * width), AT(old, OLD, has, p * width),             \
                   AT(peep, PEEP, has, 3 * (p % period) * width), out_gate + p * width, gates + 4 * p * width,     \
                   cell + p * width, width);                                                                       \
    break;

/* Recompute gates and cell from the pre-activations of i, f and z (a, b: rows of 3 * width) and the stored o. */
void raincast_regate(int threads, int64_t pixels, int64_t width, int64_t period, const stored *a, const stored *b,
                     const real *old, const real *peep, const stored *out_gate, stored *gates,
                     real *cell) {
  switch ((b ? B : 0) | (old ? OLD : 0) | (peep ? PEEP : 0)) {
    REGATE(0) REGATE(PEEP) REGATE(OLD) REGATE(OLD | PEEP) REGATE(B | OLD) REGATE(B | OLD | PEEP)
  }
}

INLINE void recell_row(const int has, const stored *restrict gates, const real *restrict old, real *restrict cell,
                       int64_t w) {
#pragma omp simd
  for (int64_t k = 0; k < w; k++) {
    real written = load(gates[k]) * load(gates[2 * w + k]);
    cell[k] = (has & OLD) ? load(gates[w + k]) * old[k] + written : written;
  }
}

#define RECELL(has)                                                                                                \
  case has:                                                                                                        \
    PARALLEL for (int64_t p = 0; p < pixels; p++)                                                                  \
        recell_row(has, gates + 4 * p * width, AT(old, OLD, has, p * width), cell + p * width, width);             \
    break;

/* Recompute the cell from the gates. */
void raincast_recell(int threads, int64_t pixels, int64_t width, int64_t period, const stored *gates,
                     const real *old, real *cell) {
  (void)period;
  switch (old ? OLD : 0) {
    RECELL(0) RECELL(OLD)
  }
}

/* With s' = s(1 - s) and tanh' = 1 - tanh²; dh is the sum of dh_out and dh_next, dc the gradient of the new cell:
 *
 *   do = dh tanh(c) o',  dc += dh o tanh'(c) + w_o do,  di = dc z i',  df = dc c_old f',  dz = dc i tanh',
 *   dc_old = dc f + w_i di + w_f df
 */
INLINE void backward_row(const int has, const stored *restrict gates, const real *restrict old,
                         const real *restrict cell, const stored *restrict dh_out, const stored *restrict dh_next,
                         real *restrict dc, const real *restrict peep, double *restrict dpeep,
                         stored *restrict dgates, int64_t w) {
#pragma omp simd
  for (int64_t k = 0; k < w; k++) {
    real i = load(gates[k]), f = load(gates[w + k]), z = load(gates[2 * w + k]), o = load(gates[3 * w + k]);
    real c = cell[k], before = (has & OLD) ? old[k] : 0, tc = hyperbolic(c), dh = 0;
    if (has & OUT) dh += load(dh_out[k]);
    if (has & NEXT) dh += load(dh_next[k]);
    real d_o = dh * tc * o * (1 - o);
    real dcell = dc[k] + dh * o * (1 - tc * tc);
    if (has & PEEP) dcell += peep[2 * w + k] * d_o;
    real di = dcell * z * i * (1 - i), df = dcell * before * f * (1 - f), dz = dcell * i * (1 - z * z);
    real dold = dcell * f;
    if (has & PEEP) dold += peep[k] * di + peep[w + k] * df;
    if (has & DPEEP) {
      dpeep[k] += (double)(di * before);
      dpeep[w + k] += (double)(df * before);
      dpeep[2 * w + k] += (double)(d_o * c);
    }
    dc[k] = dold;
    dgates[k] = store(di);
    dgates[w + k] = store(df);
    dgates[2 * w + k] = store(dz);
    dgates[3 * w + k] = store(d_o);
  }
}

#define BACKWARD(has)                                                                                              \
  case has:                                                                                                        \
    PARALLEL for (int64_t p = 0; p < pixels; p++)                                                                  \
        backward_row(has, gates + 4 * p * width, AT(old, OLD, has, p * width), cell + p * width,                   \
                     AT(dh_out, OUT, has, p * width), AT(dh_next, NEXT, has, p * width), dc + p * width,           \
                     AT(peep, PEEP, has, 3 * (p % period) * width),                                                \
                     AT(dpeep, DPEEP, has, 3 * omp_get_thread_num() * width), dgates + 4 * p * width, width);      \
    break;
#define BACKWARD_PEEP(has) BACKWARD(has) BACKWARD((has) | PEEP) BACKWARD((has) | PEEP | DPEEP)
#define BACKWARD_HIDDEN(has)                                                                                       \
  BACKWARD_PEEP(has) BACKWARD_PEEP((has) | OUT) BACKWARD_PEEP((has) | NEXT) BACKWARD_PEEP((has) | OUT | NEXT)

/* dc: the gradient of the new cell, overwritten with that of the old; dpeep: `threads` tables of 3 * width to which
 * the peepholes' gradients are added in double, one table per thread, so that the order of summation is fixed
 * (null: not wanted). */
void raincast_backward(int threads, int64_t pixels, int64_t width, int64_t period, const stored *gates,
                       const real *old, const real *cell, const stored *dh_out, const stored *dh_next,
                       const real *peep, real *dc, double *dpeep, stored *dgates) {
  switch ((old ? OLD : 0) | (dh_out ? OUT : 0) | (dh_next ? NEXT : 0) | (peep ? PEEP : 0) |
          (peep && dpeep ? DPEEP : 0)) {
    BACKWARD_HIDDEN(0) BACKWARD_HIDDEN(OLD)
  }
}
