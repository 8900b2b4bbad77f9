"""Models that cover every sequence of layers that matters to `fuse`, and how many chains each has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedtricks.nn as ftnn


class Case(NamedTuple):
    """A model for images (N, 4, H, W), and the number of chains that `fuse` must find in it."""

    make: Callable[[], nn.Module]
    chains: int
    reason: str = ""  # part of a reason in the report


CASES: dict[str, Case] = {}


def case(chains: int, reason: str = "") -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(model: type[nn.Module]) -> type[nn.Module]:
        CASES[model.__name__] = Case(model, chains, reason)
        return model

    return register


class Base(nn.Module):
    """Four convolutions, BatchNorms and an activation for the forwards below."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = act or nn.ReLU(inplace=True)


@case(2)
class BasicBlock(Base):
    """torchvision's: one ReLU used twice, in place, and an addition in place."""

    def __init__(self, downsample: bool = False) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@case(5)
class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.layers = nn.Sequential(BasicBlock(), BasicBlock(downsample=True))
        self.dropout, self.fc = nn.Dropout(0.0), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layers(self.stem(x)).mean((2, 3))))


@case(4)
class Functions(Base):
    """Every spelling of an activation and an addition."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        y = torch.add(x, self.bn2(y)).relu_()
        y = F.gelu(self.bn1(y), approximate="tanh") - torch.tanh(x)
        return F.hardtanh(self.bn2(y).add(x), 0.0, 6.0)


@case(1)
class AdditionAlone(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(x)) + x)


@case(2)
class Functional(Base):
    """F.batch_norm, with the module's state and without state."""

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn1
        y = F.batch_norm(self.conv1(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, 0.3, 1e-3)
        y = torch.relu(y)
        return F.silu(F.batch_norm(y, None, None, training=True))


class NormAct(nn.BatchNorm2d):
    """Like timm's BatchNormAct2d: a BatchNorm with its own forward, which also applies dropout and an activation."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        batch = self.training or (self.running_mean is None and self.running_var is None)
        tracks = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        return self.act(self.drop(F.batch_norm(x, mean, var, self.weight, self.bias, batch, factor, self.eps)))


@case(2)
class NormActs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), NormAct(4), nn.Conv2d(4, 4, 1), NormAct(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvNorm(nn.Module):
    """A convolution and a BatchNorm, then an activation that may be an identity."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@case(2)
class AcrossModules(nn.Module):
    """The last BatchNorm, its addition and its activation are in three modules, as in Hugging Face's ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(ConvNorm(nn.SiLU()), ConvNorm(nn.Identity()))
        self.shortcut, self.act = nn.Sequential(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y += self.shortcut(x)
        return self.act(y)


@case(3)
class NestedSequential(nn.Sequential):
    """BatchNorm last in one Sequential, its activation first in the next."""

    def __init__(self) -> None:
        inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.BatchNorm2d(4)))
        super().__init__(
            inner,
            nn.ELU(0.5),
            nn.BatchNorm2d(4),
            nn.Sequential(nn.Mish(), nn.Conv2d(4, 4, 1)),
            nn.Sequential(nn.Identity(), nn.BatchNorm2d(4)),
            nn.Identity(),
            nn.Sequential(nn.Sequential(nn.Softplus(2.0))),
        )


@case(1, "used more than once")
class UsedTwice(Base):
    """A BatchNorm whose result is used twice; a ReLU applied to two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        z = self.bn2(self.conv2(x))
        return F.relu(y) * y + F.relu(z)


@case(0, "nothing that can be fused follows it")
class View(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.bn1(x).transpose(2, 3)).flatten(2)[:, :, ::2])


@case(2)
class SharedNorm(Base):
    """One BatchNorm used twice, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn1(self.conv2(y)))


@case(1, "running statistics are used again")
class SharedNormInterleaved(Base):
    """The second use of a BatchNorm must stay after the first."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        z = self.bn1(self.conv2(x)).sigmoid()
        return self.relu(y) * z


