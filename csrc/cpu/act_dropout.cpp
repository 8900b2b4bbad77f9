// dropout(act(x + bias)) + residual: some elements at a time go through three short loops in L1, of which only the one
// in the middle is compiled for every activation.
#include "../act_dropout.h"

#include <vector>

#include "activation.h"
#include "dispatch.h"
#include "mask.h"
#include "random.h"

namespace fusedtricks::cpu {
namespace {

constexpr int64_t kStep = OrderedWords::count;                        // elements that have their words at once
constexpr int64_t kMostOfTile = std::max<int64_t>(kStep, kChannels);  // in order, or of a row
constexpr int64_t kTask = 16384;                                      // elements of a task that leaves no sums
constexpr int64_t kSumTask = 32768;                                   // and of one that does
constexpr int64_t kSumRows = 64;  // rows of a column that are summed in the compute type

template <class V>
struct Tile {
  alignas(kCacheLine) V value[kMostOfTile];
};

// The bias, and once more from its beginning, so that the places of a tile's elements follow each other from any one.
template <class V>
std::vector<V> unrolled_bias(const void* bias, const BiasPlaces& places) {
  const V* values = static_cast<const V*>(bias);
  if (!values) return {};
  std::vector<V> row(places.count + kMostOfTile);
  for (int64_t i = 0; i < int64_t(row.size()); ++i) row[i] = values[i % places.count];
  return row;
}

// Calls f(number, first, count) for the runs of elements [i, i + n) that have one value of the bias.
template <class F>
FT_INLINE void for_runs(const BiasPlaces& places, int64_t i, int64_t n, const F& f) {
  int64_t run = i / places.inner, left = places.inner - i % places.inner;
  for (int64_t first = 0; first < n; ++run, left = places.inner) {
    const int64_t count = std::min(left, n - first);
    f(run % places.count, first, count);
    first += count;
  }
}

// z = x + bias for the n elements from i on.
template <class T>
void load_biased(const T* x, const std::vector<Compute<T>>& bias, const BiasPlaces& places, int64_t i, int64_t n,
                 Compute<T>* z) {
  using V = Compute<T>;
  const T* from = x + i;
  if (bias.empty()) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] = load(from[j]);
  } else if (places.inner == 1) {
    const V* b = bias.data() + i % places.count;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] = load(from[j]) + b[j];
  } else {
    for_runs(places, i, n, [&](int64_t number, int64_t first, int64_t count) {
      const V b = bias[number];
#pragma omp simd
      for (int64_t j = first; j < first + count; ++j) z[j] = load(from[j]) + b;
    });
  }
}

// y = dropped z [+ residual].
template <bool has_mask, bool has_residual, class T>
void store_dropped(const Compute<T>* z, const T* residual, T* y, int64_t n, const uint32_t* word,
                   const DropRate& rate) {
  using V = Compute<T>;
  const uint32_t threshold = uint32_t(rate.threshold);
  const V scale = V(rate.scale);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    V value = z[j];
    if (has_mask) value = masked(value * scale, word[j], threshold);
    if (has_residual) value += load(residual[j]);
    y[j] = store<T>(value);
  }
}

template <class T>
using StoreDropped = void (*)(const Compute<T>*, const T*, T*, int64_t, const uint32_t*, const DropRate&);

template <class T>
StoreDropped<T> store_dropped_for(bool has_mask, bool has_residual) {
  if (has_mask) return has_residual ? store_dropped<true, true, T> : store_dropped<true, false, T>;
  return has_residual ? store_dropped<false, true, T> : store_dropped<false, false, T>;
}

template <class T>
struct Forward {
  using V = Compute<T>;

  const ActDropoutForward& a;
  const T* x = static_cast<const T*>(a.x);
  const T* residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  std::vector<V> bias = unrolled_bias<V>(a.bias, a.tail.places);
  ActivationSpan<V> activate = activation_span<V>(a.act);
  StoreDropped<T> finish = store_dropped_for<T>(!a.rate.keeps_all(), residual);

  // The n elements from i on, into `to`.
  void write(int64_t i, int64_t n, const uint32_t* word, T* to) const {
    Tile<V> z;
    load_biased(x, bias, a.tail.places, i, n, z.value);
    if (!a.act.is_identity()) activate(z.value, z.value, n, a.act);
    finish(z.value, residual ? residual + i : nullptr, to, n, word, a.rate);
  }
};

