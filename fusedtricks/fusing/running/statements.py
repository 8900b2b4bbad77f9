"""What the graphs of forwards call for Python's own statements."""

from __future__ import annotations

from typing import Any


class Unexpected(Exception):
    """Raised by a graph at its beginning: the inputs are such that the user's forward has to run."""


def expect(condition: Any) -> None:
    """For a check at the beginning of a forward, which answers with an error itself."""
    if not condition:
        raise Unexpected


def unpack(values: Any, count: int) -> tuple[Any, ...]:
    """The items of `a, b = values`, with Python's own errors."""
    items = tuple(values)
    if len(items) > count:
        raise ValueError(f"too many values to unpack (expected {count})")
    if len(items) < count:
        raise ValueError(f"not enough values to unpack (expected {count}, got {len(items)})")
    return items


def text(parts: list[tuple[Any, int, str]]) -> str:
    """An f-string: values, each with its conversion (the code of `r`, `s` or `a`, or -1) and its format."""
    convert: dict[int, Any] = {ord("s"): str, ord("r"): repr, ord("a"): ascii}
    return "".join(format(convert.get(how, lambda value: value)(value), pattern) for value, how, pattern in parts)
