"""What a job of ``seg-infer`` may be told beyond its options: ``--set key=value``, one validated set of dataclasses."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import BackendError
from segship.runtime.outputs import OutputOptions
from segship.runtime.postprocess import PostProcess
from segship.runtime.strict import parse

_SWITCHES: Final = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True)
class Knobs:
    """How engine, labels and outputs are made, where it differs from the defaults.

    Attributes:
        engine: options of the engine.
        post: what is done to labels.
        outputs: how results are drawn and written.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    post: PostProcess = field(default_factory=PostProcess)
    outputs: OutputOptions = field(default_factory=OutputOptions)


def read_knobs(pairs: Sequence[str], **options: Any) -> Knobs:
    """Return the knobs that texts such as ``cache=/tmp/engines`` set; of one key the last counts.

    Args:
        pairs: ``key=value``, a field of one of the dataclasses in :class:`Knobs` each.
        options: fields that options of the command of their own set; None: what the pairs say.

    Raises:
        click.UsageError: if a text is no pair, its key is unknown or its value does not fit.
    """
    homes = {key: name for name, key, _, _ in _knobs()}
    kinds = {key: kind for _, key, kind, _ in _knobs()}
    values: dict[str, dict[str, object]] = {"engine": {}, "post": {}, "outputs": {}}
    for pair in pairs:
        key, separator, text = (part.strip() for part in pair.partition("="))
        if not separator or key not in homes:
            raise click.UsageError(f"--set {pair!r}: expected KEY=VALUE, with one of the keys {', '.join(homes)}")
        values[homes[key]][key] = _value(text, kinds[key])
    for key, value in options.items():
        if value is not None:
            values[homes[key]][key] = value
    try:
        return parse(Knobs, values, "--set", BackendError)
    except (BackendError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def describe_knobs() -> str:
    """List all keys with what they may be and by default are, a line each."""
    lines = []
    for _, key, kind, default in _knobs():
        choices = [str(choice) for choice in _choices(kind)]
        what = " | ".join(choices) or " or ".join(part.__name__ for part in _parts(kind))
        lines.append(f"{key}={what}  [default: {'by the engine' if default is None else default}]")
    return "\n".join(lines)


def _knobs() -> Iterator[tuple[str, str, Any, Any]]:
    """List dataclass, key, type and default of each knob."""
    for name, home in (("engine", EngineOptions), ("post", PostProcess), ("outputs", OutputOptions)):
        kinds = typing.get_type_hints(home)
        for knob in dataclasses.fields(home):
            kind = kinds[knob.name]
            if _parts(kind) or _choices(kind):  # a text can say it
                yield name, knob.name, kind, knob.default


def _parts(kind: Any) -> tuple[Any, ...]:
    return tuple(part for part in typing.get_args(kind) or (kind,) if part in (bool, int, float, str))


def _choices(kind: Any) -> list[Any]:
    """Return the words that a field may hold, if it is one of a list of words."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [choice for part in typing.get_args(kind) for choice in _choices(part)]


def _value(text: str, kind: Any) -> object:
    """Read ``text`` as the type of the field it is for, as far as it can be; what does not fit, ``parse`` refuses."""
    parts = _parts(kind)
    if bool in parts:
        return _SWITCHES.get(text.lower(), text)
    if int in parts and text.removeprefix("-").isdecimal():
        return int(text)
    try:
        return float(text) if float in parts else text
    except ValueError:
        return text
