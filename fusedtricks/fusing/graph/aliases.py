"""Whether a value may change between two points of a graph: which nodes write, and which values share memory."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ..layers import activations
from ..layers.classes import is_layer
from ..layers.libraries import library_of
from ..running import statements

Modules = Mapping[str, nn.Module]

_OPERATIONS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "lshift", "rshift"),
)
IN_PLACE_OPERATORS = {f"i{name}": getattr(operator, f"i{name}") for name in _OPERATIONS}
_WRITES = {*IN_PLACE_OPERATORS.values(), operator.setitem, operator.delitem, setattr}
_READS = {statements.expect, statements.unpack, statements.text}
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
_FRESH_FUNCTIONS = {
    *("add", "sub", "mul", "truediv", "matmul", "cat", "linear", "batch_norm"),
    *("relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh"),
    *(f"{name}{n}d" for n in (1, 2, 3) for name in ("conv", "conv_transpose", "max_pool", "avg_pool")),
}


def may_change(value: Node, between: Iterable[Node], modules: Modules) -> bool:
    """Whether one of the nodes in `between` may write to the memory of `value`."""
    writers = [node for node in between if _may_write(node, modules)]
    shared = may_share_memory(value, modules) if writers else set()
    return any(source in shared for node in writers for source in node.all_input_nodes)


def is_only_read(value: Node, modules: Modules, is_new: bool = False) -> bool:
    """Whether a node's result is never written to: no node of the graph writes to it, and it is not returned.

    Args:
        value: the node.
        modules: the graph's modules by name.
        is_new: assume that the result shares no memory with the node's inputs, because the node will be replaced.
    """
    shared = may_share_memory(value, modules, is_new)
    if any(user.op == "output" for node in shared for user in node.users):
        return False
    own = set(_up_to(value)) if is_new else {value}
    writers = [node for node in value.graph.nodes if node not in own and _may_write(node, modules)]
    return not any(source in shared for node in writers for source in node.all_input_nodes)


def _up_to(value: Node) -> Iterator[Node]:
    for node in value.graph.nodes:
        yield node
        if node is value:
            return


def is_used_once(value: Node, modules: Modules) -> bool:
    """Whether `value` has only one user and nothing else can see its memory."""
    if len(value.users) != 1:
        return False
    if _is_fresh(value, modules):
        return True
    same = _gives_back(value, modules)
    return same is not None and is_used_once(same, modules)


def _gives_back(node: Node, modules: Modules) -> Node | None:
    """The value that a node gives back, as it is or changed in place, if its result shares memory with nothing else."""
    if activation := activations.of_node(node):
        return activation[1]
    module = modules[str(node.target)] if node.op == "call_module" else None
    is_known = type(module) is nn.Identity or (module is not None and activations.of_module(module) is not None)
    if is_known or node.target in IN_PLACE_OPERATORS.values() or node.target == "add_":
        return node.args[0] if isinstance(node.args[0], Node) else None
    return None


def _may_write(node: Node, modules: Modules) -> bool:
    """Whether a node may write to its inputs."""
    if node.op == "call_module":
        return _module_may_write(modules[str(node.target)])
    if node.op == "call_method":
        name = str(node.target)
        if not hasattr(torch.Tensor, name):
            return True
        return name.startswith(("__i", "__set", "__del")) if name.startswith("__") else name.endswith("_")
    return node.op == "call_function" and _function_may_write(node)


def _module_may_write(module: nn.Module) -> bool:
    library = type(module).__module__
    if not library.startswith(("torch.nn.modules.", "fusedtricks.")) or library == nn.Sequential.__module__:
        return True
    return bool(getattr(module, "inplace", False))


def _function_may_write(node: Node) -> bool:
    target: Any = node.target
    if target in _WRITES or "out" in node.kwargs:
        return True
    if target in _READS:
        return False
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    library = library_of(target).split(".")[0]
    name = getattr(target, "__name__", "_")
    return library not in ("torch", "_operator", "builtins", "math") or name.endswith("_") or is_in_place(node)


def is_in_place(node: Node) -> bool:
    """Whether a function is called with `inplace=True`."""
    position = _position_of_inplace(node.target)
    given = node.args[position] if position is not None and position < len(node.args) else False
    return bool(node.kwargs.get("inplace", given))


@cache
def _position_of_inplace(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a built-in function; its name says whether it is in place
        return None
    return names.index("inplace") if "inplace" in names else None


def keeps_input(node: Node, modules: Modules) -> bool:
    """Whether stock keeps the input of a node for backward; of a user's module, this is taken for granted."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, _FRESH_MODULES) or not is_layer(type(module))
    name = str(getattr(node.target, "__name__", node.target))
    return name.startswith("conv") or name in ("linear", "batch_norm", "matmul", "mul")


