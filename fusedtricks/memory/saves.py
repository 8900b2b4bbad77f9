"""Looks on while a forward saves tensors for the backward."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _C
from .recompute import begin, end

Depth = int | None | Literal[False]
"""The depth of `recompute`; False if nothing is recomputed."""

_OURS = ("fusedtricks.functional.", "fusedtricks.nn.", "fusedtricks.fusing.running.")
_RESIDUALS = {"batch_norm_act": 3, "batch_norm_act_dropout": 3, "act_dropout": 2, "feature_dropout": 1}  # among inputs


class Storage(NamedTuple):
    """A piece of memory. Comparing is safe: an address is not used again while somebody has a weak reference."""

    weak: StorageWeakRef
    bytes: int

    @property
    def key(self) -> int:
        return self.weak.cdata


class Saved(NamedTuple):
    """What was saved, without the tensor.

    Attributes:
        producer: the name of the node of autograd that made the tensor, "" if none did.
        is_joint: whether that is a fused layer that added a residual with a gradient.
        is_for_ours: whether a fused layer saves it.
        is_recipe: whether it is computed again instead of being kept.
        is_source: whether it is not saved itself, but kept for one that is computed again. Its producer is not known.
        why_kept: `_C`'s reason, "" outside `recompute`.
    """

    layer: str
    producer: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_joint: bool
    is_for_ours: bool
    is_recipe: bool
    is_source: bool
    why_kept: str


class Save(NamedTuple):
    """A tensor that was saved, and the memory that it lies in."""

    saved: Saved
    storages: list[Storage]


class _Packed:
    """What the graph holds of a saved tensor. When the graph is freed, it is too."""

    __slots__ = ("__weakref__", "content")

    def __init__(self, content: Any) -> None:
        self.content = content


def _unpack_tensor(packed: _Packed) -> Tensor:
    return packed.content


def _unpack_saved(packed: _Packed) -> Tensor:
    return _C.load_tensor(packed.content)


class Watcher:
    """While it is entered, notes what this thread saves for a backward.

    It holds no tensors and nothing of a graph, so all memory lives as long as it would without.

    Args:
        model: whose modules are named as those who save.
        depth: of a `recompute` to run meanwhile; without one, those in the model stand back.
    """

    def __init__(self, model: nn.Module | None, depth: Depth) -> None:
        modules = [] if model is None else model.named_modules()
        self._names: Mapping[int, str] = {id(module): name for name, module in modules}
        self._depth = depth
        self._noted: list[tuple[weakref.ReferenceType[_Packed], Save]] = []
        self._around = contextlib.ExitStack()

    def __enter__(self) -> Watcher:
        if self._depth is False:
            self._around.enter_context(saved_tensors_hooks(self._pack_tensor, _unpack_tensor))
            return self
        begin(self._depth, self._pack_saved, _unpack_saved)
        self._around.callback(end)
        return self

    def __exit__(self, *error: object) -> None:
        self._around.close()

    def alive(self) -> Iterator[Save]:
        """What is saved now, in the order in which it was."""
        return (save for packed, save in self._noted if packed() is not None)

    def kept(self) -> set[int]:
        """The storages that are kept now."""
        return {storage.key for save in self.alive() if not save.saved.is_recipe for storage in save.storages}

    def _pack_tensor(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor.detach())
        self._note(packed, tensor)
        return packed

    def _pack_saved(self, tensor: Tensor) -> _Packed:
        saved = _C.save_tensor(tensor)
        is_recipe, reason = _C.describe_saved(saved)
        packed = _Packed(saved)
        self._note(packed, tensor, is_recipe=is_recipe, why_kept=reason)
        for source in _C.kept_for(saved) if is_recipe else ():
            self._note(packed, source, is_source=True)
        return packed

    def _note(
        self,
        packed: _Packed,
        tensor: Tensor,
        is_recipe: bool = False,
        is_source: bool = False,
        why_kept: str = "",
    ) -> None:
        base = tensor._base if tensor._is_view() and tensor._base is not None else tensor
        node = base.grad_fn
        saved = Saved(
            layer=self._layer(),
            producer=node.name() if node else "",
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            is_joint=node is not None and _adds_residual(node),
            is_for_ours=_is_for_ours(),
            is_recipe=is_recipe,
            is_source=is_source,
            why_kept=why_kept,
        )
        self._noted.append((weakref.ref(packed), Save(saved, storages_of(tensor))))

    def _layer(self) -> str:
        """The innermost module that is being called.

        It is read off the stack, since chains are not fused where modules have hooks. The variables of a frame of
        `_call_impl` are arguments alone: looking at them holds them for as long as the frame does anyway.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name == "_call_impl":
                name = self._names.get(id(frame.f_locals.get("self")))
                if name is not None:
                    return name
            frame = frame.f_back
        return ""


def _is_for_ours() -> bool:
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith(_OURS)


def _adds_residual(node: torch.autograd.graph.Node) -> bool:
    place = _RESIDUALS.get(node.name().removesuffix("_gradient"))
    inputs = node.next_functions
    return place is not None and len(inputs) > place and inputs[place][0] is not None


def storages_of(tensor: Tensor) -> list[Storage]:
    """The memory that a tensor lies in: of a sparse tensor or one made of others that of its parts."""
    return [Storage(StorageWeakRef(part.untyped_storage()), part.untyped_storage().nbytes()) for part in _parts(tensor)]


def _parts(tensor: Tensor) -> list[Tensor]:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return _parts(torch._C._functorch.get_unwrapped(tensor))
    if is_traceable_wrapper_subclass(tensor):
        names: list[str] = tensor.__tensor_flatten__()[0]
        return [part for name in names for part in _parts(getattr(tensor, name))]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor] if tensor.layout is torch.strided else []
