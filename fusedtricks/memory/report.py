"""`MemoryReport`: what the variants of a model keep for the backward, to print or to read as lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .accounts import Account, KeptTensor

_NOTHING = "recompute() changes nothing here: no output of a fused layer is kept for the backward."


@dataclass(frozen=True)
class MemoryReport:
    """What a model keeps for the backward.

    Attributes:
        stock: of the model with torch's layers.
        fused: of the model with fused layers, all that they keep.
        recompute: the same within `fusedtricks.recompute(depth=depth)`.
        depth: of that.
    """

    stock: Account
    fused: Account
    recompute: Account
    depth: int | None = 1

    @property
    def accounts(self) -> tuple[Account, Account, Account]:
        """Stock, fused, recompute."""
        return self.stock, self.fused, self.recompute

    def __str__(self) -> str:
        return "\n".join([*self._table(), "", *self._remaining()])

    def _digits(self) -> int:
        return 1 if max(account.bytes for account in self.accounts) >= 1e7 else 3

    def _table(self) -> Iterator[str]:
        by_layer = [_by_layer(account.kept) for account in self.accounts]
        total = [account.bytes for account in self.accounts]
        measured = [account.measured for account in self.accounts]
        digits = self._digits()
        rows: list[tuple[str, ...]] = [("kept for the backward, MB", "stock", "fused", "recompute")]
        for layer in _in_order(layer for column in by_layer for layer in column):
            texts = [_mb(column.get(layer, 0), digits) for column in by_layer]
            if any(float(text) for text in texts):
                rows.append((layer or "(the model itself)", *texts))
        rows.append(("total", *(_mb(size, digits) for size in total)))
        rows.append(("of stock", *(f"{size / total[0]:.2f}" if total[0] else "–" for size in total)))
        if None not in measured:
            rows.append(("measured", *(_mb(size or 0, digits) for size in measured)))
        yield from _aligned(rows)
        if inputs := sum(tensor.bytes for tensor in self.stock.inputs):
            yield f"not counted: parameters, buffers, and the model's inputs ({_mb(inputs, digits)} MB)"

    def _remaining(self) -> Iterator[str]:
        account = self.recompute
        if not account.recomputed:
            yield _NOTHING
            return
        digits = self._digits()
        again = f"{_count(len(account.recomputed))} ({_mb(account.recomputed_bytes, digits)} MB)"
        yield f"recompute(depth={self.depth}) computes {again} again in the backward and keeps:"
        for reason, tensors in _by_reason(account.kept):
            size = sum(tensor.bytes for tensor in tensors)
            yield f"  {_count(len(tensors))}, {_mb(size, digits)} MB, {size / account.bytes:.0%}: {reason}"


def _by_layer(kept: Iterable[KeptTensor]) -> dict[str, int]:
    """Bytes by the first layer that keeps them, so that the sum is the total."""
    sizes: dict[str, int] = {}
    for tensor in kept:
        sizes[tensor.layers[0]] = sizes.get(tensor.layers[0], 0) + tensor.bytes
    return sizes


def _in_order(names: Iterable[str]) -> list[str]:
    """Each name once: a module before its parts; parts by their number if they have one, else as they come first."""
    places: dict[str, tuple[int, ...]] = {}
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        parts = name.split(".") if name else []
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        ranks = [first.setdefault(prefix, i) for prefix in prefixes]
        places[name] = tuple(int(part) if part.isdecimal() else rank for part, rank in zip(parts, ranks, strict=True))
    return sorted(places, key=places.__getitem__)


def _by_reason(kept: Iterable[KeptTensor]) -> list[tuple[str, list[KeptTensor]]]:
    """The largest first."""
    groups: dict[str, list[KeptTensor]] = {}
    for tensor in kept:
        groups.setdefault(tensor.reason, []).append(tensor)
    return sorted(groups.items(), key=lambda group: -sum(tensor.bytes for tensor in group[1]))


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    for name, *texts in rows:
        numbers = [f"{text:>{width}}" for text, width in zip(texts, widths[1:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", *numbers])


def _mb(size: int, digits: int) -> str:
    return f"{size / 1e6:.{digits}f}"


def _count(tensors: int) -> str:
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"
