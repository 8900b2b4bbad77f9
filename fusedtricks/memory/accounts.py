"""What one forward keeps for the backward: every tensor, who keeps it, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .reasons import reason_for
from .saves import Depth, Saved, Watcher, storages_of


@dataclass(frozen=True)
class KeptTensor:
    """Memory that is kept for the backward, or would be if it were not computed again.

    Attributes:
        layers: the names of all modules that keep it, in the order in which they do; the model's own is "".
        producer: the node of autograd that made it, such as "ConvolutionBackward0"; "input" for an input of the model;
            "" if it was computed without a gradient, or is kept only for what is computed again from it.
        shape: of the tensor that the first of them keeps.
        dtype: of that tensor.
        bytes: of the whole memory that it lies in.
        reason: what it is and why it is kept.
    """

    layers: tuple[str, ...]
    producer: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    reason: str


@dataclass(frozen=True)
class Account:
    """What one forward keeps for the backward. Memory that several layers keep is listed once.

    Attributes:
        kept: all but parameters, buffers and the model's inputs, which exist anyway.
        recomputed: what is computed again in the backward and kept by nobody.
        inputs: those of the model's inputs that are kept.
        measured: the bytes that the allocator says are alive after the forward and were not before, without the
            model's outputs unless they are kept. None on meta tensors, on devices whose allocator does not say, and
            while a profiler runs.
    """

    kept: list[KeptTensor] = field(default_factory=list)
    recomputed: list[KeptTensor] = field(default_factory=list)
    inputs: list[KeptTensor] = field(default_factory=list)
    measured: int | None = None

    @property
    def bytes(self) -> int:
        """The sum of what is kept."""
        return sum(tensor.bytes for tensor in self.kept)

    @property
    def recomputed_bytes(self) -> int:
        """The sum of what is computed again instead of being kept."""
        return sum(tensor.bytes for tensor in self.recomputed)


def account_of(watcher: Watcher, depth: Depth, owned: Set[int], inputs: Set[int]) -> Account:
    """Adds up what is saved, without `measured`.

    Args:
        watcher: has looked on. The forward's result must still be there, since it holds the graph.
        depth: that of the watcher, for the reasons.
        owned: the storages of parameters and buffers.
        inputs: those of the model's inputs.
    """
    kept, recomputed = _by_storage(watcher, is_recipe=False), _by_storage(watcher, is_recipe=True)
    listed = {key: _kept_tensor(found, depth, key in inputs) for key, found in kept.items() if key not in owned}
    elsewhere = kept.keys() | owned | inputs
    return Account(
        kept=[tensor for key, tensor in listed.items() if key not in inputs and tensor.bytes],
        recomputed=[_kept_tensor(found, depth) for key, found in recomputed.items() if key not in elsewhere],
        inputs=[tensor for key, tensor in listed.items() if key in inputs],
    )


class _Found(NamedTuple):
    """Everything that was saved in one piece of memory."""

    bytes: int
    saved: list[Saved]


def _by_storage(watcher: Watcher, is_recipe: bool) -> dict[int, _Found]:
    found: dict[int, _Found] = {}
    for saved, storages in watcher.alive():
        for storage in storages if saved.is_recipe == is_recipe else ():
            found.setdefault(storage.key, _Found(storage.bytes, [])).saved.append(saved)
    return found


def _kept_tensor(found: _Found, depth: Depth, is_input: bool = False) -> KeptTensor:
    saved = [each for each in found.saved if not each.is_source] or found.saved
    first = saved[0]
    layers = tuple(dict.fromkeys(each.layer for each in saved))
    producer = "input" if is_input else first.producer
    reason = "an input of the model" if is_input else reason_for(saved, depth)
    return KeptTensor(layers, producer, first.shape, first.dtype, found.bytes, reason)


def keys_of(tensors: Iterable[Any]) -> set[int]:
    """The storages of those among the leaves of some values that are tensors."""
    return {storage.key for t in tree_leaves(list(tensors)) if isinstance(t, Tensor) for storage in storages_of(t)}


def bytes_kept(forward: Callable[..., object], *inputs: Any, recompute: Depth = False) -> int:
    """Bytes of memory that a forward keeps for the backward: also inputs, but no parameters and buffers.

    Args:
        forward: a module or a function. It is called once.
        inputs: its arguments.
        recompute: the depth of a `fusedtricks.recompute` to call it in; False for none.
    """
    with Watcher(None, recompute) as watcher:
        result = forward(*inputs)
    owned = keys_of([*forward.parameters(), *forward.buffers()]) if isinstance(forward, nn.Module) else set()
    account = account_of(watcher, recompute, owned, set())
    del result  # up to here it holds the graph
    return account.bytes
