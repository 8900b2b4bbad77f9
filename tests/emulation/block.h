// The threads of one CUDA block, taking turns on one OS thread until all have returned from the kernel.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define FUSEDTRICKS_THREAD_STATE constinit inline thread_local __attribute__((tls_model("initial-exec")))
FUSEDTRICKS_THREAD_STATE uint3 threadIdx = {};
FUSEDTRICKS_THREAD_STATE uint3 blockIdx = {};
FUSEDTRICKS_THREAD_STATE dim3 blockDim = {};
FUSEDTRICKS_THREAD_STATE dim3 gridDim = {};

namespace fusedtricks::emulation {

constexpr unsigned kWarp = 32;

struct Launch {
  unsigned blocks, threads;
  size_t shared_bytes;
  std::function<void()> kernel;  // with its arguments
};

// FUSEDTRICKS_EMULATED_SCHEDULE: the order in which whatever could run next does. A kernel must not depend on it.
class Schedule {
 public:
  Schedule() {
    const char* variable = std::getenv("FUSEDTRICKS_EMULATED_SCHEDULE");
    name_ = variable ? variable : "in_order";
    if (name_ != "in_order" && name_ != "reversed" && name_ != "shuffled")
      throw std::runtime_error("FUSEDTRICKS_EMULATED_SCHEDULE=" + name_ + ": not in_order, reversed or shuffled");
  }

  // Puts items that are in order into the order of the schedule.
  template <class T>
  void arrange(std::vector<T>& items) {
    if (name_ == "reversed") std::reverse(items.begin(), items.end());
    if (name_ == "shuffled") std::shuffle(items.begin(), items.end(), random_);
  }

 private:
  std::string name_;
  std::minstd_rand random_{20260101};
};

// Dynamic shared memory of exactly the size of the launch, so that AddressSanitizer sees every access past its end.
// Without AddressSanitizer, writes close behind the end are found when the block has finished.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), data_(new unsigned char[bytes + kGuard]) {}

  void* data() { return data_.get(); }

  // Fills it with NaN, so that a value which no thread has written shows.
  void poison() {
    std::memset(data_.get(), 0xff, bytes_);
    std::memset(data_.get() + bytes_, kGuardByte, kGuard);
  }

  void check_guard() const {
    const unsigned char* guard = data_.get() + bytes_;
    if (std::any_of(guard, guard + kGuard, [](unsigned char byte) { return byte != kGuardByte; }))
      throw std::runtime_error("a thread wrote past " + std::to_string(bytes_) + " bytes of dynamic shared memory");
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGuard = 0;
#else
  static constexpr size_t kGuard = 256;
#endif
  static constexpr unsigned char kGuardByte = 0xa5;

  size_t bytes_;
  std::unique_ptr<unsigned char[]> data_;
};

// A place where a thread waits for others: for lanes of its warp, for its block, for the grid, or, together with its
// block, for a number of arrivals of blocks. Those who wait for each other must be at the same call in the source.
struct Rendezvous {
  enum Scope : uint8_t { kNone, kLanes, kBlock, kGrid, kArrivals, kExit } scope = kNone;
  const char* name = "";
  uint32_t lanes = 0;
  std::source_location where = {};
  const uint32_t* arrivals = nullptr;
  uint32_t all = 0;

  bool operator==(const Rendezvous& other) const {
    return scope == other.scope && lanes == other.lanes && where.line() == other.where.line() &&
           where.column() == other.where.column() && arrivals == other.arrivals && all == other.all;
  }

