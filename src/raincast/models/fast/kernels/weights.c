/* The gradient of a convolution's weights, for kernels of k * k and float32.
 *
 * Rows of pixels, channels contiguous: `rows` (images, in_height, in_width, channels) were convolved, `d_rows` (images,
 * height, width, outputs) is the gradient of the result, of which pixel (y, x) saw (stride * y + i - pad, stride * x + j
 * - pad) through weight (i, j). The gradient is (outputs, k, k, channels): for each (i, j) a product of matrices, (outputs
 * x pixels) times (pixels x channels), over the pixels that saw one in the grid.
 *
 * A tile of it, up to VECTORS * LANES outputs by up to CHANNELS channels, stays in registers while the pixels of a panel
 * go by. A panel is some lines of d_rows, copied so that the outputs of a tile lie together; it serves all tiles of these
 * outputs. What a tile sums in a panel is added to its sum in memory: float32 is exact enough, for no sum is long.
 */
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define VECTORS 4 /* 24 sums, 4 outputs, 1 input: 29 of 32 registers */
#define SPREAD(value) _mm512_set1_ps(value)
enum { FAST = 1 };
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#define VECTORS 2 /* 12, 2 and 1 of 16 */
#define SPREAD(value) _mm256_set1_ps(value)
enum { FAST = 1 };
#else
#define LANES 4
#define VECTORS 1
#define SPREAD(value) {value, value, value, value}
enum { FAST = 0 };
#endif

enum { CHANNELS = 6 };

/* A panel has at least a line, and not more than so many pixels where a line has not more. */
enum { PANEL = 192 };

#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
  int64_t images, height, width, outputs, in_height, in_width, channels, k, stride, pad;
} sizes;

/* Part number `index` of `parts` nearly equal ones of `all`. */
typedef struct {
  int64_t begin, end;
} range;

INLINE range share(int64_t all, int64_t index, int64_t parts) {
  return (range){all * index / parts, all * (index + 1) / parts};
}

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; } /* rounded up, for a >= 0 */

/* How the work is cut: outputs into `blocks`, channels into `groups`; a block has `tiles`, which are shared out in
 * `pieces`. A panel has `lines` of each of `images`, more than one only where these are whole. */
typedef struct {
  int64_t blocks, groups, tiles, pieces, lines, images;
} plan;

static plan plan_of(const sizes *s, int threads) {
  plan p;
  p.blocks = over(s->outputs / LANES, VECTORS);
  p.groups = over(s->channels, CHANNELS);
  p.tiles = s->k * s->k * p.groups;
  /* each block's tiles are cut in so many pieces that all pieces share out evenly among threads */
  int64_t a = p.blocks, b = threads;
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  p.pieces = max(1, min(threads / a, p.tiles));
  p.lines = max(1, min(s->height, PANEL / s->width));
  p.images = p.lines < s->height ? 1 : max(1, min(s->images, PANEL / (s->height * s->width)));
  return p;
}

/* Whether it is meant for this processor, and fast with so many outputs. */
int raincast_weights_takes(int64_t outputs) {
  return FAST && outputs % LANES == 0 && outputs >= VECTORS * LANES;
}

/* Floats of room that a thread needs: sums first, then a panel. */
int64_t raincast_weights_room(int threads, const sizes *s) {
  const plan p = plan_of(s, threads);
  return (over(p.tiles, p.pieces) * CHANNELS + p.images * p.lines * s->width) * VECTORS * LANES;
}

/* A rectangle of pixels: `images`, `lines` and `columns` of a panel, and how far apart these lie there and in `rows`. */
typedef struct {
  int64_t images, lines, columns, panel_image, panel_line, image, line, column;
} pixels;

