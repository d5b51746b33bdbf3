"""What ``seg-export`` refuses before it does any work: wrong use, and places that must not be written."""

import os
from collections.abc import Mapping
from pathlib import Path

import click
from click.core import ParameterSource

from segship.runtime.console import chosen
from segship.runtime.errors import OutputError

_OF_INT8 = ("calibrate", "calibration_images", "int8_for", "budget")


def check_use(precision: str) -> None:
    """Refuse options that would have no effect, since whoever gives them expects one.

    Raises:
        click.UsageError: naming them.
    """
    if precision == "int8" and not given("calibrate"):
        raise click.UsageError("--precision int8 takes its ranges from real pictures; add --calibrate DATA")
    if precision != "int8" and (options := given(*_OF_INT8)):
        raise click.UsageError(f"{', '.join(options)}: for --precision int8 only")
    if not given("images") and given("limit"):
        raise click.UsageError("--limit: for the pictures of --images only")
    if not given("images", "calibrate") and given("convert"):
        raise click.UsageError("--convert: for the pictures of --images and --calibrate only")


def given(*names: str) -> list[str]:
    """Return which of the options of these parameters were given, as they are called."""
    context = click.get_current_context()
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]


def check_places(
    outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None], folder: Path | None, *, overwrite: bool
) -> None:
    """Refuse outputs that cannot be written, or not without loss.

    Args:
        outputs: files to write, by option.
        inputs: files that are read, by option.
        folder: of the hand-over, which is written, or replaced, as a whole.
        overwrite: files that are there may be replaced.

    Raises:
        click.UsageError: if two of them are one file, or one lies in ``folder``.
        OutputError: if one is there already, or cannot be written.
    """
    taken = {path.resolve(): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        place = path.resolve()
        if place in taken:
            raise click.UsageError(f"{option} and {taken[place]} name the same file, {path}")
        taken[place] = option
        if path.is_dir():
            raise OutputError(f"{option} {path} is a folder; expected the name of a file")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} is there already; add --overwrite, or choose another name")
        above = next(parent for parent in place.parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise OutputError(f"cannot write {path}: {above} is no folder that you may write into")
    if folder is not None:
        from segship.export.hand_over import check_free

        for place, option in taken.items():
            if place.is_relative_to(folder.resolve()):
                raise click.UsageError(f"{option} lies in the folder of --hand-over, which gets copies of its own")
        check_free(folder, overwrite=overwrite)


def engine_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the engines of these names, once each.

    Raises:
        click.UsageError: if there is no such engine, or it is PyTorch, which the others are compared with.
    """
    from importlib.metadata import entry_points

    from segship.runtime.backends import ENTRY_POINT_GROUP

    known = sorted(entry_points(group=ENTRY_POINT_GROUP).names - {"torch"})
    return chosen(",".join(names), tuple(known), "--backend")
