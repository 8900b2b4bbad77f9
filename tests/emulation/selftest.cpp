// Kernels that show what the emulation does; `selftest CASE` runs one. A case that fails says so and exits with 1.
#include <cstdio>
#include <map>
#include <thread>

#include "emulation.h"

#define SELFTEST_REQUIRE(condition) \
  if (!(condition)) throw std::logic_error(std::to_string(__LINE__) + ": " #condition)

namespace {

using namespace fusedtricks::cuda;

constexpr int kThreads = 256;

__device__ __forceinline__ void reduction_barrier() {
#if !defined(SELFTEST_WITHOUT_BARRIER)
  __syncthreads();
#endif
}

__global__ void __launch_bounds__(kThreads) block_sums(const float* __restrict__ x, float* __restrict__ sums) {
  float* partial = dynamic_shared<float>();
  const unsigned t = threadIdx.x;
  partial[t] = __ldcs(x + blockIdx.x * blockDim.x + t);
  reduction_barrier();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    reduction_barrier();
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

// Whole numbers: exact in any order.
void check_block_sums() {
  constexpr int blocks = 5;
  std::vector<float> x(blocks * kThreads), sums(blocks), expected(blocks);
  for (int i = 0; i < blocks * kThreads; ++i) expected[i / kThreads] += x[i] = float(i % 37);
  launch(block_sums, blocks, kThreads, kThreads * sizeof(float), x.data(), sums.data());
  SELFTEST_REQUIRE(sums == expected);
}

void check_several_os_threads() {
  std::vector<std::exception_ptr> errors(4);
  std::vector<std::thread> threads;
  for (std::exception_ptr& error : errors) {
    threads.emplace_back([&error] {
      try {
        for (int i = 0; i < 20; ++i) check_block_sums();
      } catch (...) {
        error = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

__global__ void record_order(int* order, int* next) {
  order[atomicAdd(next, 1)] = int(blockIdx.x * blockDim.x + threadIdx.x);
}

void print_order() {
  int order[12], next = 0;
  launch(record_order, 3, 4, 0, order, &next);
  for (int i : order) std::printf("%d ", i);
}

// A lane's number in the hundreds, so that one that is read twice or not at all shows.
template <class T>
__global__ void shuffles(T (*out)[7]) {
  const unsigned lane = threadIdx.x % 32;
  const T value = T(threadIdx.x * 100 + 7);
  T* mine = out[threadIdx.x];
  mine[0] = __shfl_sync(~0u, value, 3);
  mine[1] = __shfl_sync(~0u, value, 9, 8);
  mine[2] = __shfl_xor_sync(~0u, value, 5);
  mine[3] = __shfl_down_sync(~0u, value, 2u, 16);
  mine[4] = __shfl_up_sync(~0u, value, 1u);
  mine[5] = lane < 8 ? __shfl_xor_sync(0xffu, value, 4, 8) : T(0);
  __syncwarp();
  mine[6] = __shfl_xor_sync(~0u, value, 8, 8);
}

template <class T>
void check_shuffles() {
  T out[64][7];
  launch(shuffles<T>, 1, 64, 0, out);
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, warp = t - lane;
    const auto holds = [&](int i, int source) { return out[t][i] == T((warp + source) * 100 + 7); };
    SELFTEST_REQUIRE(holds(0, 3));
    SELFTEST_REQUIRE(holds(1, lane / 8 * 8 + 1));
    SELFTEST_REQUIRE(holds(2, lane ^ 5));
    SELFTEST_REQUIRE(holds(3, lane % 16 + 2 < 16 ? lane + 2 : lane));
    SELFTEST_REQUIRE(holds(4, lane > 0 ? lane - 1 : 0));
    SELFTEST_REQUIRE(lane < 8 ? holds(5, lane ^ 4) : out[t][5] == T(0));
    SELFTEST_REQUIRE(holds(6, (lane ^ 8) < lane ? lane ^ 8 : lane));  // PTX, shfl.bfly: an earlier group can be read
  }
}

__global__ void votes(unsigned (*out)[6]) {
  const unsigned t = threadIdx.x, lane = t % 32;
  unsigned* mine = out[t];
  mine[0] = __ballot_sync(~0u, lane % 3 == 0);
  mine[1] = lane < 16 ? __ballot_sync(0x0000ffffu, t != 2) : __ballot_sync(0xffff0000u, t != 18);
  mine[2] = unsigned(__any_sync(~0u, t == 40));
  mine[3] = unsigned(__all_sync(~0u, t != 40));
  mine[4] = unsigned(__syncthreads_count(t % 5 == 0));
  mine[5] = unsigned(__syncthreads_or(t == 63)) * 2 + unsigned(__syncthreads_or(t == 64));
}

void check_votes() {
  unsigned out[64][6];
  launch(votes, 1, 64, 0, out);
  for (int t = 0; t < 64; ++t) {
    const bool first_warp = t < 32, low = t % 32 < 16;
    SELFTEST_REQUIRE(out[t][0] == 0x49249249u);
    SELFTEST_REQUIRE(out[t][1] == (low ? (first_warp ? 0xfffbu : 0xffffu) : (first_warp ? 0xfffb0000u : 0xffff0000u)));
    SELFTEST_REQUIRE(out[t][2] == !first_warp);
    SELFTEST_REQUIRE(out[t][3] == first_warp);
    SELFTEST_REQUIRE(out[t][4] == 13);
    SELFTEST_REQUIRE(out[t][5] == 2);
  }
}

__global__ void intrinsics(unsigned* out, float* sum) {
  out[0] = unsigned(__popc(0xf0f0u));
  out[1] = __umulhi(0x80000000u, 6u);
  __stcg(out + 2, __ldg(out + 1) + __ldcg(out + 1));
  __threadfence();
  atomicAdd(sum, 0.5f);
}

void check_intrinsics() {
  unsigned out[3];
  float sum = 0;
  launch(intrinsics, 2, 3, 0, out, &sum);
  SELFTEST_REQUIRE(out[0] == 8 && out[1] == 3 && out[2] == 6 && sum == 3);
}

// In place: block b's result is the sum over all others, of what they held before.
__global__ void sum_of_others(int* values) {
  __shared__ int own;
  if (threadIdx.x == 0) own = values[blockIdx.x];
  __syncthreads();
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += values[b];
  grid_sync();
  if (threadIdx.x == 0) values[blockIdx.x] = sum - own;
  grid_sync();
  if (threadIdx.x == 1) atomicAdd(values + (blockIdx.x + 1) % gridDim.x, 1);
}

void check_grid() {
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<int> values(8);
    for (int b = 0; b < 8; ++b) values[b] = 1 << b;
    launch_cooperative(sum_of_others, 8, 64, 0, values.data());
    for (int b = 0; b < 8; ++b) SELFTEST_REQUIRE(values[b] == 255 - (1 << b) + 1);
  }
}

// Blocks by threes, which meet as often as their number says: what a block adds up is what the three wrote in a round.
__global__ void sums_of_three(int* values, int* sums, uint32_t* arrivals) {
  const unsigned group = blockIdx.x / 3;
  if (threadIdx.x == 0 && blockIdx.x % 3 == 0) arrivals[group] = 0;
  grid_sync();
  for (unsigned round = 0; round <= group; ++round) {
    int* of_round = values + gridDim.x * round;
    if (threadIdx.x == 0) of_round[blockIdx.x] = int((round + 1) * (blockIdx.x + 1));
    meet_blocks(arrivals + group, 3 * (round + 1));
    if (threadIdx.x != 5) continue;
    for (unsigned b = 0; b < 3; ++b) sums[blockIdx.x] += of_round[group * 3 + b];
  }
}

void check_arrivals() {
  constexpr int blocks = 6;
  int values[2 * blocks] = {}, sums[blocks] = {};
  uint32_t arrivals[2] = {77, 77};
  launch_cooperative(sums_of_three, blocks, 64, 0, values, sums, arrivals);
  for (int b = 0; b < blocks; ++b) SELFTEST_REQUIRE(sums[b] == (b < 3 ? 6 : 45));
}

__global__ void too_few_arrive(uint32_t* arrivals) {
  if (blockIdx.x > 0) meet_blocks(arrivals, gridDim.x);
}

// Threads [first, …) of a block return.
__global__ void some_return(unsigned first) {
  if (threadIdx.x >= first) return;
  __syncthreads();
}

__global__ void some_wait_elsewhere() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void lane_returns() {
  if (threadIdx.x == 40) return;
  __syncwarp();
}

__global__ void half_a_warp_shuffles() {
  if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1, 1);
  __syncthreads();
}

__global__ void reads_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void some_blocks_sync() {
  if (blockIdx.x < 3) grid_sync();
}

__global__ void throws() {
  __syncthreads();
  if (threadIdx.x == 70) throw std::out_of_range("thrown by a thread");
  __syncthreads();
}

__global__ void nothing() {}

// Also under AddressSanitizer, which names this line.
__global__ void overruns(int count) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x] = 1;
  if (threadIdx.x == 5) shared[count] = 1;
}

__global__ void loads_vector(const float* x) {
  const uint4 vector = __ldcs(reinterpret_cast<const uint4*>(x + threadIdx.x));
  SELFTEST_REQUIRE(vector.x == 0);
}

void load_misaligned() {
  alignas(16) const float x[8] = {};
  launch(loads_vector, 1, 2, 0, x);
}

// Whatever went wrong in a launch, the next is not affected.
void check_after_failures() {
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (void (*kernel)() : {some_wait_elsewhere, lane_returns, throws}) {
      try {
        launch(kernel, 2, kThreads, 0);
        SELFTEST_REQUIRE(!"thrown");
      } catch (const std::runtime_error&) {
      } catch (const std::out_of_range&) {
      }
      check_block_sums();
    }
  }
}

const std::map<std::string, void (*)()> kCases = {
    {"block_sums", check_block_sums},
    {"several_os_threads", check_several_os_threads},
    {"order", print_order},
    {"shuffles", [] { check_shuffles<float>(), check_shuffles<double>(), check_shuffles<unsigned long long>(); }},
    {"votes", check_votes},
    {"intrinsics", check_intrinsics},
    {"grid", check_grid},
    {"arrivals", check_arrivals},
    {"after_failures", check_after_failures},
    {"some_return", [] { launch(some_return, 2, kThreads, 0, 128u); }},
    {"some_wait_elsewhere", [] { launch(some_wait_elsewhere, 1, kThreads, 0); }},
    {"lane_returns", [] { launch(lane_returns, 1, 64, 0); }},
    {"half_a_warp_shuffles", [] { launch(half_a_warp_shuffles, 1, 32, 0); }},
    {"lanes_that_are_not", [] { launch(lane_returns, 1, 40, 0); }},
    {"reads_outside_mask", [] { launch(reads_outside_mask, 1, 32, 0); }},
    {"some_blocks_sync", [] { launch_cooperative(some_blocks_sync, 4, 32, 0); }},
    {"too_few_arrive",
     [] {
       uint32_t arrivals = 0;
       launch_cooperative(too_few_arrive, 4, 32, 0, &arrivals);
     }},
    {"not_cooperative", [] { launch(some_blocks_sync, 2, 32, 0); }},
    {"throws", [] { launch(throws, 2, kThreads, 0); }},
    {"throws_cooperative", [] { launch_cooperative(throws, 2, kThreads, 0); }},
    {"overrun", [] { launch(overruns, 1, 6, 6 * sizeof(int), 6); }},
    {"misaligned", load_misaligned},
    {"no_threads", [] { launch(nothing, 1, 0, 0); }},
    {"too_many_threads", [] { launch(nothing, 1, 1025, 0); }},
    {"no_blocks", [] { launch(nothing, 0, 32, 0); }},
    {"too_much_shared", [] { launch(nothing, 1, 32, 300 << 10); }},
    {"too_many_resident", [] { launch_cooperative(nothing, multiprocessors() * 2 + 1, 1024, 0); }},
};

}  // namespace

int main(int, char** argv) try {
  kCases.at(argv[1])();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
