// Fractional max-pooling with an activation: the maxima of a plane's windows, then the activation of those, and the
// gradient back to where they were found.
#include "calls/fractional_max_pool.h"

#include "cpu/fractional_max_pool/planes.h"
#include "cpu/fractional_max_pool/channels_last.h"
#include "cpu/dropout/random.h"

namespace fusedtricks::backend {

int64_t fractional_max_pool_workspace(const PoolShape&, bool) { return 0; }

void fractional_max_pool_forward(const PoolCall& call, std::optional<int64_t> seed, const void* x, void* y,
                                 void* places, int64_t* rng_state) {
  rng_state[0] = call.samples.given ? 0 : seed ? *seed : int64_t(cpu::draw_seed());
  rng_state[1] = 0;
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto pool = call.shape.channels_last ? cpu::pool_channels_last<T> : cpu::pool_planes<T>;
    pool(call, static_cast<const T*>(x), static_cast<T*>(y), places, rng_state);
  });
}

void fractional_max_pool_backward(const PoolCall& call, const void* dy, const void* y, const void* places,
                                  const int64_t* rng_state, void* dx) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto differentiate = call.shape.channels_last ? cpu::pool_channels_last_backward<T> : cpu::pool_planes_backward<T>;
    // The identity looks at no result: any address will do.
    const void* result = y ? y : dy;
    differentiate(call, static_cast<const T*>(dy), static_cast<const T*>(result), places, rng_state,
                  static_cast<T*>(dx));
  });
}

void fractional_max_pool_indices(const PoolCall& call, const void* places, const int64_t* rng_state, int64_t* indices) {
  const PoolShape& shape = call.shape;
  const int64_t windows = shape.windows(), width = shape.output[kWidth];
  const std::vector<int64_t> offsets = cpu::place_offsets(shape);
  const cpu::PlaneTasks tasks(shape.planes(), windows / width, width);
  const auto piece = [&](cpu::WindowTable& table, int64_t plane, int64_t row, int64_t end) {
    table.set(plane, 1);
    const int64_t sample = plane / shape.channels, channel = plane % shape.channels;
    const int32_t* start = table.starts(kWidth, 0);
    const int64_t step = shape.channels_last ? shape.channels : 1;
    const int64_t first = shape.channels_last ? sample * windows * shape.channels + channel : plane * windows;
    for (; row < end; ++row) {
      const int64_t position = table.position(row, 0);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t at = first + (row * width + i) * step;
        int32_t place = 0;
        cpu::load_places(places, shape.place_bytes(), at, &place, 1);
        indices[at] = position + start[i] + offsets[place];
      }
    }
  };
  tasks.run([&] { return cpu::WindowTable(call, rng_state, 1); }, piece);
}

}  // namespace fusedtricks::backend