@case(0, "input may be changed in place")
class InputChanged(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = self.bn1(y)
        y.data.view(-1).mul_(2.0)
        return self.relu(z) + y


@case(0, "what is added may be changed in place")
class ResidualChanged(Base):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        z = self.bn1(self.conv1(x)) + r
        r += 1
        return self.relu(z) * r


@case(0, "in place to another tensor")
class AddedInPlaceToAnother(Base):
    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        s = r[:]
        r += self.bn1(self.conv1(x))
        return self.relu(r) + s


@case(1)
class AddedInPlaceToNothingElse(Base):
    """Only the addition sees the tensor that is written to."""

    def forward(self, x: Tensor) -> Tensor:
        r = self.conv2(x)
        r += self.bn1(self.conv1(x))
        return self.relu(r)


@case(3)
class Sums(Base):
    """Branches added up in place, as in MobileOne; only the additions see the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn3, self.bn4, self.same = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = 0
        for norm in (self.bn1, self.bn2, self.bn3):
            y += norm(self.conv1(x))
        y = self.same(y)
        y += self.bn4(x)
        return self.relu(y)


@case(0, "in place to another tensor")
class SumThatIsSeen(Base):
    """What is added to has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv2(x)
        y = self.same(a)
        y += self.bn1(self.conv1(x))
        return torch.cat([y, a])


@case(1)
class Broadcast(Base):
    """An addition of another shape: found as a chain, but its members run separately."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)) + x.mean((2, 3), keepdim=True))


@case(2)
class Untracked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4, track_running_stats=False)
        self.bn2 = nn.BatchNorm2d(4, affine=False, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.relu(self.bn1(x))))


@case(2, "(evaluation)")
class ByMode(Base):
    """A forward that is different in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.relu(self.bn1(self.conv1(x)))
        return F.silu(self.bn1(x))


def pad(x: Tensor, features: int) -> Tensor:
    """Makes a decision based on a shape."""
    return F.pad(x, (1, 1)) if x.shape[-1] % 2 == features % 2 else x


@case(1)
class Helper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(pad(x, 4))))


@case(1)
class Checks(Base):
    """Looks at shapes, and raises errors itself."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "needs images"
        if x.shape[1] != 4:
            raise ValueError(f"needs 4 channels, not {x.shape[1]}")
        return self.relu(self.bn1(self.conv1(x)))


@case(2)
class ListOrTensor(Base):
    """Like torchvision's DenseNet, whose forward takes either."""

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        features = [x] if isinstance(x, Tensor) else x
        y = self.relu(self.bn1(torch.cat(features, 1)))
        return self.relu(self.bn2(self.conv1(y)))


@case(2)
class Options(Base):
    """Arguments with defaults, which the forward's decisions depend on."""

    def forward(self, x: Tensor, residual: Tensor | None = None, *, scale: float = 1.0, double: bool = False) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(y * scale)
        if residual is not None:
            y = y + residual
        return self.relu(y) * 2 if double else self.relu(y)


class Bottleneck1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.linear(x)))


@case(1)
class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.dropout = Bottleneck1d(), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.dropout(self.block(x.mean((2, 3)))), 0.0, self.training)


# Dropout has p = 0 here or uses stock's masks, which `fuse_case.train` ensures.
@case(2)
class NormDropout(Base):
    """As in wide residual networks: dropout after BatchNorm and its activation; after an addition; as a function."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(nn.ELU())
        self.drop = nn.Dropout(p, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.relu(self.bn1(self.conv1(x))))
        return F.dropout(F.silu(self.bn2(self.conv2(y)) + x), self.drop.p, self.training)


@case(3)
class NormThenDropout(nn.Sequential):
    """Dropout in the calling module, or without an activation."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(
            ConvNorm(nn.GELU()),
            nn.Identity(),
            nn.Dropout(p),
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            nn.Dropout(p),
            ConvNorm(nn.Identity()),
            nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Dropout(p)),
            nn.Conv2d(4, 4, 1),
        )


@case(1)
class Stem(Base):
    """Pooling by a function, with every argument."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, (2, 1), 1, dilation=1, ceil_mode=True)


@case(2)
class StemAcrossModules(nn.Module):
    """Like Hugging Face's: the pooling is not in the activation's module. The second activates 1d values."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder, self.pooler = ConvNorm(nn.LeakyReLU(0.2)), nn.MaxPool2d(3, 2, 1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pooler(self.embedder(x))
        return F.max_pool2d(F.relu(self.norm(y.flatten(2))), (1, 2))


