"""Colours that a user asks for: a palette by its name, a file of colours, or the colours of single classes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Final

from segship.runtime.card import ModelCard
from segship.runtime.class_choice import class_id
from segship.runtime.errors import CardError
from segship.runtime.palettes import PALETTES, Color, distinct_colors, parse_hex, voc_colors

DISTINCT: Final = "distinct"
PALETTE_NAMES: Final = (*PALETTES, DISTINCT)
"""What ``--palette`` takes by name."""

_MAX_FILE_BYTES: Final = 4 << 20
_HEX: Final = re.compile(r"#([0-9a-fA-F]{6})")
_NUMBERS: Final = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*", re.ASCII)
_LINE: Final = re.compile(r"(?:(.*\S)\s+)?(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})", re.ASCII)
_MAX_LINE: Final = 300


def parse_palette(text: str, card: ModelCard) -> ModelCard:
    """Return the card with other colours.

    Args:
        text: one or several of these, separated by semicolons; the later overrule the earlier:

            - the name of a palette, of :data:`PALETTE_NAMES`;
            - a file: JSON, a list of ``[r, g, b]`` or of objects with ``color`` and ``name`` or ``id``, such as
              ``classes.json``; or text, a line for each class, ``r g b`` or ``name r g b``;
            - the colour of one class, by id or name: ``1=0,0,255`` or ``car=#0000ff``.

            A palette or file whose names include those of all the card's classes gives each class the colour of its
            name; any other gives colours in the order of ids, and must then have one for each class.
        card: of the model.

    Raises:
        CardError: if the text is none of these, a file cannot be read, or a class or colour is wrong.
    """
    colors = list(card.palette)
    for part in [text] if Path(text).is_file() else text.split(";"):
        name, path = part.strip(), Path(part.strip())
        if name.lower() == DISTINCT:
            colors = list(distinct_colors(card.num_classes))
        elif name.lower() in PALETTES:
            table = PALETTES[name.lower()]
            rule = voc_colors(256) if table is PALETTES["voc"] else table.palette
            colors = _fitted(list(table.names), list(rule), card, f"the palette {name}")
        elif path.is_file():
            colors = _read_file(path, card, colors)
        elif "=" in name:
            class_name, _, color = name.rpartition("=")
            colors[class_id(class_name.strip(), card)] = _color_of_text(color.strip(), part)
        else:
            raise CardError(
                f"--palette {name!r} is neither a palette ({', '.join(PALETTE_NAMES)}) nor a file nor a class with its "
                "colour, such as 1=0,0,255 or car=#0000ff"
            )
    return dataclasses.replace(card, palette=tuple(colors))


def _fitted(names: list[str | None], colors: list[Color], card: ModelCard, origin: str) -> list[Color]:
    """Give each class of a card its colour: by name, if all its names are there, otherwise by its id."""
    by_name = {name.casefold(): color for name, color in zip(names, colors, strict=False) if name is not None}
    if all(name.casefold() in by_name for name in card.class_names):
        return [by_name[name.casefold()] for name in card.class_names]
    if len(colors) < card.num_classes:
        raise CardError(f"{origin} has {len(colors)} colours; this model has {card.num_classes} classes")
    return colors[: card.num_classes]


def _read_file(path: Path, card: ModelCard, colors: list[Color]) -> list[Color]:
    """Return the colours of a file; where its rows name ids, those of the other classes stay as they are."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MAX_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: the palette cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not text.lstrip().startswith("["):
        return _fitted(*_text_rows(text, path), card, str(path))
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: the palette is no valid JSON ({error})") from error
    if rows and all(isinstance(row, dict) and "name" not in row and "id" in row for row in rows):
        return _with_ids(rows, card, colors, path)
    names = [row.get("name") if isinstance(row, dict) else None for row in rows]
    if not all(name is None or isinstance(name, str) for name in names):
        raise CardError(f"{path}: a name is no text; expected such as {{'name': 'car', 'color': [0, 0, 255]}}")
    values = [_color_of_json(row.get("color") if isinstance(row, dict) else row, path) for row in rows]
    return _fitted(names, values, card, str(path))


def _with_ids(rows: list[dict[str, Any]], card: ModelCard, colors: list[Color], path: Path) -> list[Color]:
    for row in rows:
        if not isinstance(row["id"], int) or not 0 <= row["id"] < card.num_classes:
            raise CardError(f"{path}: a class has the id {row['id']!r}; this model's are 0…{card.num_classes - 1}")
        colors[row["id"]] = _color_of_json(row.get("color"), path)
    return colors


def _text_rows(text: str, path: Path) -> tuple[list[str | None], list[Color]]:
    names: list[str | None] = []
    colors: list[Color] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip()) if len(line) <= _MAX_LINE else None
        if found is None:
            raise CardError(f"{path}, line {number}: {line.strip()[:80]!r}; expected r g b or name r g b, each 0…255")
        names.append(found[1])
        colors.append(_checked(found.groups()[1:], f"{path}, line {number}"))
    return names, colors


def _color_of_json(value: object, path: Path) -> Color:
    if isinstance(value, str) and (found := _HEX.fullmatch(value)):
        return parse_hex(found[1])
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value):
        return _checked(value, str(path))
    raise CardError(f"{path}: a colour is {str(value)[:80]}; expected [red, green, blue], each 0…255")


def _color_of_text(text: str, part: str) -> Color:
    if found := _HEX.fullmatch(text):
        return parse_hex(found[1])
    if found := _NUMBERS.fullmatch(text):
        return _checked(found.groups(), f"--palette {part.strip()!r}")
    raise CardError(f"--palette {part.strip()!r}: {text!r} is no colour; expected such as 0,0,255 or #0000ff")


def _checked(values: Any, origin: str) -> Color:
    red, green, blue = (int(value) for value in values)
    if not (0 <= red <= 255 and 0 <= green <= 255 and 0 <= blue <= 255):
        raise CardError(f"{origin}: the colour {red},{green},{blue} has a value outside 0…255")
    return red, green, blue
