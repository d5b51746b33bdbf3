"""Plain values, as JSON and TOML give them, into frozen dataclasses; strictly, and evaluating nothing.

Unknown or missing keys and wrong types are errors that name the place. The card and the trainer's configuration are
read by it.
"""

import contextlib
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from segship.runtime.errors import SegshipError

Parsed = TypeVar("Parsed")


def parse(kind: type[Parsed], value: object, where: str, error: type[SegshipError]) -> Parsed:
    """Read ``value`` as the dataclass ``kind``.

    Args:
        kind: a dataclass whose fields are bool, int, float, str, Path, Literal, tuple, dict, other dataclasses, or a
            choice of these.
        value: what a JSON or TOML parser returned.
        where: what it is, for messages.
        error: raised where a value does not fit.
    """
    try:
        return cast("Parsed", _parse(kind, value, where))
    except _MisfitError as misfit:
        raise error(str(misfit)) from None


class _MisfitError(Exception):
    """A value that does not fit its field."""


def _parse(kind: Any, value: object, where: str) -> object:
    """Read ``value`` as the type ``kind``; one rule for each shape of type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, where)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise _MisfitError(f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):
        return _parse_choice(arguments, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        endless = arguments[-1] is Ellipsis
        if not endless and len(value) != len(arguments):
            raise _MisfitError(f"{where} has {len(value)} values; expected {len(arguments)}")
        kinds = [arguments[0]] * len(value) if endless else arguments
        return tuple(_parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise _misfit(where, value, _name(kind))


def _misfit(where: str, value: object, expected: str) -> _MisfitError:
    return _MisfitError(f"{where} is {str(value)[:80]!r}; expected {expected}")


def _name(kind: Any) -> str:
    """Return what a type is called by those who write JSON or TOML."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        endless = arguments[-1] is Ellipsis
        return f"a list of {_name(arguments[0]) if endless else ', '.join(map(_name, arguments))}"
    if origin is dict:
        return "an object or table"
    return str(getattr(kind, "__name__", None) or kind)


def _parse_choice(kinds: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    if len(wanted) == 1:
        return _parse(wanted[0], value, where)
    for kind in wanted:
        with contextlib.suppress(_MisfitError):
            return _parse(kind, value, where)
    raise _misfit(where, value, " or ".join(map(_name, wanted)))


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # also tells of integers that no float can hold


def _parse_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise _misfit(where, value, f"an object or table with the keys {', '.join(typing.get_type_hints(kind))}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise _MisfitError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(value)):
        raise _MisfitError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: _parse(hints[name], item, f"{where}.{name}") for name, item in value.items()})
