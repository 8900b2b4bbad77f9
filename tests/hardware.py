"""The devices that tests run on, and their random generators."""

from __future__ import annotations

import torch

from fusedtricks import _build_info


def devices() -> list[str]:
    """The devices that have a backend in this build and hardware to run it."""
    cuda = "cuda" in _build_info.backends and torch.cuda.is_available()
    return ["cpu", "cuda"] if cuda else ["cpu"]


def generator_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that ops on that device use. On CUDA 16 bytes: seed and offset."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