  std::string describe() const {
    if (scope == kExit) return "returned";
    char mask[24] = "";
    if (scope == kLanes) std::snprintf(mask, sizeof(mask), " of lanes 0x%08x", lanes);
    return std::string("at ") + name + mask + ", " + where.file_name() + ":" + std::to_string(where.line());
  }
};

// What a thread learns at a rendezvous.
struct Answer {
  uint64_t value;  // that of the lane it reads from
  uint32_t votes;  // of lanes: a bit for each whose value is not zero; of a block: how many those are
};

class Block {
 public:
  // wait_for_blocks(at): returns when the blocks that are waited for at this rendezvous have arrived.
  Block(const Launch& launch, std::function<void(const Rendezvous&)> wait_for_blocks)
      : launch_(launch),
        wait_for_blocks_(std::move(wait_for_blocks)),
        shared_(launch.shared_bytes),
        threads_(launch.threads),
        warps_((launch.threads + kWarp - 1) / kWarp),
        fibers_(FiberPools::borrow()) {}

  // Runs the block to its end. Throws what a thread throws, or an error if threads wait for something that cannot come.
  void run(unsigned index) {
    begin(index);
    while (exited_ < threads_.size()) {
      collect_ready();
      if (ready_.empty()) meet();
      schedule_.arrange(ready_);
      for (Thread* thread : ready_) resume(*thread);
    }
    shared_.check_guard();
  }

  // The block of the kernel that calls this.
  static Block& current() { return *current_; }
  void* shared() { return shared_.data(); }
  unsigned lane() const { return running_->index % kWarp; }
  // Copies as late as possible: a thread that reads the copy too early sees what was there before.
  void copy_later(void* to, const void* from) { running_->copies.emplace_back(to, from); }
  void finish_copies() {
    for (const auto& [to, from] : running_->copies) std::memcpy(to, from, 16);
    running_->copies.clear();
  }

  // Called by a thread of the block: lets others run until all threads that have to meet here have arrived.
  Answer wait(const Rendezvous& at, uint64_t value, unsigned source_lane) {
    Thread& thread = *running_;
    thread.at = at;
    thread.value = value;
    thread.source_lane = source_lane;
    if (at.scope == Rendezvous::kLanes) meet_lanes(thread);
    thread.fiber->suspend();
    return thread.answer;
  }

 private:
  struct Thread {
    unsigned index = 0;
    unsigned source_lane = 0;
    uint64_t value = 0;
    Answer answer = {};
    Fiber* fiber = nullptr;
    Rendezvous at;
    std::vector<std::pair<void*, const void*>> copies;  // of 16 bytes each, which it has not waited for yet
  };

  struct Warp {
    uint32_t ready = 0;    // lanes to resume
    uint32_t waiting = 0;  // lanes that wait for lanes
  };

  void begin(unsigned index) {
    shared_.poison();
    exited_ = 0;
    for (unsigned i = 0; i < threads_.size(); ++i) {
      threads_[i].index = i;
      threads_[i].copies.clear();
      make_ready(threads_[i]);
    }
    current_ = this;
    blockIdx = {index, 0, 0};
    blockDim = {launch_.threads, 1, 1};
    gridDim = {launch_.blocks, 1, 1};
  }

  Warp& warp_of(const Thread& thread) { return warps_[thread.index / kWarp]; }
  static uint32_t lane_bit(const Thread& thread) { return uint32_t(1) << thread.index % kWarp; }

  void make_ready(Thread& thread) {
    thread.at.scope = Rendezvous::kNone;
    warp_of(thread).ready |= lane_bit(thread);
  }

  template <class F>
  void for_lanes(unsigned warp, uint32_t lanes, const F& f) {
    for (; lanes; lanes &= lanes - 1) f(threads_[warp * kWarp + std::countr_zero(lanes)]);
  }

  void collect_ready() {
    ready_.clear();
    for (unsigned w = 0; w < warps_.size(); ++w) {
      for_lanes(w, std::exchange(warps_[w].ready, 0), [&](Thread& thread) { ready_.push_back(&thread); });
    }
  }

  void resume(Thread& thread) {
    running_ = &thread;
    threadIdx = {thread.index, 0, 0};
    if (!thread.fiber) {
      thread.fiber = &fibers_->take();
      thread.fiber->assign(&Block::run_kernel, this);
    }
    thread.fiber->resume();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    if (thread.at.scope == Rendezvous::kExit) {
      fibers_->put_back(*std::exchange(thread.fiber, nullptr));
      ++exited_;
    }
  }

