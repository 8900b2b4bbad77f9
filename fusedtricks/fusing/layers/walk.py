"""Finds the modules of a model without asking them, since they may answer by code of their own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.jit import ScriptModule


def children_of(module: nn.Module) -> dict[str, nn.Module]:
    """The modules in a module, by name; none in one that TorchScript has made, whose parts are not Python's."""
    if isinstance(module, ScriptModule):
        return {}
    return {name: child for name, child in module.__dict__["_modules"].items() if child is not None}


def named_modules(root: nn.Module, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """`root.named_modules(remove_duplicate=not every_name)`.

    Raises:
        RecursionError: with `every_name`, modules contain each other.
    """
    seen: set[nn.Module] = set()
    around: set[nn.Module] = set()

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        if module in seen and not every_name:
            return
        if module in around:
            raise RecursionError(f"{prefix} contains itself")
        seen.add(module)
        yield prefix, module
        around.add(module)
        for name, child in children_of(module).items():
            yield from walk(child, f"{prefix}.{name}" if prefix else name)
        around.remove(module)

    return walk(root, "")


def module_at(root: nn.Module, path: str) -> nn.Module:
    """`root.get_submodule(path)`."""
    for name in path.split(".") if path else ():
        root = root.__dict__["_modules"][name]
    return root


def modules(root: nn.Module) -> Iterator[nn.Module]:
    """`root.modules()`."""
    return (module for _, module in named_modules(root))
