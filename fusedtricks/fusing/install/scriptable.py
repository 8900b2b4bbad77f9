"""`torch.jit.script` compiles the forward of a module's class. These classes have one that it can compile.

torch asks each module of a model for one to compile in its stead (`__prepare_scriptable__`), and leaves the answer in
the model. So the answer is the module itself, with another class; when it is next called, copied or pickled, it gets
its own class back.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling

from ..layers.classes import set_class

ACT_PARAMETERS = "act_parameters"
"""An attribute that a module may have as long as it has the other class."""

_OWN = "_fusedtricks_own"
"""The attribute of a class with the module's own class."""


def scriptable_class(own: Any, base: Any, **members: Any) -> Any:
    """A class derived from `base`, for modules of class `own`, with further members such as a forward.

    Modules of classes that others derive from it meanwhile (parametrizations, FSDP) keep theirs.
    """

    def call(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if is_dynamo_compiling():  # which does not set classes
            return own.forward(self, *arguments, **keywords)
        kind = type(self)
        restore(self)
        return base.__call__(self, *arguments, **keywords) if type(self) is kind else self(*arguments, **keywords)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        kind = type(self)
        restore(self)
        return base.__reduce_ex__(self, protocol) if type(self) is kind else self.__reduce_ex__(protocol)

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__, _OWN: own}
    methods = {"__call__": call, "__reduce_ex__": reduce}
    return type(base)(base.__name__, (base,), {**names, **methods, **members})


def restore(module: nn.Module) -> None:
    """Gives a module that was compiled its own class back; any other module stays as it is."""
    own = vars(type(module)).get(_OWN)
    if own is not None:
        vars(module).pop(ACT_PARAMETERS, None)
        set_class(module, own)
