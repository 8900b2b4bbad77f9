"""The local variables of a function that is read."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from .errors import NotReadable


class Frame:
    """Local variables, by name, of a call of a function."""

    def __init__(self, function: FunctionType, values: dict[str, Any], outer: Frame | None = None) -> None:
        self.function, self.name = function, function.__code__.co_name
        self._values, self._outer = values, outer
        self._own = {*function.__code__.co_varnames, *function.__code__.co_cellvars}

    def inner(self) -> Frame:
        """The scope of a comprehension."""
        return Frame(self.function, {}, self)

    def of_function(self) -> Frame:
        """The scope of the function around a comprehension."""
        return self._outer.of_function() if self._outer else self

    def has_local(self, name: str) -> bool:
        if name in self._values:
            return True
        return self._outer.has_local(name) if self._outer else name in self._own

    def get(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if self._outer:
            return self._outer.get(name)
        raise NotReadable(f"its forward uses {name} before it has a value (in {self.name})")

    def set(self, name: str, value: Any) -> None:
        self._values[name] = value

    def delete(self, name: str) -> None:
        self._values.pop(name, None)
