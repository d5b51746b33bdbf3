"""What Ultralytics writes into the metadata of the ONNX files that it exports, as values of a card.

Its semantic networks take red, green, blue pictures in 0…1 that are letterboxed on grey, and return a map of class ids.
"""

import ast
import re
from collections.abc import Mapping
from typing import Final

from segship.runtime.card import MAX_CLASSES
from segship.runtime.card_values import CardValues
from segship.runtime.errors import CardError
from segship.runtime.preprocess import MAX_SIDE_PX

_AUTHOR: Final = "Ultralytics"
_TASK: Final = "semantic"
_LETTERBOX_FILL: Final = 114
_MAX_NAMES_CHARACTERS: Final = 1 << 20

_ENTRY: Final = re.compile(r"""\s*(\d{1,6})\s*:\s*('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*(,|\Z)""")
_SIDES: Final = re.compile(r"\s*[\[(]\s*(\d{1,6})\s*,\s*(\d{1,6})\s*[\])]\s*")


def is_of_ultralytics(metadata: Mapping[str, str]) -> bool:
    """Tell whether Ultralytics exported the file that has this metadata."""
    return metadata.get("author") == _AUTHOR and "task" in metadata and "names" in metadata


def ultralytics_values(metadata: Mapping[str, str]) -> CardValues:
    """Return what the metadata of a semantic network says.

    A network of a single class returns 1 where it sees that class: the other one is called background.

    Raises:
        CardError: if the network has another task, or the metadata cannot be read.
    """
    task = metadata["task"]
    if task != _TASK:
        raise CardError(
            f"this Ultralytics network has the task {task[:40]!r}, and segship runs semantic segmentation (segment is "
            f"instance segmentation: a mask for each object); expected the task {_TASK!r}, such as that of yolo26n-sem"
        )
    names = class_names(metadata["names"])
    if len(names) == 1:
        names = ("background", *names)
    channels = _number(metadata, "channels", 3, 1 << 10)
    if channels not in (1, 3):
        raise CardError(f"this Ultralytics network takes pictures of {channels} channels; expected 1 or 3")
    return CardValues(
        class_names=names,
        size=_size(metadata["imgsz"]) if "imgsz" in metadata else None,
        mean=",".join(["0"] * channels),
        std=",".join(["1"] * channels),
        color_order="RGB" if channels == 3 else "grey",
        scale="full_scale",
        depth="uint8",
        resize="letterbox",
        fill=_LETTERBOX_FILL,
        stride=_number(metadata, "stride", 32, MAX_SIDE_PX),
    )


def class_names(text: str) -> tuple[str, ...]:
    """Read ``{0: 'road', 1: "driver's cab"}``, a dict as Python prints it, whose keys must be 0, 1, 2 and so on.

    Raises:
        CardError: if it is anything else.
    """
    inner = text.strip()
    if len(text) > _MAX_NAMES_CHARACTERS or not (inner.startswith("{") and inner.endswith("}")):
        raise CardError(f"the metadata's names are {text[:80]!r}; expected {{0: 'name', 1: 'name'}} and so on")
    inner = inner[1:-1]
    names: list[str] = []
    at = 0
    while at < len(inner):
        entry = _ENTRY.match(inner, at)
        if entry is None or int(entry[1]) != len(names) or len(names) == MAX_CLASSES:
            raise CardError(f"the metadata's names go on with {inner[at : at + 60]!r}; expected {len(names)}: 'name'")
        names.append(_literal(entry[2]))
        at = entry.end()
    if not names:
        raise CardError("the metadata names no class; expected at least one")
    return tuple(names)


def _literal(text: str) -> str:
    """Read one string in quotes, in which only escapes mean something."""
    try:
        name = str(ast.literal_eval(text))
        name.encode()  # half a surrogate pair is no text
        return name
    except (SyntaxError, ValueError) as error:
        raise CardError(f"the metadata's names hold {text[:80]!r}, which is no string of Python's ({error})") from error


def _size(text: str) -> tuple[int, int]:
    sides = _SIDES.fullmatch(text)
    if sides is None:
        raise CardError(f"the metadata's imgsz is {text[:80]!r}; expected [height, width]")
    return int(sides[1]), int(sides[2])


def _number(metadata: Mapping[str, str], key: str, default: int, largest: int) -> int:
    text = metadata.get(key, str(default)).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= largest):
        raise CardError(f"the metadata's {key} is {text[:40]!r}; expected a number in 1…{largest}")
    return int(text)