/* Adds to `sum` (channels, vectors * LANES). */
INLINE void tile(const int vectors, const int channels, const float *restrict panel, const float *restrict rows,
                 pixels p, float *restrict sum) {
  vector sums[CHANNELS][VECTORS];
#pragma GCC unroll 8
  for (int c = 0; c < channels; c++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[c][v] = (vector){0};
  for (int64_t n = 0; n < p.images; n++)
    for (int64_t y = 0; y < p.lines; y++) {
      const float *d = panel + n * p.panel_image + y * p.panel_line, *r = rows + n * p.image + y * p.line;
      for (int64_t x = 0; x < p.columns; x++, d += vectors * LANES, r += p.column) {
        vector outputs[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) outputs[v] = *(const vector *)(d + LANES * v);
#pragma GCC unroll 8
        for (int c = 0; c < channels; c++) {
          const vector input = SPREAD(r[c]);
#pragma GCC unroll 8
          for (int v = 0; v < vectors; v++) sums[c][v] += outputs[v] * input;
        }
      }
    }
#pragma GCC unroll 8
  for (int c = 0; c < channels; c++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) *(vector *)(sum + (c * vectors + v) * LANES) += sums[c][v];
}

#define TILE(vectors, channels)                                                                                    \
  case 8 * vectors + channels:                                                                                     \
    tile(vectors, channels, panel, rows, p, sum);                                                                  \
    break;
#define TILES(vectors)                                                                                             \
  TILE(vectors, 1) TILE(vectors, 2) TILE(vectors, 3) TILE(vectors, 4) TILE(vectors, 5) TILE(vectors, 6)

INLINE void any_tile(int64_t vectors, int64_t channels, const float *panel, const float *rows, pixels p, float *sum) {
  switch (8 * vectors + channels) {
    TILES(1)
#if VECTORS > 1
    TILES(2)
#endif
#if VECTORS > 2
    TILES(3)
    TILES(4)
#endif
  }
}

/* Copies `count` pixels of d_rows, of `vectors` each, to a panel, and adds them to `bias`. */
INLINE void fill(float *panel, const float *d_rows, int64_t outputs, int64_t count, int64_t vectors, vector *bias) {
  vector total[VECTORS] = {{0}};
  for (int64_t i = 0; i < count; i++)
    for (int64_t v = 0; v < vectors; v++) {
      const vector d = *(const unaligned *)(d_rows + i * outputs + LANES * v);
      *(vector *)(panel + (i * vectors + v) * LANES) = d;
      total[v] += d;
    }
  for (int64_t v = 0; v < vectors; v++) bias[v] += total[v];
}

/* The first result that saw a pixel at or behind the grid's begin through a weight at distance d, and the first behind
 * its end. */
INLINE int64_t first_seen(int64_t d, int64_t stride) {
  return stride == 1 ? max(0, -d) : over(max(0, -d), stride);
}

INLINE int64_t first_unseen(int64_t extent, int64_t d, int64_t stride) {
  return stride == 1 ? max(0, extent - d) : over(max(0, extent - d), stride);
}

/* `room` for each thread; `d_bias` (outputs) may be null. */
void raincast_weights(int threads, const sizes *s, const float *d_rows, const float *rows, float *room,
                      float *d_weight, float *d_bias) {
  const plan plan = plan_of(s, threads);
  const int64_t room_each = raincast_weights_room(threads, s), shifts = s->k * s->k;
  const int64_t line = s->in_width * s->channels;

#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t piece = 0; piece < plan.blocks * plan.pieces; piece++) {
    const range block = share(s->outputs / LANES, piece / plan.pieces, plan.blocks);
    const range some = share(plan.tiles, piece % plan.pieces, plan.pieces);
    const int64_t vectors = block.end - block.begin, together = vectors * LANES, output = block.begin * LANES;
    float *sums = room + omp_get_thread_num() * room_each;
    float *panel = sums + over(plan.tiles, plan.pieces) * CHANNELS * VECTORS * LANES;
    vector bias[VECTORS] = {{0}};
    memset(sums, 0, (some.end - some.begin) * CHANNELS * together * sizeof(float));

    for (int64_t n = 0; n < s->images; n += plan.images)
      for (int64_t y = 0; y < s->height; y += plan.lines) {
        const int64_t images = min(plan.images, s->images - n), lines = min(plan.lines, s->height - y);
        const int64_t count = images * lines * s->width;
        const float *from = d_rows + (n * s->height + y) * s->width * s->outputs + output;
        fill(panel, from, s->outputs, count, vectors, bias);

        /* no division for each tile: it would take as long as a tenth of its sums */
        const int64_t ahead = over(count, some.end - some.begin);
        int64_t fetched = count, shift = some.begin % shifts, i = shift / s->k, j = shift % s->k;
        int64_t number = some.begin / shifts;
        range group = share(s->channels, number, plan.groups);
        for (int64_t t = some.begin; t < some.end; t++) {
          /* the next panel comes into the cache meanwhile */
          for (const int64_t end = min(fetched + ahead, 2 * count); fetched < end; fetched++)
            for (int64_t o = 0; o < together; o += 16) __builtin_prefetch(from + fetched * s->outputs + o, 0, 2);

          const int64_t dy = i - s->pad, dx = j - s->pad;
          const range seen_y = {max(y, first_seen(dy, s->stride)),
                                min(y + lines, first_unseen(s->in_height, dy, s->stride))};
          const range seen_x = {first_seen(dx, s->stride),
                                min(s->width, first_unseen(s->in_width, dx, s->stride))};
          if (seen_y.begin < seen_y.end && seen_x.begin < seen_x.end) {
            const pixels p = {images,
                              seen_y.end - seen_y.begin,
                              seen_x.end - seen_x.begin,
                              lines * s->width * together,
                              s->width * together,
                              s->in_height * line,
                              s->stride * line,
                              s->stride * s->channels};
            const float *d = panel + ((seen_y.begin - y) * s->width + seen_x.begin) * together;
            const float *r = rows + (n * s->in_height + seen_y.begin * s->stride + dy) * line +
                             (seen_x.begin * s->stride + dx) * s->channels + group.begin;
            any_tile(vectors, group.end - group.begin, d, r, p, sums + (t - some.begin) * CHANNELS * together);
          }
          if (++j == s->k) {
            j = 0;
            if (++i == s->k) {
              i = 0;
              group = share(s->channels, ++number, plan.groups);
            }
          }
        }
      }

    for (int64_t t = some.begin; t < some.end; t++) {
      const range group = share(s->channels, t / shifts, plan.groups);
      const float *sum = sums + (t - some.begin) * CHANNELS * together;
      for (int64_t o = 0; o < together; o++)
        for (int64_t c = group.begin; c < group.end; c++)
          d_weight[((output + o) * shifts + t % shifts) * s->channels + c] = sum[(c - group.begin) * together + o];
    }
    if (d_bias && piece % plan.pieces == 0)
      for (int64_t v = 0; v < vectors; v++) *(unaligned *)(d_bias + output + LANES * v) = bias[v];
  }
}