template <class T>
struct Backward {
  using V = Compute<T>;

  const ActDropoutBackward& a;
  const T* dy = static_cast<const T*>(a.dy);
  const T* saved = static_cast<const T*>(a.saved);
  T* dx = static_cast<T*>(a.dx);
  std::vector<V> bias = a.kept == Kept::kInput ? unrolled_bias<V>(a.bias, a.tail.places) : std::vector<V>();
  ActivationSpan<V> activate = activation_span<V>(a.act);
  DerivativeSpan<V, V> multiply = derivative_span<V, V>(a.act);
  StoreDropped<V> drop = store_dropped_for<V>(/*has_mask=*/true, /*has_residual=*/false);

  // The gradients of the n elements from i on.
  void differentiate(int64_t i, int64_t n, const uint32_t* word, V* g) const {
    // Loaded first and masked then: a loop that does both waits for the words, and loads three times as slowly.
    multiply_by(dy, a.has_mask ? V(1) : V(a.rate.scale), i, n, g);
    if (a.has_mask) drop(g, nullptr, g, n, word, a.rate);
    if (a.kept == Kept::kNothing) return;
    Tile<V> k;
    if (a.kept == Kept::kResult) {
      multiply_by(saved, V(1 / a.rate.scale), i, n, k.value);
    } else {
      load_biased(saved, bias, a.tail.places, i, n, k.value);
      if (a.act.keeps_result()) activate(k.value, k.value, n, a.act);
    }
    multiply(g, k.value, g, n, a.act);
  }

  void write(const V* g, int64_t n, T* to) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = store<T>(g[j]);
  }

 private:
  static void multiply_by(const T* from, V factor, int64_t i, int64_t n, V* to) {
    from += i;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = load(from[j]) * factor;
  }
};

// Calls f(i, n, words) for the elements [begin, end) in order, as many as have their words at once.
template <class F>
void for_steps(const Mask* mask, int64_t begin, int64_t end, const F& f) {
  OrderedWords words;
  for (int64_t i = begin, n = 0; i < end; i += n) {
    n = std::min(kStep - i % 4, end - i);
    f(i, n, mask ? words.fill(*mask, uint64_t(i)) : nullptr);
  }
}

// Calls f(i, n, words) for the rows of a block of positions of a sample, some channels of a row at a time.
template <class F>
void for_row_steps(const Mask& mask, const Layout& layout, int64_t sample, int64_t s0, int positions, const F& f) {
  const int64_t C = layout.channels, S = layout.positions;
  RowWords words;
  uint32_t row[kChannels];
  for (int64_t c = 0; c < C; c += kChannels) {
    const int count = int(std::min<int64_t>(kChannels, C - c));
    words.fill((sample * C + c) * S + s0, count, S, positions, mask);
    for (int s = 0; s < positions; ++s) f((sample * S + s0 + s) * C + c, count, words.of(s, count, row));
  }
}

// Calls block(number, sample, first position, positions) for the blocks of rows, each on one thread.
template <class F>
void for_row_blocks(const Layout& layout, const F& block) {
  const int64_t S = layout.positions, blocks = (S + kPositions - 1) / kPositions;
  parallel_tasks(layout.samples * blocks, [&](int64_t task) {
    const int64_t s0 = task % blocks * kPositions;
    block(task, task / blocks, s0, int(std::min<int64_t>(kPositions, S - s0)));
  });
}

int64_t row_blocks(const Layout& layout) { return layout.samples * ((layout.positions + kPositions - 1) / kPositions); }

template <class T>
void forward(const ActDropoutForward& a, const Mask* mask) {
  const Forward<T> pass{a};
  const int64_t numel = a.tail.numel();
  if (!a.tail.in_order) {
    return for_row_blocks(a.tail.layout, [&](int64_t, int64_t sample, int64_t s0, int positions) {
      for_row_steps(*mask, a.tail.layout, sample, s0, positions,
                    [&](int64_t i, int64_t n, const uint32_t* word) { pass.write(i, n, word, pass.y + i); });
    });
  }
  const bool stream = worth_streaming(numel, sizeof(T));
  parallel_tasks((numel + kTask - 1) / kTask, [&](int64_t task) {
    for_steps(mask, task * kTask, std::min(numel, (task + 1) * kTask), [&](int64_t i, int64_t n, const uint32_t* word) {
      emit(pass.y + i, n, stream, [&](T* to, int64_t, int64_t) { pass.write(i, n, word, to); });
    });
    if (stream) stream_fence();
  });
}

