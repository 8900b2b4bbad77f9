"""Looks up what a forward reads, as Python would, without running code of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from ..layers.classes import classes_of, is_layer, stock_class
from ..layers.libraries import is_library
from ..layers.walk import module_at, named_modules
from .assumptions import Assumptions, dotted, is_of_the_program
from .effects import ANYTHING, ITEMS, Effects
from .errors import Absent, NotReadable
from .values import Bound, Collection, Layer, Method, Outside, is_setting

MISSING = object()
_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)
_BUILT_IN = (MethodDescriptorType, WrapperDescriptorType, BuiltinFunctionType)


class State:
    """The attributes, globals and members that a forward reads.

    Whatever is read is assumed to stay the same, and checked at each call; see `Assumptions`.
    """

    def __init__(self, root: nn.Module, training: bool, graph: Graph, effects: Effects) -> None:
        self.assumed = Assumptions()
        self._names: dict[nn.Module, str] = {}
        self._root, self._training, self._graph = root, training, graph
        self._depth = 0
        for name, module in named_modules(root):
            self._names[module] = name
        self.effects = effects
        self.user_code_ran = False
        self.set_since: set[str] = set()  # names that user code which has run by now may set

    # --- What a read object is ---

    def admit(self, value: Any, expression: str) -> Any:
        """A value that the forward reads from outside itself, by an expression that reads it again."""
        if is_setting(value) or is_of_the_program(value):
            self.assumed.is_value(expression, value)
            return value
        kind = type(value)
        if issubclass(kind, nn.Module):
            return self._layer_at(value, expression)
        if kind in (list, tuple, dict, set, frozenset):
            return self._collection(value, expression)
        if issubclass(kind, Tensor):
            raise NotReadable("its forward uses a tensor that is neither an input, nor a parameter, nor a buffer")
        if kind is MethodType and type(value.__func__) is FunctionType:
            self.assumed.is_value(f"{expression}.__func__", value.__func__)
            return Method(value.__func__, self.admit(value.__self__, f"{expression}.__self__"))
        return Outside(value, expression)

    def _layer_at(self, module: nn.Module, expression: str) -> Layer:
        """A module that was reached otherwise than as a member."""
        if module not in self._names:
            raise NotReadable(f"its forward uses a {type(module).__name__} that is not one of its modules")
        path = self._names[module]
        self.assumed.require(f"{expression} is {self.assumed.module(path)}")
        return self.layer(module, path)

    def layer(self, module: nn.Module, path: str) -> Layer:
        if is_layer(type(module)):
            self.assumed.is_layer(path, classes_of(type(module)), getattr(module, "inplace", None))
        elif path:
            self.assumed.is_kept(path, stock_class(type(module)))
        return Layer(module, path)

    def same(self, a: Layer, b: Layer) -> bool:
        """Whether two modules are one."""
        is_same = a.module is b.module
        first, second = self.assumed.module(a.path), self.assumed.module(b.path)
        self.assumed.require(f"({first} is {second}) is {is_same}")
        return is_same

    def refuse_if_set(self, name: str) -> None:
        """Raises if code that the forward has called by now may have set a name that it reads."""
        if name in self.set_since or ANYTHING in self.set_since:
            raise NotReadable(f"its forward reads {name} after it has called code that may set it")

    def module_at(self, path: str) -> nn.Module:
        return module_at(self._root, path)

    def _collection(self, value: Any, expression: str) -> Collection:
        kind = self.assumed.constant(type(value))
        if self._depth > 20 or len(value) > 1000:
            raise NotReadable("its forward reads a collection that is too large")
        self.refuse_if_set(ITEMS)
        self._depth += 1
        self.assumed.require(f"type({expression}) is {kind}")
        try:
            return self._items(value, expression)
        finally:
            self._depth -= 1

    def _items(self, value: Any, expression: str) -> Collection:
        if isinstance(value, (set, frozenset)):
            if not all(is_setting(item) for item in value):
                raise NotReadable("its forward reads a set of objects")
            self.assumed.require(f"{expression} == {self.assumed.constant(type(value)(value))}")
            return Collection(type(value)(value), own=False)
        if isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                raise NotReadable("its forward reads a dictionary whose keys are objects")
            self.assumed.require(f"[*{expression}] == {self.assumed.constant(list(value))}")
            items = {key: self.admit(item, f"{expression}[{key!r}]") for key, item in value.items()}
            return Collection(items, own=False)
        self.assumed.require(f"len({expression}) == {len(value)}")
        return Collection(
            type(value)(self.admit(item, f"{expression}[{i}]") for i, item in enumerate(value)), own=False
        )

    # --- Names ---

    def variable(self, function: FunctionType, name: str) -> Any:
        """A variable of an enclosing function, of the Python module, or a built-in."""
        code = function.__code__
        self.refuse_if_set(name)
        if name in code.co_freevars:
            cell = (function.__closure__ or ())[code.co_freevars.index(name)]
            try:
                return self.admit(cell.cell_contents, f"{self.assumed.constant(cell)}.cell_contents")
            except ValueError:
                raise NotReadable(f"its forward uses {name}, which has no value") from None
        space = function.__globals__
        if name in space:
            return self.admit(space[name], f"{self.assumed.constant(space)}[{name!r}]")
        built_in = space.get("__builtins__", {})
        found = (vars(built_in) if isinstance(built_in, ModuleType) else built_in).get(name, MISSING)
        if found is MISSING:
            raise NotReadable(f"its forward uses {name}, which is not defined")
        self.assumed.require(f"{name!r} not in {self.assumed.constant(space)}")
        return found

    # --- Attributes ---

    def attribute(self, owner: Any, name: str) -> Any:
        """What `owner.name` gives; a `property` for one that the reader has to follow.

        Raises:
            Absent: there is no such attribute.
        """
        if name.startswith("__") and not name.endswith("__"):
            raise NotReadable(f"its forward uses a private name, {name}")
        if not is_setting(owner) and not (isinstance(owner, ModuleType) and is_library(owner.__name__)):
            self.refuse_if_set(name)
        if isinstance(owner, Layer):
            return self._of_module(owner, name)
        if isinstance(owner, ModuleType):
            if name not in vars(owner):
                if type(owner) is not ModuleType or "__getattr__" in vars(owner):
                    raise NotReadable(f"its forward reads {name} of {owner.__name__}, which computes it")
                self.assumed.require(f"not hasattr({self.assumed.constant(owner)}, {name!r})")
                raise Absent(name)
            return self.admit(vars(owner)[name], dotted(self.assumed.constant(owner), name))
        if isinstance(owner, type):
            return self._of_class(owner, name)
        if isinstance(owner, Outside):
            return self._of_object(owner, name)
        if isinstance(owner, Collection):
            if not hasattr(owner.kind, name):
                raise Absent(name)
            return Bound(owner, name)
        if is_setting(owner):
            if not hasattr(type(owner) if isinstance(owner, Enum) else owner, name):
                raise Absent(name)
            if isinstance(owner, Enum) and name not in ("name", "value"):
                raise NotReadable(f"its forward reads {name} of a {type(owner).__name__}")
            found = getattr(owner, name)
            return Bound(owner, name) if callable(found) else found
        raise NotReadable(f"its forward reads {name} of a {type(owner).__name__}")

    def _of_module(self, layer: Layer, name: str) -> Any:
        module, variable = layer.module, self.assumed.module(layer.path)
        if name == "training":
            if layer.path:
                self.assumed.require(f"{variable}.training is {self._training}")
            return self._training
        kind = type(module)
        expression = dotted(variable, name)
        found = on_class(kind, name)
        if isinstance(found, property) or hasattr(type(found), "__set__"):
            return self._property(kind, name, found)
        if name in vars(module):
            if name in ("_modules", "_parameters", "_buffers"):
                return self._members(layer, name)
            return self.admit(vars(module)[name], expression)
        if found is not MISSING:
            self.assumed.require(f"{name!r} not in {variable}.__dict__")
            return self._bound(kind, name, found, layer, expression)
        _refuse_own_lookup(kind, (nn.Module.__getattr__,))
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                return self._tensor(layer, name, tensors[name])
        if name in module._modules:
            return self.member(layer, name)
        self.assumed.require(f"not hasattr({variable}, {name!r})")
        raise Absent(name)

    def _tensor(self, layer: Layer, name: str, value: Tensor | None) -> Any:
        expression = dotted(self.assumed.module(layer.path), name)
        if value is None:
            self.assumed.require(f"{expression} is None")
            return None
        self.assumed.require(f"{expression} is not None")
        return self._graph.get_attr(f"{layer.path}.{name}" if layer.path else name)

    def member(self, layer: Layer, name: str) -> Layer | None:
        """A module of a module, by the first of its names."""
        module = layer.module._modules[name]
        path = f"{layer.path}.{name}" if layer.path else name
        if module is None:
            self.assumed.require(f"{self.assumed.module(layer.path)}._modules[{name!r}] is None")
            return None
        first = self._names.get(module, path)
        if first != path:
            self.assumed.require(f"{self.assumed.module(path)} is {self.assumed.module(first)}")
        return self.layer(module, first)

    def members(self, layer: Layer) -> dict[str, Layer | None]:
        """All modules of a module, in order."""
        self.assumed.has_members(layer.path, list(layer.module._modules))
        return {name: self.member(layer, name) for name in layer.module._modules}

    def _members(self, layer: Layer, name: str) -> Collection:
        if name == "_modules":
            return Collection(dict(self.members(layer)), own=False)
        found = getattr(layer.module, name)
        self.assumed.require(f"[*{self.assumed.module(layer.path)}.{name}] == {list(found)!r}")
        return Collection({key: self._tensor(layer, key, value) for key, value in found.items()}, own=False)

    def _of_class(self, kind: type, name: str) -> Any:
        found = on_class(kind, name)
        if found is MISSING:
            if hasattr(type(kind), name):
                raise NotReadable(f"its forward reads {name} of the class {kind.__name__}")
            self.assumed.require(f"not hasattr({self.assumed.constant(kind)}, {name!r})")
            raise Absent(name)
        expression = dotted(self.assumed.constant(kind), name)
        if isinstance(found, staticmethod):
            found = found.__func__
        elif isinstance(found, classmethod):
            return self._bound(kind, name, found, kind, expression)
        elif hasattr(type(found), "__get__") and not is_of_the_program(found):
            raise NotReadable(f"its forward reads {name} of the class {kind.__name__}")
        return self.admit(found, expression)

    def _of_object(self, owner: Outside, name: str) -> Any:
        kind = type(owner.value)
        expression = dotted(owner.expression, name)
        is_configuration = _is_configuration(kind)
        if is_configuration and name not in kind.attribute_map:
            # What it adds to Python's own lookup are other names for attributes.
            expression = f"{self.assumed.constant(object.__getattribute__)}({owner.expression}, {name!r})"
        else:
            _refuse_own_lookup(kind, ())
        self.assumed.require(f"type({owner.expression}) is {self.assumed.constant(kind)}")
        if self.user_code_ran and not is_configuration and self.effects.of_methods(kind) & {name, ANYTHING}:
            raise NotReadable(f"its forward reads {name} after it has called code that may set it")
        found = on_class(kind, name)
        if isinstance(found, property):
            return self._property(kind, name, found)
        own = _own_attributes(owner.value)
        if name in own and not isinstance(found, _DESCRIPTORS):
            return self.admit(own[name], expression)
        if isinstance(found, MemberDescriptorType):
            if not hasattr(owner.value, name):
                raise NotReadable(f"its forward reads {name}, which has no value")
            return self.admit(getattr(owner.value, name), expression)
        if found is MISSING:
            self.assumed.require(f"not hasattr({owner.expression}, {name!r})")
            raise Absent(name)
        return self._bound(kind, name, found, owner, expression)

    def _property(self, kind: type, name: str, found: Any) -> property:
        if not isinstance(found, property) or not isinstance(found.fget, FunctionType):
            raise NotReadable(f"its forward reads {name}, which {kind.__name__} computes")
        owner = next(base for base in kind.__mro__ if name in vars(base))
        constant = self.assumed.constant(found)
        self.assumed.require(f"{self.assumed.constant(owner)}.__dict__[{name!r}] is {constant}")
        return found

    def _bound(self, kind: type, name: str, found: Any, owner: Any, expression: str) -> Any:
        """What a class attribute is when looked up on an object."""
        if isinstance(found, FunctionType):
            self.assumed.has_attribute(kind, name)
            return Method(found, owner)
        if isinstance(found, staticmethod):
            return self.admit(found.__func__, expression)
        if isinstance(found, classmethod) and isinstance(found.__func__, FunctionType):
            self.assumed.is_value(f"{expression}.__func__", found.__func__)
            return Method(found.__func__, kind)
        if hasattr(type(found), "__get__") and not isinstance(found, (type, ModuleType, *_BUILT_IN)):
            raise NotReadable(f"its forward reads {name}, which {kind.__name__} computes")
        if isinstance(found, (MethodDescriptorType, WrapperDescriptorType)):
            raise NotReadable(f"its forward calls {name} of a {kind.__name__}")
        return self.admit(found, expression)

    def next_in_line(self, after: type, layer: Layer, name: str) -> Method:
        """`super().name`: the function of the next class that has it."""
        line = type(layer.module).__mro__
        if after not in line:
            raise NotReadable(f"its forward uses super().{name} of another class")
        for base in line[line.index(after) + 1 :]:
            if name in vars(base):
                found = vars(base)[name]
                if not isinstance(found, FunctionType):
                    break
                self.assumed.has_attribute(base, name)
                return Method(found, layer)
        raise NotReadable(f"its forward uses super().{name}")


def on_class(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), MISSING)


def _own_attributes(value: Any) -> dict[str, Any]:
    """`vars(value)`, without asking code of the user's."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}


def _is_configuration(kind: Any) -> bool:
    """Whether a class is a configuration of the package transformers."""
    lookup = on_class(kind, "__getattribute__")
    return getattr(lookup, "__module__", "") == "transformers.configuration_utils" and hasattr(kind, "attribute_map")


def _refuse_own_lookup(kind: type, allowed: tuple[Any, ...]) -> None:
    """Raises if a class answers for its attributes by code of its own."""
    if kind is not SimpleNamespace and on_class(kind, "__getattribute__") is not object.__getattribute__:
        raise NotReadable(f"{kind.__name__} has its own __getattribute__")
    if on_class(kind, "__getattr__") not in (MISSING, *allowed):
        raise NotReadable(f"{kind.__name__} has its own __getattr__")


def children_of(state: State, layer: Layer, named: bool) -> Iterator[Any]:
    """`children()` or `named_children()`: each module once, without members that are None."""
    seen: set[nn.Module] = set()
    for name, member in state.members(layer).items():
        if member is not None and member.module not in seen:
            seen.add(member.module)
            yield Collection((name, member)) if named else member
