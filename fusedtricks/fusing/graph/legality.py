"""Whether a chain certainly gives the same as its members, although it runs at its end and keeps other tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ..layers import activations, drop_paths, walk
from ..layers.activations import Activation
from ..layers.libraries import library_of
from .aliases import INPUT, Modules, is_only_read, is_used_once, keeps_input, may_change, may_share_memory
from .chain import Chain
from .kinds import (
    ACTIVATION,
    ADDITION,
    DROP_PATH,
    DROPOUT,
    FRACTIONAL_POOL,
    LINEAR,
    MAX_POOL,
    NORM,
    activation_of,
    writes,
)

_RANDOM_NAMES = (
    *("dropout", "rand", "bernoulli", "attention", "fractional", "rrelu", "normal", "multinomial", "gumbel"),
    *("uniform", "exponential", "poisson", "cauchy", "geometric"),
)


def what_is_kept_may_change(chain: Chain, modules: Modules) -> str:
    """The reason if something that the operator, but not stock, keeps for backward may be changed in place; else ""."""
    kept = _kept(chain, modules)
    if "result" in kept and not is_only_read(chain.end, modules, is_new=True):
        return "its result may be changed in place"
    after = list(_after(chain.end))
    if "residual" in kept and chain.residual is not None and _may_change_later(chain.residual, after, modules):
        return "what is added may be changed in place later"
    if "source" in kept and _may_change_later(chain.source, after, modules):
        return "its input may be changed in place later"
    return ""


def _may_change_later(value: Node, after: list[Node], modules: Modules) -> bool:
    """Whether a value may be changed after the chain, by this forward or its caller.

    The caller leaves an input alone that stock keeps for backward too, because something else here uses it.
    """
    if may_change(value, after, modules):
        return True
    shared = may_share_memory(value, modules) if value.op != "placeholder" else {value}
    inputs = [source for source in shared if INPUT in source.meta]
    return not all(any(keeps_input(user, modules) for user in source.users) for source in inputs)


def _kept(chain: Chain, modules: Modules) -> set[str]:
    """What the operator keeps for backward but stock does not: "result", "residual" or "source"."""
    activation = _activation(chain, modules)
    name, keeps_result = activation.name, activations.keeps_result(*activation)
    has_residual, drops = chain.residual is not None, chain.node(DROPOUT) is not None
    if name == "identity" or chain.node(MAX_POOL):
        return set()
    if chain.node(FRACTIONAL_POOL):
        return {"result"}
    if not chain.node(NORM):
        if has_residual:
            return {"source"} if not chain.node(LINEAR) else set()
        return {"result"} if keeps_result else set()
    if not has_residual:
        return set()
    kept = {"residual"} if not keeps_result or (drops and name != "relu") else set()
    is_kept_newly = activations.keeps_result_unlike_stock(*activation) or (drops and name == "relu")
    return kept | ({"result"} if is_kept_newly else set())


def _activation(chain: Chain, modules: Modules) -> Activation:
    node = chain.node(ACTIVATION)
    return activation_of(node, modules) if node else Activation("identity", {})


def _after(node: Node) -> Iterator[Node]:
    while node.next.op != "output" and node.next is not node:
        node = node.next
        yield node


def obstacle(chain: Chain, modules: Modules) -> str:
    """Why the chain cannot run at its end, for example because something in between changes its inputs; else ""."""
    between = list(chain.between(chain.head))
    if may_change(chain.source, between, modules):
        return "its input may be changed in place before the chain ends"
    if _writes_to_its_source(chain, modules) and not owns_source(chain, modules):
        return "it works in place on a tensor that others may see"
    if chain.node(FRACTIONAL_POOL) and not activations.never_decreases(*_activation(chain, modules)):
        return "its activation may change which value is the maximum"
    if any(_may_switch_mode(node) for node in between):
        return "gradients or autocast are switched on or off before the chain ends"
    if why := _state_is_used(chain, between, modules):
        return why
    addition = chain.node(ADDITION)
    if addition and chain.residual and may_change(chain.residual, chain.between(addition), modules):
        return "what is added may be changed in place before the chain ends"
    random = chain.node(DROPOUT) or chain.node(DROP_PATH)
    if random and any(_may_draw(node, modules) for node in chain.between(random)):
        return "random numbers are drawn before the chain ends"
    return ""


def owns_source(chain: Chain, modules: Modules) -> bool:
    """Whether it is safe for the chain to write to its input: it never does, or no other code sees that tensor."""
    return chain.steps[0].kind in (NORM, LINEAR) or is_used_once(chain.source, modules)


def _writes_to_its_source(chain: Chain, modules: Modules) -> bool:
    """Whether a member writes to the chain's input; members after one that creates a new tensor do not."""
    for step in chain.steps:
        if step.kind in (NORM, LINEAR):
            return False
        if writes(step.node, modules):
            return step.kind != ADDITION or step.side == 1
        if step.kind == ACTIVATION:
            return False
    return False