@case(2)
class NoStem(Base):
    """The activated tensor is used again; the indices of the maxima are needed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        z, places = F.max_pool2d(self.relu(self.bn2(self.conv2(x))), 2, return_indices=True)
        return F.max_pool2d(y, 2) + y.mean() + z + places


class FeedForward(nn.Module):
    """A transformer's feed-forward block, applied to the channels."""

    def __init__(self, p: float = 0.0, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(4, 6), act or nn.GELU(), nn.Dropout(p)
        self.fc2, self.drop2 = nn.Linear(6, 4), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        return (self.drop2(self.fc2(self.drop1(self.act(self.fc1(y))))) + y).movedim(-1, 1)


@case(2)
class Tails(FeedForward):
    pass


@case(4)
class TailFunctions(Base):
    """Every spelling: functions, in place, without a bias, without a linear layer."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.fc, self.free, self.p = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), p

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.movedim(1, -1), self.fc.weight, bias=self.fc.bias)
        y = F.dropout(F.elu(y), self.p, self.training)
        y = F.dropout(torch.tanh_(self.free(y)), p=self.p, training=self.training) + y
        z = F.dropout(F.gelu(y), self.p, self.training, inplace=True) * 2
        z += F.dropout(self.fc(z.clone()), self.p, self.training)
        return z.movedim(-1, 1)


@case(2)
class TailOutputs(nn.Module):
    """Like BERT's: the linear layer and its dropout in one module, the addition in the calling module."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.intermediate = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.drop = nn.Dropout(p)
        self.output = nn.Sequential(nn.Linear(6, 4), nn.Dropout(p))

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        return torch.add(y, self.output(self.drop(self.intermediate(y)).square())).movedim(-1, 1)


@case(1, "its result may be changed in place")
class TailChanged(FeedForward):
    """Changes what ours would keep for backward but stock does not. With an addition only the input is kept."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p, nn.LeakyReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        z = self.drop1(self.act(self.fc1(y))).reshape(-1, 6)
        z += 1
        out = self.drop2(self.act(self.fc2(z))) + y.reshape(-1, 4)
        out *= 2
        return out.view(x.shape)


@case(1)
class TailInputChanged(Base):
    """Stock's ReLU keeps its result, but ours with an addition keeps its input: the addition is not fused."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = F.dropout(F.relu(y), 0.0) + x
        y += 1
        return z * y


@case(1, "in place on a tensor that others may see")
class TailInPlace(Base):
    """The activation is not fused."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = y[:]
        return F.dropout(F.relu(z, inplace=True), 0.0) + y


@case(1, "random numbers are drawn before the chain ends")
class DrawsBetween(Base):
    """If fused, the two dropouts would draw stock's masks in the opposite order."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.conv1(x), 0.25, self.training)
        return y + F.dropout(self.conv2(x), 0.5, self.training)


@case(1)
class OtherDropout(Base):
    """Other kinds of dropout end no chain; a linear layer whose result is used again begins none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.channels, self.alpha = nn.Linear(4, 4), nn.Dropout2d(0.0), nn.AlphaDropout(0.0)
        self.classic = ftnn.Dropout(0.0, mode="classic")

    def forward(self, x: Tensor) -> Tensor:
        y = self.channels(F.gelu(self.fc(x.movedim(1, -1))))
        y = self.alpha(F.selu(self.fc(y))) + self.classic(F.relu(y))
        z = self.fc(y)
        return (F.dropout(F.silu(z), 0.0) * z).movedim(-1, 1)


@case(3)
class Paths(Base):
    """Stochastic depth, with or without an addition; in place; after a BatchNorm."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.path = ftnn.DropPath(p)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.path(self.relu(self.bn1(self.conv1(x))))
        z = self.path(self.conv2(y))
        z += y
        return self.path(z) * 2


@case(1)
class FractionalPool(nn.Sequential):
    """Pooled before the activation, unless the activation is not monotone."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.FractionalMaxPool2d(2, output_ratio=0.7)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.FractionalMaxPool2d(2, output_ratio=0.6)),
            nn.Conv2d(4, 4, 1),
        )


@case(chains=1)
class FunctionBeforeNorm(Base):
    """A function that is replaced alone, whose result a chain reads."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(F.silu(self.conv1(x))))


class DenseLayer(Base):
    """Takes a tensor or a list of tensors, and adds one to a list of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 1)

    def join(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors, 1)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        tensors = [x] if isinstance(x, Tensor) else x
        return self.reduce(self.relu(self.norm(self.join([*tensors]))))


@case(chains=4)
class DenseBlock(Base):
    """Layers that are given all that came before them, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": DenseLayer(4 + 4 * i) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for _, layer in self.layers.items():
            tensors.append(layer(tensors))
        return self.relu(self.bn1(self.conv1(torch.cat(tensors, 1)[:, -4:])))
