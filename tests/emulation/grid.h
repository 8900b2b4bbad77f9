// Launches: blocks one after another, or all of them resident.
#pragma once

#include <deque>
#include <numeric>
#include <semaphore>
#include <thread>

#include "block.h"

namespace fusedtricks::emulation {

// Of an H200.
constexpr int kMostThreads = 1024, kThreadsOfMultiprocessor = 2048, kBlocksOfMultiprocessor = 32;
constexpr size_t kMostShared = 227 << 10, kSharedOfMultiprocessor = 228 << 10, kSharedReserved = 1 << 10;

// A number of at least 1 in an environment variable.
inline int64_t setting(const char* name, int64_t otherwise) {
  const char* variable = std::getenv(name);
  const int64_t value = variable ? std::atoll(variable) : otherwise;
  if (value < 1) throw std::runtime_error(std::string(name) + "=" + variable + ": not a number >= 1");
  return value;
}

inline int multiprocessors() { return int(setting("FUSEDTRICKS_EMULATED_SMS", 4)); }

// What the kernels are told. With a small number they must divide what would otherwise fit into one block.
inline int64_t shared_memory_per_block(int blocks) {
  return std::min<int64_t>(kSharedOfMultiprocessor / blocks - kSharedReserved,
                           setting("FUSEDTRICKS_EMULATED_SHARED", kMostShared));
}

// How many blocks fit on the GPU, as far as threads and shared memory limit that.
inline int64_t resident_blocks(int threads, size_t shared_bytes) {
  const int64_t by_shared = kSharedOfMultiprocessor / (shared_bytes + kSharedReserved);
  const int64_t by_threads = kThreadsOfMultiprocessor / threads;
  return multiprocessors() * std::min<int64_t>({kBlocksOfMultiprocessor, by_threads, by_shared});
}

inline void check_configuration(int64_t blocks, int threads, size_t shared_bytes) {
  if (blocks >= 1 && blocks <= INT32_MAX && threads >= 1 && threads <= kMostThreads && shared_bytes <= kMostShared)
    return;
  throw std::runtime_error("invalid launch: " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                           " threads and " + std::to_string(shared_bytes) + " bytes of shared memory");
}

inline void run_blocks(const Launch& launch) {
  std::vector<unsigned> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0);
  Schedule().arrange(order);
  Block block(launch, [](const Rendezvous& at) {
    throw std::runtime_error(std::string(at.name) + "() in a kernel that was not launched as cooperative");
  });
  for (unsigned index : order) block.run(index);
}

// A block of a cooperative launch, on an OS thread of its own, which also gives it static shared memory of its own. It
// only runs during calls of advance().
class ResidentBlock {
 public:
  ResidentBlock(const Launch& launch, unsigned index) : thread_([this, &launch, index] { main(launch, index); }) {}

  ~ResidentBlock() {
    stopping_ = true;
    resumed_.release();
    thread_.join();
  }

  // Lets it run to the next place where it waits for other blocks, or to its end.
  void advance() {
    resumed_.release();
    paused_.acquire();
    if (error_) std::rethrow_exception(error_);
  }

  bool is_finished() const { return finished_; }
  bool is_at(Rendezvous::Scope scope) const { return !finished_ && at_.scope == scope; }
  // Whether it has not begun yet, or all arrivals that it waits for have been counted.
  bool may_advance() const {
    return is_at(Rendezvous::kNone) || (is_at(Rendezvous::kArrivals) && *at_.arrivals >= at_.all);
  }

 private:
  struct Stopped {};

  void main(const Launch& launch, unsigned index) {
    try {
      await_turn();
      Block(launch, [this](const Rendezvous& at) {
        at_ = at;
        paused_.release();
        await_turn();
      }).run(index);
    } catch (const Stopped&) {
    } catch (...) {
      error_ = std::current_exception();
    }
    finished_ = true;
    paused_.release();
  }

  void await_turn() {
    resumed_.acquire();
    if (stopping_) throw Stopped{};
  }

  Rendezvous at_;
  std::binary_semaphore resumed_{0}, paused_{0};
  bool stopping_ = false, finished_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

inline void run_resident(const Launch& launch) {
  if (launch.blocks > resident_blocks(launch.threads, launch.shared_bytes))
    throw std::runtime_error("cooperative launch of " + std::to_string(launch.blocks) + " blocks, resident at once: " +
                             std::to_string(resident_blocks(launch.threads, launch.shared_bytes)));
  std::deque<ResidentBlock> blocks;
  for (unsigned i = 0; i < launch.blocks; ++i) blocks.emplace_back(launch, i);
  Schedule schedule;
  const auto those = [&](const auto& predicate) {
    std::vector<ResidentBlock*> found;
    for (ResidentBlock& block : blocks) {
      if (predicate(block)) found.push_back(&block);
    }
    return found;
  };
  while (!those([](auto& block) { return !block.is_finished(); }).empty()) {
    auto ready = those([](auto& block) { return block.may_advance(); });
    if (ready.empty()) {
      ready = those([](auto& block) { return block.is_at(Rendezvous::kGrid); });
      const size_t counting = those([](auto& block) { return block.is_at(Rendezvous::kArrivals); }).size();
      if (counting > 0)
        throw std::runtime_error(std::to_string(counting) + " of " + std::to_string(blocks.size()) +
                                 " blocks wait for arrivals that do not come");
      if (ready.size() < blocks.size())
        throw std::runtime_error("grid barrier divergence: " + std::to_string(ready.size()) + " of " +
                                 std::to_string(blocks.size()) + " blocks at grid_sync(), the others returned");
    }
    schedule.arrange(ready);
    for (ResidentBlock* block : ready) block->advance();
  }
}

}  // namespace fusedtricks::emulation
