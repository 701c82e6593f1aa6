"""The user's own code, named as FILE.py:function: looked at without running it, run only when it is needed.

Only the one file is loaded, and its hash stands for it in records and caches; so what it imports must be installed packages.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError, check_name

_MAX_SOURCE = 4 * 2**20  # bytes
_FORM = re.compile(r"(.+\.py):([A-Za-z_]\w*)", re.DOTALL)
_SETTING = re.compile(r"\s+([a-z_]+):(\S+)$")


class UserFunction(NamedTuple):
    """A function, or a class, at the top of a Python file.

    Attributes:
        path: of the file.
        name: in it.
    """

    path: Path
    name: str

    @property
    def text(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def identity(self) -> str:
        """File name, function and hash of the source: the same for the same code, wherever it lies."""
        return f"{self.path.name}:{self.name} sha256 {hashlib.sha256(_source(self.path)).hexdigest()[:16]}"


def parse(text: str) -> UserFunction | None:
    """What `FILE.py:function` names, the path absolute; None for a text of another form."""
    found = _FORM.fullmatch(text.strip())
    return UserFunction(Path(found[1]).expanduser().absolute(), found[2]) if found else None


def split_settings(text: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A name and the settings after it, written `name key:value key:value`; blanks inside the name stay.

    Raises:
        InputError: an unknown setting, or one given twice.

    >>> split_settings("folder:my pictures size:64 skip:broken", ["size", "skip"])
    ('folder:my pictures', {'size': '64', 'skip': 'broken'})
    """
    text, settings = text.strip(), {}
    while found := _SETTING.search(text):
        if found[1] in settings:
            raise InputError(f"the setting {found[1]} is given twice in {text!r}")
        settings[check_name("setting", found[1], allowed)] = found[2]
        text = text[: found.start()]
    return text, dict(reversed(settings.items()))


def check(function: UserFunction, parameters: Sequence[str]) -> None:
    """Refuse what can't be called, by reading the file: nothing in it is run.

    Args:
        parameters: names of the arguments that will be offered; the function may take fewer, and others only with defaults.
    Raises:
        InputError: no such file, no Python, no such function (with the nearest name), or an argument that nobody will give.
    """
    source = _source(function.path)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{function.path.name} is no Python that can be read: {error}") from None
    callables = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {node.name: node for node in tree.body if isinstance(node, callables)}
    if not found:
        raise InputError(f"{function.path.name} defines no function at its top; {function.name} was asked for")
    node = found[check_name(f"function in {function.path.name}", function.name, found)]
    if isinstance(node, ast.AsyncFunctionDef):
        raise InputError(f"{function.name} in {function.path.name} is asynchronous; a plain function is needed")
    if isinstance(node, ast.FunctionDef):
        positional = [*node.args.posonlyargs, *node.args.args]
        needed = positional[: len(positional) - len(node.args.defaults)]
        needed += [one for one, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value is None]
        unknown = [one.arg for one in needed if one.arg not in parameters or one in node.args.posonlyargs]
        if unknown:
            offered = ", ".join(parameters) or "none"
            raise InputError(
                f"{function.name} in {function.path.name} needs the argument {unknown[0]!r}; arguments that are given "
                f"to it, by name: {offered}"
            )


def call(function: UserFunction, **offered: Any) -> Any:
    """Run the file, then its function with those of the offered arguments that it takes.

    Raises:
        InputError: what `check` refuses, or any exception of the user's code, in one sentence with the line it came from.
    """
    check(function, list(offered))
    where = f"{function.path.name}:{function.name}"
    try:
        made: Callable = getattr(_load(function.path), function.name)
        taken = inspect.signature(made).parameters
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        return made(**{name: value for name, value in offered.items() if every or name in taken})
    except InputError:
        raise
    except Exception as error:
        line = _line(error, function.path)
        raise InputError(f"{where} failed{line}: {type(error).__name__}: {error}") from error


def _load(path: Path):
    """A fresh module of the file's present text; kept in sys.modules, where dataclasses and pickles of workers look for it."""
    name = f"kdnb_own_{hashlib.sha256(str(path).encode() + _source(path)).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # a path that ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _line(error: BaseException, path: Path) -> str:
    """The last line of the user's file in the traceback."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _source(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"the file {path} does not exist")
        if path.stat().st_size > _MAX_SOURCE:
            raise InputError(f"{path.name} is larger than {_MAX_SOURCE} bytes; it is no file of code")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} can't be read: {error.strerror}") from error
