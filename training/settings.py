"""Settings as people write them, in TOML files and on the command line, as plain values. No torch."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from segship.runtime.errors import TrainingError

MAX_CONFIG_BYTES: Final = 1 << 20


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        TrainingError: if it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as a configuration ({error})") from error


def read_config(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML into plain values, not yet checked.

    Raises:
        TrainingError: if it is no TOML.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise TrainingError(f"{origin} has {len(text)} characters; expected a configuration of at most 1 MiB")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain ValueError
        raise TrainingError(f"{origin} is no valid TOML ({error})") from error


def setting(text: str) -> tuple[str, Any]:
    """Parse ``key=value`` as ``--set`` takes it; the value is TOML, or else a plain string, as is a date.

    Raises:
        TrainingError: if there is no ``=``.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        raise TrainingError(f"--set {text}: expected key=value, such as optimizer.ema=0.999")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key, value
    is_value = len(parsed) == 1 and isinstance(parsed["value"], bool | int | float | str | list | dict)
    return key, parsed["value"] if is_value else value


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with some replaced; keys lead into tables by dots (``optimizer.ema``).

    Raises:
        TrainingError: if a key leads through something that is no table.
    """
    result = dict(values)
    for key, value in settings.items():
        table = result
        *path, name = key.split(".")
        for step in path:
            inner = table.get(step, {})
            if not isinstance(inner, Mapping):
                raise TrainingError(f"{key} cannot be set: {step} is a value, not a table")
            table[step] = table = dict(inner)
        table[name] = value
    return result
