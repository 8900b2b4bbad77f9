// Fractional max-pooling with an activation: the forward finds the maxima of the windows and applies the activation to
// them; the backward adds the gradients where the maxima were found.
#include "calls/fractional_max_pool.h"

#include "cpu/fractional_max_pool/channels_last.h"
#include "cpu/fractional_max_pool/planes.h"

namespace fusedtricks::cpu {
namespace {

int64_t fractional_max_pool_workspace(const PoolShape&, bool) { return 0; }

void fractional_max_pool_forward(const PoolCall& call, const void* x, void* y, void* places) {
  call.random.write_record();
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto pool = call.shape.channels_last ? pool_channels_last<T> : pool_planes<T>;
    pool(call, static_cast<const T*>(x), static_cast<T*>(y), places);
  });
}

void fractional_max_pool_backward(const PoolCall& call, const void* dy, const void* y, const void* places, void* dx) {
  visit_dtype(call.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto differentiate = call.shape.channels_last ? pool_channels_last_backward<T> : pool_planes_backward<T>;
    // The identity does not read the result: any address will do.
    const void* result = y ? y : dy;
    differentiate(call, static_cast<const T*>(dy), static_cast<const T*>(result), places, static_cast<T*>(dx));
  });
}

void fractional_max_pool_indices(const PoolCall& call, const void* places, int64_t* indices) {
  const PoolShape& shape = call.shape;
  const int64_t windows = shape.windows(), width = shape.output[kWidth];
  const std::vector<int64_t> offsets = place_offsets(shape);
  const PlaneTasks tasks(shape.planes(), windows / width, width);
  const auto piece = [&](WindowTable& table, int64_t plane, int64_t row, int64_t end) {
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
        load_places(places, shape.place_bytes(), at, &place, 1);
        indices[at] = position + start[i] + offsets[place];
      }
    }
  };
  tasks.run([&] { return WindowTable(call, 1); }, piece);
}

const Provided provided[] = {
    {kernels::fractional_max_pool_workspace, fractional_max_pool_workspace},
    {kernels::fractional_max_pool_forward, fractional_max_pool_forward},
    {kernels::fractional_max_pool_backward, fractional_max_pool_backward},
    {kernels::fractional_max_pool_indices, fractional_max_pool_indices},
};

}  // namespace
}  // namespace fusedtricks::cpu
