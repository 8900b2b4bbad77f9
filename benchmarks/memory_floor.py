"""What a scheme must keep for the backward of a network if it repeats no convolution and no linear layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .op import Shape


def floor_bytes(make: Callable[[], nn.Module], shape: Shape) -> int:
    """Bytes of the outputs of all convolutions and linear layers, but not of the network's own output.

    From these everything else follows without a convolution: results of BatchNorm, activations, additions, pooling,
    concatenation and dropout, and with them the inputs of the next convolutions. So it is one tensor for each
    convolution. Not counted are values for each channel, the images and the weights, which are there anyway.
    """
    outputs: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)

    with torch.device("meta"):
        network = make()
        for module in network.modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.register_forward_hook(note)
        result = network(torch.empty(shape))
    return sum(output.nbytes for output in outputs if output is not result)