def _is_fresh(node: Node, modules: Modules) -> bool:
    """Whether a node's result certainly shares no memory with its inputs."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if activations.of_module(module):
            return not getattr(module, "inplace", False)
        return isinstance(module, _FRESH_MODULES) and type(module).__module__.startswith(("torch.nn.", "fusedtricks."))
    if node.op != "call_function" or getattr(node.target, "__name__", "") not in _FRESH_FUNCTIONS:
        return False
    if library_of(node.target) == "_operator" and not any(_makes_a_tensor(node, arg, modules) for arg in node.args):
        return False  # perhaps of lists
    return not _function_may_write(node)


def _other_names(node: Node, modules: Modules) -> list[Node]:
    """Other nodes that read the same memory: any input for an input, the same storage for a parameter or buffer."""
    same_kind = [other for other in node.graph.nodes if other.op == node.op and other is not node]
    if node.op == "placeholder":
        return [other for other in same_kind if INPUT in node.meta]
    storage = _storage(node, modules) if node.op == "get_attr" else None
    return [other for other in same_kind if _storage(other, modules) == storage] if storage else []


INPUT = "fusedtricks_input"
"""Marks an input that the caller gives; Dynamo's inputs are parameters, too."""


def _storage(node: Node, modules: Modules) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(modules.get(owner), name, None)
    if not isinstance(tensor, torch.Tensor):
        return None
    try:
        return tensor.untyped_storage().data_ptr() or str(node.target)
    except (RuntimeError, NotImplementedError):  # without memory of its own
        return str(node.target)


def _makes_a_tensor(node: Node, operand: Any, modules: Modules) -> bool:
    """Whether an operator gives a tensor because of one operand: a tensor, or a number, which no list takes."""
    is_number = isinstance(operand, (int, float)) and node.target is not operator.mul
    return is_number or _is_tensor(operand, modules)


def _is_tensor(value: Any, modules: Modules) -> bool:
    """Whether a value is certainly a tensor."""
    if not isinstance(value, Node):
        return False
    if value.op == "call_module":
        return is_layer(type(modules[str(value.target)]))
    if value.op == "call_function" and library_of(value.target) == "_operator" and value.target is not operator.getitem:
        return any(_is_tensor(arg, modules) for arg in value.args)
    return value.op in ("placeholder", "get_attr") or _is_of_torch(value)


def _is_of_torch(node: Node) -> bool:
    """Whether a node calls a function of torch's, other than for an attribute or item."""
    return node.op == "call_function" and library_of(node.target).split(".")[0] in ("torch", "fusedtricks")


def may_share_memory(value: Node, modules: Modules, is_new: bool = False) -> set[Node]:
    """All nodes whose result may share memory with `value`. If `is_new`, `value` shares none with its own inputs."""
    found, todo = {value}, [value]
    while todo:
        node = todo.pop()
        neighbours = _other_names(node, modules)
        neighbours += [user for user in node.users if user.op != "output" and not _is_fresh(user, modules)]
        if not (_is_fresh(node, modules) or (is_new and node is value)):
            neighbours += node.all_input_nodes
        new = [n for n in neighbours if n not in found]
        found.update(new)
        todo += new
    return found
