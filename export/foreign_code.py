"""Building a network by the code of its author: what ``module:callable`` names is imported and called."""

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from segship.runtime.errors import ExportError, one_line
from segship.training.initialise import shortened

_TARGET: Final = re.compile(r"(?P<place>.+?):(?P<name>[A-Za-z_][\w.]*)(?P<values>\(.*\))?", re.DOTALL)
_TORCH_FOLDER: Final = str(Path(torch.__file__).parent)


def is_target(text: str) -> bool:
    """Tell ``module:callable`` from the path of a checkpoint."""
    return _TARGET.fullmatch(text) is not None


def build_foreign(target: str) -> nn.Module:
    """Import what a target names, and call it.

    Args:
        target: ``package.module:callable`` or ``path/to/file.py:callable``; named plain values may follow in brackets.

    Returns:
        The network, on the CPU, as it was made.

    Raises:
        ExportError: if there is no such thing, its code fails, or what it returns is no ``nn.Module``.
    """
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise ExportError(f"{target!r} names no network; expected package.module:callable or path/to/file.py:callable")
    keywords = _keywords(parts["values"] or "()", target)
    place, name = parts["place"], parts["name"]
    with _importable(place):
        module = _import(place)
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                raise ExportError(f"{place} has no {name}; it has {shortened(_callables(module)) or 'no callables'}")
            found = getattr(found, part)
        with foreign_code(f"calling {target}"):
            network = found if isinstance(found, nn.Module) and not keywords else found(**keywords)
    if not isinstance(network, nn.Module):
        raise ExportError(
            f"{target} returned an object of the type {type(network).__name__}; expected a torch.nn.Module"
        )
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        raise ExportError(
            f"{target} has lazy modules, whose sizes are not known yet; run it once before it is returned"
        )
    return network.cpu()


@contextlib.contextmanager
def foreign_code(doing: str) -> Iterator[None]:
    """Let code of others run: what it prints goes to stderr, and what it raises becomes one line that says where.

    Args:
        doing: what is done, as the subject of that line.

    Raises:
        ExportError: if it fails.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ExportError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything, and a script ends itself
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
        place = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        raise ExportError(f"{doing} raised {type(error).__name__}: {one_line(error)}{place}") from error


def _keywords(values: str, target: str) -> dict[str, Any]:
    """Read what lies in the brackets of a target: names and literal values, of which nothing is evaluated."""
    try:
        call = ast.parse(f"call{values}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("more than one pair of brackets")
        if call.args or not all(keyword.arg for keyword in call.keywords):
            raise ValueError("a value without a name")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ExportError(
            f"{target!r} cannot be read ({one_line(error)}); expected names and plain values in the brackets, such as "
            "nets.py:make(classes=19)"
        ) from None


@contextlib.contextmanager
def _importable(place: str) -> Iterator[None]:
    """Let what a target names import what lies beside it, as Python does for a script or for ``python -m``."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # it may have been taken out
            sys.path.remove(folder)


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            with foreign_code(f"importing {place}"):
                return importlib.import_module(place)
        except ExportError as error:
            missing = getattr(error.__cause__, "name", None)
            if isinstance(error.__cause__, ModuleNotFoundError) and f"{place}.".startswith(f"{missing}."):
                raise ExportError(
                    f"no module is called {place}; expected one that is installed or lies in the current folder, "
                    "or path/to/file.py:callable"
                ) from None
            raise
    path = Path(place)
    if not path.is_file():
        raise ExportError(f"{path} is not there, or no file; expected path/to/file.py:callable")
    name = f"segship_foreign_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path} cannot be imported; expected a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses and pickles look for it
    with foreign_code(f"importing {place}"):
        spec.loader.exec_module(module)
    return module


def _callables(module: ModuleType) -> list[str]:
    """List what a module itself defines that can be called."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return [name for name, value in own.items() if callable(value)]


def _is_foreign(file: str) -> bool:
    return not file.startswith(("<", _TORCH_FOLDER)) and file != __file__
