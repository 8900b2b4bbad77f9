// Flows of control with stacks of their own: what the threads of an emulated CUDA block run on.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(FUSEDTRICKS_EMULATED_UCONTEXT)
#define FT_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fusedtricks::emulation {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // its reports are written on the stack that runs
inline void leave_stack(void** fake, const void* next, size_t bytes) {
  __sanitizer_start_switch_fiber(fake, next, bytes);
}
inline void enter_stack(void* fake, const void** last, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake, last, bytes);
}
inline void forget_frames(const void* stack) { ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes); }
#else
constexpr size_t kStackBytes = 64 << 10;
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
inline void forget_frames(const void*) {}
#endif

// kStackBytes above a page that cannot be accessed, so that an overflow is a fault and never damages another stack.
class Stack {
 public:
  Stack() : guard_(sysconf(_SC_PAGESIZE)) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapping = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapping, guard_, PROT_NONE);
    mapping_ = static_cast<char*>(mapping);
  }

  ~Stack() {
    forget_frames(low());
    munmap(mapping_, guard_ + kStackBytes);
  }

  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  char* low() const { return mapping_ + guard_; }

 private:
  size_t guard_;
  char* mapping_;
};

#if defined(FT_UCONTEXT)

struct Context {
  ucontext_t registers;

  // The first switch to it calls entry(argument), on the lowest `bytes` of the stack.
  void prepare(const Stack& stack, size_t bytes, void (*entry)(void*), void* argument) {
    getcontext(&registers);
    registers.uc_stack.ss_sp = stack.low();
    registers.uc_stack.ss_size = bytes;
    registers.uc_link = nullptr;
    const uintptr_t words[] = {reinterpret_cast<uintptr_t>(entry), reinterpret_cast<uintptr_t>(argument)};
    makecontext(&registers, reinterpret_cast<void (*)()>(call), 4, unsigned(uint64_t(words[0]) >> 32),
                unsigned(words[0]), unsigned(uint64_t(words[1]) >> 32), unsigned(words[1]));
  }

  void switch_to(Context& next) { swapcontext(&registers, &next.registers); }

 private:
  // makecontext passes ints only.
  static void call(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
    const auto join = [](unsigned high, unsigned low) { return uintptr_t(uint64_t(high) << 32 | low); };
    reinterpret_cast<void (*)(void*)>(join(entry_high, entry_low))(
        reinterpret_cast<void*>(join(argument_high, argument_low)));
  }
};

#else

// Leaves the registers that a call preserves on the stack and its address in *last, and returns to where `next` was
// left. A stack that was never left starts with a call of entry(argument).
extern "C" void fusedtricks_switch_stacks(void** last, void* next, void* argument);
asm(R"(
  .pushsection .text
  .weak fusedtricks_switch_stacks
  .hidden fusedtricks_switch_stacks
  .type fusedtricks_switch_stacks, @function
fusedtricks_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  movq %rdx, %rdi
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fusedtricks_switch_stacks, . - fusedtricks_switch_stacks
  .popsection
)");

struct Context {
  void* left_at = nullptr;
  void* argument = nullptr;

  // The first switch to it calls entry(argument), on the lowest `bytes` of the stack.
  void prepare(const Stack& stack, size_t bytes, void (*entry)(void*), void* argument_of_entry) {
    // From the top: a return address that ends backtraces, entry, six registers.
    void** top = reinterpret_cast<void**>(stack.low() + bytes);
    for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    left_at = top - 8;
    argument = argument_of_entry;
  }

  void switch_to(Context& next) { fusedtricks_switch_stacks(&left_at, next.left_at, next.argument); }
};

#endif

// Does one piece of work after the other, each in any number of turns. Between two pieces of work it can move to
// another OS thread.
class Fiber {
 public:
  // Fibers that are used together differ in `number`: the tops of their stacks then do not share cache sets.
  explicit Fiber(size_t number) {
    constexpr size_t kColours = 16, kColourBytes = 256;
    own_.prepare(stack_, kStackBytes - number % kColours * kColourBytes, &Fiber::main, this);
  }

  // Only while the fiber has no unfinished work.
  void assign(void (*work)(void*), void* argument) { work_ = work, argument_ = argument; }

  // Continues the work until it suspends itself or is finished.
  void resume() {
    void* fake = nullptr;
    leave_stack(&fake, stack_.low(), kStackBytes);
    resumer_.switch_to(own_);
    enter_stack(fake, nullptr, nullptr);
  }

  // On the fiber: back to the caller of resume().
  void suspend() {
    leave_stack(&fake_, resumer_stack_, resumer_bytes_);
    own_.switch_to(resumer_);
    enter_stack(fake_, &resumer_stack_, &resumer_bytes_);
  }

 private:
  static void main(void* fiber) {
    Fiber& self = *static_cast<Fiber*>(fiber);
    enter_stack(nullptr, &self.resumer_stack_, &self.resumer_bytes_);
    for (;; self.suspend()) self.work_(self.argument_);
  }

  Stack stack_;
  Context own_, resumer_;
  void (*work_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_ = nullptr;  // AddressSanitizer's copy of this stack
  const void* resumer_stack_ = nullptr;
  size_t resumer_bytes_ = 0;
};

class FiberPool {
 public:
  // The fiber that was put back last: its stack is still in the caches.
  Fiber& take() {
    if (idle_.empty()) idle_.push_back(&fibers_.emplace_back(fibers_.size()));
    Fiber& fiber = *idle_.back();
    idle_.pop_back();
    return fiber;
  }

  void put_back(Fiber& fiber) { idle_.push_back(&fiber); }
  bool all_idle() const { return idle_.size() == fibers_.size(); }

 private:
  std::deque<Fiber> fibers_;
  std::vector<Fiber*> idle_;
};

// Pools are passed on from one borrower to the next, because mapping stacks takes far longer than most launches.
class FiberPools {
 public:
  // One with unfinished work is not used again.
  struct GiveBack {
    void operator()(FiberPool* pool) const {
      std::unique_ptr<FiberPool> owned(pool);
      if (!pool->all_idle()) return;
      const std::lock_guard lock(all().mutex_);
      all().pools_.push_back(std::move(owned));
    }
  };
  using Borrowed = std::unique_ptr<FiberPool, GiveBack>;

  static Borrowed borrow() {
    const std::lock_guard lock(all().mutex_);
    auto& pools = all().pools_;
    if (pools.empty()) return Borrowed(new FiberPool);
    Borrowed pool(pools.back().release());
    pools.pop_back();
    return pool;
  }

 private:
  // Never destroyed: threads may outlive static objects.
  static FiberPools& all() {
    static FiberPools& pools = *new FiberPools;
    return pools;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<FiberPool>> pools_;
};

}  // namespace fusedtricks::emulation