// How the sums over all but the bias's dimension are shared out: blocks of [outer, count, inner], and the partial
// result of each, a row of `count`.
struct SumPlan {
  int64_t outer, count, inner, outers, counts, inners;  // of the tensor; of a block

  explicit SumPlan(const TailLayout& tail)
      : outer(tail.numel() / (tail.places.count * tail.places.inner)),
        count(tail.places.count),
        inner(tail.places.inner) {
    inners = std::min(inner, kSumTask);
    counts = std::min(count, std::max<int64_t>(1, kSumTask / (inner == 1 ? 8 : inner)));
    outers = inners < inner || counts < count ? (inner == 1 ? 8 : 1) : std::max<int64_t>(1, kSumTask / (count * inner));
    outers = std::min({outers, kSumRows, outer});
  }

  int64_t outer_blocks() const { return (outer + outers - 1) / outers; }
  int64_t count_blocks() const { return (count + counts - 1) / counts; }
  int64_t inner_blocks() const { return (inner + inners - 1) / inners; }
  int64_t rows() const { return outer_blocks() * inner_blocks(); }
};

struct SumBlock {
  int64_t o0, o1, c0, c1, s0, s1, row;

  SumBlock(const SumPlan& p, int64_t number) {
    const int64_t c = number % p.count_blocks(), s = number / p.count_blocks() % p.inner_blocks(),
                  o = number / p.count_blocks() / p.inner_blocks();
    o0 = o * p.outers, o1 = std::min(p.outer, o0 + p.outers);
    c0 = c * p.counts, c1 = std::min(p.count, c0 + p.counts);
    s0 = s * p.inners, s1 = std::min(p.inner, s0 + p.inners);
    row = o * p.inner_blocks() + s;
  }

  // Calls f(begin, end) for its stretches of neighbouring elements.
  template <class F>
  void for_stretches(const SumPlan& p, const F& f) const {
    const int64_t row_size = p.count * p.inner, size = (c1 - c0 - 1) * p.inner + s1 - s0;
    if (size == row_size) return f(o0 * row_size, o1 * row_size);
    for (int64_t o = o0; o < o1; ++o) {
      const int64_t begin = o * row_size + c0 * p.inner + s0;
      f(begin, begin + size);
    }
  }
};

// Adds the gradients of the n elements from i on to the sums of their values of the bias; sums[0] is that of number c0.
template <class V>
void add_to_sums(const V* g, const BiasPlaces& places, int64_t i, int64_t n, int64_t c0, V* sums) {
  if (places.inner > 1) {
    return for_runs(places, i, n, [&](int64_t number, int64_t first, int64_t count) {
      V sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = first; j < first + count; ++j) sum += g[j];
      sums[number - c0] += sum;
    });
  }
  for (int64_t first = 0, number = i % places.count; first < n; number = 0) {
    const int64_t count = std::min(places.count - number, n - first);
    V* to = sums + number - c0;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] += g[first + j];
    first += count;
  }
}

// dbias: the sums over the rows of partial results.
template <class V>
void finish_sums(const V* partial, int64_t rows, int64_t count, V* dbias) {
  constexpr int64_t width = 64;
  parallel_tasks((count + width - 1) / width, [&](int64_t task) {
    const int64_t first = task * width, n = std::min(width, count - first);
    double sum[width] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const V* from = partial + row * count + first;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) sum[j] += double(from[j]);
    }
    for (int64_t j = 0; j < n; ++j) dbias[first + j] = V(sum[j]);
  });
}

template <class T>
void backward_rows(const Backward<T>& pass, const Mask& mask) {
  using V = Compute<T>;
  const Layout& layout = pass.a.tail.layout;
  V* partial = static_cast<V*>(pass.a.workspace);
  for_row_blocks(layout, [&](int64_t block, int64_t sample, int64_t s0, int positions) {
    V* sums = pass.a.dbias ? partial + block * layout.channels : nullptr;
    if (sums) std::fill_n(sums, layout.channels, V(0));
    for_row_steps(mask, layout, sample, s0, positions, [&](int64_t i, int64_t n, const uint32_t* word) {
      Tile<V> g;
      pass.differentiate(i, n, word, g.value);
      if (pass.dx) pass.write(g.value, n, pass.dx + i);
      if (sums) add_to_sums(g.value, pass.a.tail.places, i, n, 0, sums);
    });
  });
  if (partial) finish_sums(partial, row_blocks(layout), layout.channels, static_cast<V*>(pass.a.dbias));
}

