"""The syntax tree of a function, checked against its bytecode: a file that was edited since is noticed."""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
from types import CodeType, FunctionType
from typing import Any

from .effects import Effects
from .errors import NotReadable

_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_SAME = ("co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
_JUMPS = {*dis.hasjrel, *dis.hasjabs}


class Sources:
    """Syntax trees by code object, and the names that functions set: each found once."""

    def __init__(self) -> None:
        self.effects = Effects()
        self._trees: dict[CodeType, ast.FunctionDef | str] = {}

    def tree(self, function: FunctionType) -> ast.FunctionDef:
        """The definition of a function.

        Raises:
            NotReadable: its source is not at hand, or not what was compiled.
        """
        code = function.__code__
        if code not in self._trees:
            try:
                self._trees[code] = _tree(code)
            except NotReadable as error:
                self._trees[code] = str(error)
        found = self._trees[code]
        if isinstance(found, str):
            raise NotReadable(found)
        return found


def _tree(code: CodeType) -> ast.FunctionDef:
    name = code.co_name
    try:
        lines, first = inspect.getsourcelines(code)
        source = "".join(lines)
        # Not dedented, which would change strings of several lines.
        parsed = ast.parse(f"if True:\n{source}" if source[0].isspace() else source).body[0]
        tree = parsed.body[0] if isinstance(parsed, ast.If) else parsed
    except (OSError, TypeError, SyntaxError, IndexError):
        raise NotReadable(f"the source of {name} is not at hand") from None
    if not isinstance(tree, ast.FunctionDef):
        raise NotReadable(f"{name} is not an ordinary function")
    ast.increment_lineno(tree, first - (2 if source[0].isspace() else 1))
    tree.decorator_list = []  # the function at hand is what they returned
    if not any(_is_same(found, code) for found in _compiled(tree, code)):
        raise NotReadable(f"the source of {name} has changed since it was imported")
    return tree


def _compiled(tree: ast.FunctionDef, code: CodeType) -> list[CodeType]:
    """The tree as bytecode, within a class and a function that has its free variables."""
    owner = code.co_qualname.split(".")[-2:-1] if hasattr(code, "co_qualname") else []
    inside: ast.stmt = tree
    if owner and owner[0].isidentifier():
        inside = ast.ClassDef(owner[0], [], [], [tree], [])
    elif "__class__" in code.co_freevars:
        inside = ast.ClassDef("Owner", [], [], [tree], [])
    free = [name for name in code.co_freevars if name != "__class__"]
    values: list[ast.stmt] = [ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in free]
    nothing = ast.arguments([], [], None, [], [], None, [])
    outer = ast.FunctionDef("outer", nothing, [*values, inside], [])
    module = ast.fix_missing_locations(ast.Module([outer], []))
    whole = compile(module, code.co_filename, "exec", flags=code.co_flags & _FUTURE, dont_inherit=True)
    return [found for found in _nested(whole) if found.co_name == code.co_name]


def _nested(code: CodeType) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [*inner, *(deeper for found in inner for deeper in _nested(found))]


def _is_same(a: CodeType, b: CodeType) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in _SAME) and _instructions(a) == _instructions(b)


def _instructions(code: CodeType) -> list[tuple[str, Any]]:
    """A function's instructions, the same whether or not the file imports a name.

    CPython calls an attribute of an imported name by other instructions than a method of any other value.
    """
    found: list[dis.Instruction] = []
    places: dict[int, int] = {}
    for instruction in dis.get_instructions(code):
        places[instruction.offset] = len(found)
        if instruction.opname not in ("PUSH_NULL", "CACHE", "EXTENDED_ARG", "NOP"):
            found.append(instruction)
    result: list[tuple[str, Any]] = []
    for instruction in found:
        value = instruction.argval
        if isinstance(value, CodeType):
            value = _instructions(value)
        elif instruction.opcode in _JUMPS:
            value = places[value]
        elif isinstance(value, (float, complex, tuple)):
            value = repr(value)
        result.append((instruction.opname.replace("LOAD_METHOD", "LOAD_ATTR"), (type(value), value)))
    return result
