"""`recompute`: outputs of fused layers are computed again in the backward instead of being kept for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .. import _C

_LARGEST = 2**31 - 1  # an int in C++


class recompute:
    r"""While it is entered, outputs of fused layers are not kept for the backward: they are computed again there.

    The output of a fused layer follows from what its own backward keeps: for BatchNorm and an activation the input and
    two values a channel, for dropout a seed besides. So the next convolution, linear layer or pooling, which would keep
    the output too, keeps a reference to the layer's inputs instead, and one elementwise pass computes the output again
    when a backward needs it: once for all who do. Gradients have the same bits; running statistics and
    `num_batches_tracked` change once, in the forward. Every output costs at most one more pass over memory, which
    reads the input (and the residual) and writes the output.

        with fusedtricks.recompute():
            loss = criterion(model(x), y)
        loss.backward()

    Recomputed are the outputs of BatchNorm with activation, residual and dropout; of activations whose backward needs
    their input, such as GELU and SiLU, alone or with bias and dropout; of dropout and stochastic depth behind these;
    concatenations by `fusedtricks.functional.cat` (`fuse` puts it in place of `torch.cat`); and all views of them. All
    other tensors are kept as always, as is whatever a fused layer's output was changed into in place.
    `fusedtricks.memory_report` says what is kept, and why.

    **Residual joints.** The output of a joint, act(layer + residual), follows from the layer's input and the residual.
    If that is itself recomputed, a backward has to go through several joints. `depth` says through how many at most.
    0: the output of every joint is kept; a bottleneck of ResNet-50 keeps 10 units of its 12. 1: every other joint is
    kept, 8 units. None: all joints in a row are recomputed, 6 units; then, while the backward is in that row, the
    outputs between are held until they have been used. In all cases each output is computed at most once.

    **With other tools.** Hooks of others on saved tensors go first, inside and outside: where they are active
    (`torch.utils.checkpoint`, `save_on_cpu`), this does nothing. So it does inside `torch.compile`, whose compiler
    decides on its own what to keep (`torch._functorch.config.activation_memory_budget`); around a model that was
    compiled with `backend="fusedtricks"` it recomputes. Inside transforms of `torch.func` it does nothing; a transform
    inside of it raises torch's own error, as with any hooks. Several contexts may be nested; the inner one's depth
    counts. It holds for the thread that enters it.

    A tensor that was kept, or that an output follows from, must not be changed in place before the backward; torch's
    own error is raised if it was. This holds for the inputs of `functional.cat` and for residuals too, which stock may
    not keep. Changes that torch does not count, through `.data` or numpy, go unnoticed, here as everywhere: a backward
    sees a fused layer's output as the layer computed it.

    Args:
        depth: the number of residual joints that one recomputation may go through, or None for any number.

    Raises:
        ValueError: `depth` is negative.
        TypeError: `depth` is neither an int nor None.
    """

    def __init__(self, *, depth: int | None = 1) -> None:
        if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool)):
            raise TypeError(f"recompute(): argument 'depth' must be int or None, not {type(depth).__name__}")
        if depth is not None and depth < 0:
            raise ValueError(f"recompute(): argument 'depth' is {depth}, but must be at least 0")
        self.depth = depth

    def __enter__(self) -> recompute:
        if not torch.compiler.is_compiling():
            begin(self.depth)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not torch.compiler.is_compiling():
            end()

    def __repr__(self) -> str:
        return f"recompute(depth={self.depth})"


Save = Callable[[Tensor], Any]
Load = Callable[[Any], Tensor]


class Entered(NamedTuple):
    """A context that a thread is in: its hooks, None if it stands back for hooks of others."""

    hooks: saved_tensors_hooks | None
    save: Save
    load: Load


class _Contexts(threading.local):
    """Those that this thread is in, innermost last."""

    def __init__(self) -> None:
        self.entered: list[Entered] = []


_contexts = _Contexts()


def begin(depth: int | None, save: Save | None = None, load: Load | None = None) -> bool:
    """Begins to recompute. Returns False if hooks of others are active, which then keep what is saved.

    Args:
        depth: as of `recompute`.
        save: makes what is kept of a tensor, for those who look on: calls `_C.save_tensor`. By default that of the
            context around this one, so that they go on looking.
        load: its reverse.
    """
    around = _contexts.entered[-1] if _contexts.entered else Entered(None, _C.save_tensor, _C.load_tensor)
    save, load = save or around.save, load or around.load
    hooks = saved_tensors_hooks(save, load) if _C.may_recompute() else None
    if hooks is not None:
        hooks.__enter__()
        _C.begin_recomputing(_LARGEST if depth is None else min(depth, _LARGEST))
    _contexts.entered.append(Entered(hooks, save, load))
    return hooks is not None


def end() -> None:
    """Ends what the last `begin` of this thread began."""
    if not _contexts.entered:
        raise RuntimeError("recompute(): it is left in another thread than it was entered in")
    hooks = _contexts.entered.pop().hooks
    if hooks is not None:
        hooks.__exit__()
        _C.end_recomputing()