template <class T>
void backward_in_order(const Backward<T>& pass, const Mask* mask) {
  using V = Compute<T>;
  const int64_t numel = pass.a.tail.numel();
  const bool stream = worth_streaming(numel, sizeof(T));
  const auto step = [&](int64_t i, int64_t n, const uint32_t* word, V* g) {
    pass.differentiate(i, n, word, g);
    if (pass.dx) emit(pass.dx + i, n, stream, [&](T* to, int64_t, int64_t) { pass.write(g, n, to); });
  };
  if (!pass.a.dbias) {
    return parallel_tasks((numel + kTask - 1) / kTask, [&](int64_t task) {
      for_steps(mask, task * kTask, std::min(numel, (task + 1) * kTask),
                [&](int64_t i, int64_t n, const uint32_t* word) {
                  Tile<V> g;
                  step(i, n, word, g.value);
                });
      if (stream) stream_fence();
    });
  }
  const SumPlan plan(pass.a.tail);
  V* partial = static_cast<V*>(pass.a.workspace);
  parallel_tasks(plan.rows() * plan.count_blocks(), [&](int64_t number) {
    const SumBlock block(plan, number);
    V* sums = partial + block.row * plan.count + block.c0;
    std::fill(sums, sums + block.c1 - block.c0, V(0));
    block.for_stretches(plan, [&](int64_t begin, int64_t end) {
      for_steps(mask, begin, end, [&](int64_t i, int64_t n, const uint32_t* word) {
        Tile<V> g;
        step(i, n, word, g.value);
        add_to_sums(g.value, pass.a.tail.places, i, n, block.c0, sums);
      });
    });
    if (stream) stream_fence();
  });
  finish_sums(partial, plan.rows(), plan.count, static_cast<V*>(pass.a.dbias));
}

// Nothing is kept: y is the residual, or 0.
template <class T>
void drop_all(const ActDropoutForward& a) {
  T* y = static_cast<T*>(a.y);
  if (a.residual)
    std::copy_n(static_cast<const T*>(a.residual), a.tail.numel(), y);
  else
    std::fill_n(y, a.tail.numel(), T(0));
}

template <class T>
void drop_all_gradients(const ActDropoutBackward& a) {
  if (a.dx) std::fill_n(static_cast<T*>(a.dx), a.tail.numel(), T(0));
  if (a.dbias) std::fill_n(static_cast<Compute<T>*>(a.dbias), a.tail.places.count, Compute<T>(0));
}

}  // namespace
}  // namespace fusedtricks::cpu

namespace fusedtricks::backend {

void act_dropout_forward(const ActDropoutForward& a, std::optional<int64_t> seed, int64_t* rng_state) {
  if (rng_state) {
    rng_state[0] = seed ? *seed : int64_t(cpu::draw_seed());
    rng_state[1] = 0;
  }
  const auto mask = rng_state ? std::optional<cpu::Mask>(cpu::Mask(rng_state, a.rate)) : std::nullopt;
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.rate.drops_all())
      cpu::drop_all<T>(a);
    else
      cpu::forward<T>(a, mask ? &*mask : nullptr);
  });
}

int64_t act_dropout_backward_workspace(const ActDropoutBackward& a) {
  if (!a.dbias || a.rate.drops_all()) return 0;
  const int64_t element = a.tail.dtype == c10::ScalarType::Double ? sizeof(double) : sizeof(float);
  const int64_t rows = a.tail.in_order ? cpu::SumPlan(a.tail).rows() : cpu::row_blocks(a.tail.layout);
  return rows * a.tail.places.count * element;
}

void act_dropout_backward(const ActDropoutBackward& a, const int64_t* rng_state) {
  const auto mask = rng_state ? std::optional<cpu::Mask>(cpu::Mask(rng_state, a.rate)) : std::nullopt;
  visit_dtype(a.tail.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (a.rate.drops_all()) return cpu::drop_all_gradients<T>(a);
    const cpu::Backward<T> pass{a};
    if (a.tail.in_order)
      cpu::backward_in_order(pass, mask ? &*mask : nullptr);
    else
      cpu::backward_rows(pass, *mask);
  });
}

}  // namespace fusedtricks::backend
