"""Classes: of fused modules, derived from the user's class; and of layers, whose forward may be replaced any time."""

from __future__ import annotations

from typing import Any

STOCK = "_fusedtricks_stock"
"""The attribute of a fused class that holds the user's class."""


def stock_class(kind: Any) -> Any:
    """The user's class of a fused class; any other class itself."""
    return vars(kind).get(STOCK, kind)


def fused_class_of(stock: Any) -> Any | None:
    """The fused class that was derived from a user's class, if there is one."""
    return next((kind for kind in type.__subclasses__(stock) if vars(kind).get(STOCK) is stock), None)


_FORWARDS: dict[Any, tuple[Any, Any, Any]] = {}
"""By class: its forward, the class that it replaces (or itself), and the forward of that."""


def remember(kind: Any, stock: Any = None) -> None:
    """Notes the forward of a layer's class, and of the stock class that it replaces, for `is_unchanged`."""
    stock = stock or kind
    _FORWARDS[kind] = (kind.forward, stock, stock.forward)


def is_remembered(kind: Any) -> bool:
    """Whether `remember` was called for a layer's class."""
    return kind in _FORWARDS


def is_changed(kind: Any) -> bool:
    """Whether a layer's class has been remembered and has another forward now."""
    return is_remembered(kind) and not is_unchanged(kind)


def is_unchanged(kind: Any) -> bool:
    """Whether a layer's class has been remembered and still has its forward."""
    known = _FORWARDS.get(kind)
    return known is not None and kind.forward is known[0] and known[1].forward is known[2]


_REPLACEMENTS: dict[Any, tuple[Any, ...]] = {}


def replaces(twin: type, stock: type) -> None:
    """Notes the class that replaces a stock one, for `classes_of`."""
    _REPLACEMENTS[stock] = _REPLACEMENTS[twin] = (stock, twin)


def classes_of(kind: Any) -> tuple[Any, ...]:
    """The classes that a layer of a class may have when a graph runs: its own, and the one that replaces it."""
    return _REPLACEMENTS.get(kind, (kind,))


def is_layer(kind: Any) -> bool:
    """Whether a class is that of a layer of torch's or ours, of which it is known what it does to its input."""
    return kind.__module__.startswith(("torch.nn.modules.", "fusedtricks.")) and kind.__name__ != "Sequential"


def set_class(module: Any, kind: Any) -> None:
    """`module.__class__ = kind`, whatever the class makes of setting attributes."""
    vars(object)["__class__"].__set__(module, kind)