  // On a fiber.
  static void run_kernel(void* argument) {
    Block& block = *static_cast<Block*>(argument);
    try {
      block.launch_.kernel();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.running_->at = {Rendezvous::kExit};
  }

  // The thread has come to a rendezvous of lanes. If it is the last one, all lanes get their answer.
  void meet_lanes(Thread& thread) {
    const unsigned index = thread.index / kWarp;
    Warp& warp = warps_[index];
    check_lanes(thread);
    warp.waiting |= lane_bit(thread);
    const uint32_t lanes = thread.at.lanes;
    if (lanes & ~warp.waiting) return;
    const Rendezvous at = thread.at;
    bool together = true;
    uint32_t votes = 0;
    for_lanes(index, lanes, [&](Thread& other) {
      together = together && other.at == at;
      votes |= other.value ? lane_bit(other) : 0;
    });
    if (!together) return;
    for_lanes(index, lanes, [&](Thread& other) {
      other.answer = {threads_[index * kWarp + other.source_lane].value, votes};
      make_ready(other);
    });
    warp.waiting &= ~lanes;
  }

  void check_lanes(const Thread& thread) const {
    const uint32_t lanes = thread.at.lanes;
    const unsigned in_warp = std::min<size_t>(kWarp, threads_.size() - thread.index / kWarp * kWarp);
    const char* wrong = nullptr;
    if (uint64_t(lanes) >> in_warp) wrong = "its warp has fewer lanes";
    if (!(lanes & lane_bit(thread))) wrong = "its own lane is not among them";
    if (!(lanes >> thread.source_lane & 1)) wrong = "it reads a lane that is not among them";
    if (wrong)
      throw std::runtime_error("thread " + std::to_string(thread.index) + " of block " + std::to_string(blockIdx.x) +
                               " " + thread.at.describe() + ": " + wrong);
  }

  // No thread can run. Either all of them wait at the same rendezvous, or they would wait for ever.
  void meet() {
    const Rendezvous at = threads_.front().at;
    const bool of_blocks = at.scope == Rendezvous::kGrid || at.scope == Rendezvous::kArrivals;
    const bool of_all = at.scope == Rendezvous::kBlock || of_blocks;
    if (!of_all || !std::all_of(threads_.begin(), threads_.end(), [&](const Thread& t) { return t.at == at; }))
      throw std::runtime_error(divergence());
    if (of_blocks) wait_for_blocks_(at);
    const auto votes = std::count_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.value != 0; });
    for (Thread& thread : threads_) {
      thread.answer = {0, uint32_t(votes)};
      make_ready(thread);
    }
  }

  std::string divergence() const {
    std::vector<std::pair<Rendezvous, int>> groups;
    for (const Thread& thread : threads_) {
      const auto same = [&](const auto& group) { return group.first == thread.at; };
      const auto group = std::find_if(groups.begin(), groups.end(), same);
      if (group == groups.end())
        groups.emplace_back(thread.at, 1);
      else
        ++group->second;
    }
    std::string text = "barrier divergence in block " + std::to_string(blockIdx.x) + ", threads:";
    for (const auto& [at, count] : groups) text += " " + std::to_string(count) + " " + at.describe() + ";";
    text.back() = '.';
    return text;
  }

  FUSEDTRICKS_THREAD_STATE static Block* current_ = nullptr;

  const Launch& launch_;
  std::function<void(const Rendezvous&)> wait_for_blocks_;
  SharedMemory shared_;
  Schedule schedule_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_;
  FiberPools::Borrowed fibers_;
  Thread* running_ = nullptr;
  size_t exited_ = 0;
  std::exception_ptr error_;
};

}  // namespace fusedtricks::emulation

#undef FUSEDTRICKS_THREAD_STATE
