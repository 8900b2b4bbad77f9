// How a call of batch_norm_act is divided if it is made in one persistent kernel, and whether that is worth it.
#pragma once

#include "cuda/batch_norm/finish.cuh"
#include "cuda/batch_norm/path.h"
#include "cuda/batch_norm/persistent_block.cuh"
#include "cuda/batch_norm/statistics.cuh"

namespace fusedtricks::cuda {

template <class Walk>
struct PersistentPlan {
  typename Walk::Plan plan;
  Persistent persistent;  // no slots if not even one step of a part fits into shared memory

  // tensors: those whose packs are kept. merged: bytes that the threads of a block need to merge their results.
  PersistentPlan(const Layout& layout, int tensors, size_t merged) : plan(Walk::Plan::make(layout)) {
    persistent.scratch_bytes = int64_t(std::max(pivot_bytes<double>(plan) + merged, total_bytes(plan)));
    const int64_t step_bytes = int64_t(kThreads) * kPackBytes * tensors, all = ceil_div(plan.items, plan.teams());
    const int64_t room = shared_memory_per_block(kBlocks) - persistent.scratch_bytes - table_bytes();
    const int64_t most = room / step_bytes;
    if (most < 1) return;
    // Two groups share a multiprocessor even if neither of them then fits completely: one works while the other waits.
    const int64_t blocks = int64_t(kBlocks) * multiprocessors();
    const int64_t needed = std::min(ceil_div(all, most), blocks / std::min<int64_t>(plan.groups, kBlocks));
    const int64_t turns = ceil_div(plan.groups, std::min(plan.groups, blocks / needed));
    persistent.slots = int(ceil_div(plan.groups, turns));
    const int64_t useful = std::min(blocks / persistent.slots, ceil_div(all, kStepsOfBlock));
    const int64_t members = needed > 1 ? std::max(needed, useful) : 1;
    plan.division = Chunks::make(plan.items, members);
    persistent.steps = int(std::min(most, ceil_div(ceil_div(plan.items, members), plan.teams())));
    persistent.kept_bytes = persistent.steps * step_bytes;
  }

  // Whether it is used on this path. With auto only if no block waits for another. Nor if there are few blocks with
  // much to do, because two kernels would spread that work over all multiprocessors.
  bool is_used(Path path) const {
    if (!is_possible() || path == Path::kTwo) return false;
    const bool keeps_busy = persistent.steps <= kStepsOfBlock || 2 * persistent.slots >= 3 * multiprocessors();
    return path == Path::kPersistent || (!is_shared(plan) && keeps_busy);
  }

  template <class V>
  int64_t workspace_bytes(int64_t channels) const {
    return arrivals_offset<V>(channels) + persistent.slots * int64_t(sizeof(uint32_t)) * kArrivalsApart;
  }

  template <class V, class Kernel, class Call, class Act>
  void launch_kernel(Kernel* kernel, const Call& a, const Act& act) const {
    const int64_t channels = a.layout.channels, blocks = persistent.slots * plan.division.chunks;
    const int64_t shared_bytes = persistent.kept_bytes + persistent.scratch_bytes + table_bytes();
    const Workspace<V> workspace(a.workspace, plan.partials(), channels);
    Persistent placed = persistent;
    placed.arrivals = reinterpret_cast<uint32_t*>(static_cast<char*>(a.workspace) + arrivals_offset<V>(channels));
    if (is_shared(plan))
      launch_cooperative(kernel, blocks, kThreads, shared_bytes, a, plan, placed, workspace, act);
    else
      launch(kernel, blocks, kThreads, shared_bytes, a, plan, placed, workspace, act);
  }

 private:
  int64_t table_bytes() const { return kCoefficients * int64_t(sizeof(double)) * plan.block_channels(); }

  // If rows are folded, a group needs the partial results of all groups, so all of them must have their turn together.
  bool is_possible() const { return persistent.slots && (plan.fold == 1 || persistent.slots == plan.groups); }

  // In the workspace, behind the partial results.
  template <class V>
  int64_t arrivals_offset(int64_t channels) const {
    return Workspace<V>::bytes(plan.partials(), channels);
  }
};

}  // namespace fusedtricks::cuda