def _may_switch_mode(node: Node) -> bool:
    """Whether a node may switch gradients, autocast or anything else that all operators obey.

    Modules do so only for themselves. Of methods, those of tensors are known; of functions, those of libraries that
    take a tensor.
    """
    if node.op == "call_method":
        return not hasattr(torch.Tensor, str(node.target)) or not node.all_input_nodes
    if node.op != "call_function":
        return False
    target: Any = node.target
    name, library = getattr(target, "__name__", ""), library_of(target)
    is_known = library.split(".")[0] in ("torch", "fusedtricks", "_operator", "builtins", "math")
    is_known = is_known and not isinstance(target, type) and not library.startswith("torch.utils.")
    return not is_known or not node.all_input_nodes or name.startswith(_SWITCHES)


_SWITCHES = ("_enter_", "_exit_", "_set", "set_", "_saved", "use_", "enable_", "disable_")


def _state_is_used(chain: Chain, between: list[Node], modules: Modules) -> str:
    if chain.steps[0].kind not in (NORM, LINEAR):
        return ""
    state = _state_nodes(chain.head)
    shared = {node for value in state for node in may_share_memory(value, modules)} | set(state)
    if not any(_uses_state(chain.head, node, shared, modules) for node in between):
        return ""
    what = "running statistics" if chain.steps[0].kind == NORM else "weight and bias"
    return f"its {what} are used again before the chain ends"


def _state_nodes(head: Node) -> list[Node]:
    """The nodes of the parameters and buffers of a chain's first layer."""
    if head.op == "call_function":
        return [*head.all_input_nodes[1:]]
    prefix = f"{head.target}."
    return [node for node in head.graph.nodes if node.op == "get_attr" and str(node.target).startswith(prefix)]


def _uses_state(head: Node, node: Node, shared: set[Node], modules: Modules) -> bool:
    """Whether a node reads or writes a layer's state, directly, through shared memory, or as a module that holds it."""
    if node in shared or any(source in shared for source in node.all_input_nodes):
        return node.op not in ("get_attr", "placeholder")
    if node.op != "call_module":
        return False
    owners = [head] if head.op == "call_module" else [n for n in _state_nodes(head) if n.op == "get_attr"]
    names = {str(owner.target) if owner is head else str(owner.target).rpartition(".")[0] for owner in owners}
    return any(module is modules[name] for name in names for module in walk.modules(modules[str(node.target)]))


def _may_draw(node: Node, modules: Modules) -> bool:
    """Whether a node may draw random numbers, so that moving the chain's draw would change their order."""
    if node.op == "call_module":
        return any(_module_may_draw(module) for module in walk.modules(modules[str(node.target)]))
    if node.op not in ("call_function", "call_method"):
        return False
    library = library_of(node.target) if node.op == "call_function" else "torch"
    name = str(getattr(node.target, "__name__", node.target)).lower()
    is_known = library.split(".")[0] in ("torch", "_operator", "builtins", "math")
    return not is_known or library.startswith("torch.utils.") or any(word in name for word in _RANDOM_NAMES)


def _module_may_draw(module: nn.Module) -> bool:
    library, name = type(module).__module__, type(module).__name__.lower()
    if not library.startswith(("torch.nn.modules.", "fusedtricks.")) or drop_paths.of_module(module):
        return True
    words = (*_RANDOM_NAMES, "transformer", "rnn", "lstm", "gru")
    return any(word in name for word in words)
