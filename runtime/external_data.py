"""Weights that lie in files beside an ONNX file, as those of a model of more than 2 GB must.

The graph names these files, and an engine opens whatever it names. A file from a stranger must not make it read what
lies elsewhere on the machine, so a name that leads out of the model's folder, or may do so, is refused before any
engine sees the model.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final, NoReturn

from segship.runtime.errors import ModelError
from segship.runtime.protobuf import MAX_FIELDS, Buffer, fields, mapped, parts, varint

_TENSORS_LIE_IN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Fields of onnx.proto3 that hold a tensor or what may hold one, by kind of message."""

_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


@dataclass(frozen=True)
class _Place:
    """Where a tensor's values lie: ``length`` bytes, or all there are, from ``offset`` on in the file ``location``."""

    location: str
    offset: int
    length: int | None


def external_files(path: Path) -> list[Path]:
    """List the files beside an ONNX file that hold weights of it, each once, in the order the graph names them.

    Takes time by the size of the graph, not of the weights.

    Raises:
        ModelError: if such a file is missing, too short, or not a plain file that lies in the model's folder: one that
            an absolute path, ``..``, a backslash, a drive, a symbolic or a hard link leads to.
    """
    with mapped(path) as data:
        places = dict.fromkeys(_places(data))
    sizes: dict[str, tuple[Path, int]] = {}
    for place in places:
        if place.location not in sizes:
            sizes[place.location] = _checked_file(path, place.location)
        file, size = sizes[place.location]
        if place.offset + (place.length or 0) > size:
            raise ModelError(
                f"{path}: weights lie at bytes {place.offset}…{place.offset + (place.length or 0)} of {file}, "
                f"which has {size}; copy that file again, whole"
            )
    return list(dict.fromkeys(file for file, _ in sizes.values()))


def _places(data: Buffer) -> Iterator[_Place]:
    """Yield where each tensor lies that is not in the file itself; with a stack of its own, whatever the nesting."""
    pending = [("model", 0, len(data))]
    steps = 0
    while pending:
        kind, at, end = pending.pop()
        if kind == "tensor":
            place = _place_of_tensor(data, at, end)
            if place is not None:
                yield place
            continue
        inner = _TENSORS_LIE_IN[kind]
        found = []
        for number, start, stop in fields(data, at, end):
            steps += 1
            if number in inner:
                found.append((inner[number], start, stop))
        if steps > MAX_FIELDS:
            raise ValueError(f"its graph has more than {MAX_FIELDS} fields")
        pending += reversed(found)


def _place_of_tensor(data: Buffer, at: int, end: int) -> _Place | None:
    is_external = False
    entries: dict[str, str] = {}
    for number, start, stop in fields(data, at, end):
        if number == _TENSOR_DATA_LOCATION:
            is_external |= varint(data, start)[0] != 0
        elif number == _TENSOR_EXTERNAL_DATA:
            message = data[start:stop]
            key, value = (b"".join(parts(message, part)).decode("utf-8") for part in (1, 2))
            if key in entries:  # engines differ in which one they take
                raise ValueError(f"a tensor's external data name two values for {key[:40]!r}")
            entries[key] = value
    if not is_external and "location" not in entries:
        return None
    return _Place(
        entries.get("location", ""),
        _byte_count(entries.get("offset", "0")),
        _byte_count(entries["length"]) if "length" in entries else None,
    )


def _byte_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"a tensor's external data have the offset or length {text[:40]!r}")
    return int(text)


def _checked_file(model: Path, location: str) -> tuple[Path, int]:
    """Return the file that a model's tensors name, and its size."""

    def refuse(fault: str) -> NoReturn:
        raise ModelError(
            f"{model}: its weights lie in {location[:200]!r}, {fault}; expected a plain file in the model's own "
            "folder: copy both together, as they were exported"
        )

    relative = PurePosixPath(location)
    if not relative.parts:
        refuse("which names no file")
    if relative.is_absolute() or "\\" in location or PureWindowsPath(location).drive:
        refuse("which is no relative path with slashes")
    if ".." in relative.parts:
        refuse("which may lead out of its folder")
    file = model.parent
    try:
        for part in relative.parts:
            file /= part
            status = file.lstat()
            if stat.S_ISLNK(status.st_mode) or _is_junction(status):
                refuse(f"on whose way {file} is a link")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        refuse(f"which cannot be read ({getattr(error, 'strerror', None) or error})")
    if not stat.S_ISREG(status.st_mode):
        refuse("which is no plain file")
    if status.st_nlink > 1:
        refuse("which is a hard link to a file that has another name too")
    return file, status.st_size


def _is_junction(status: os.stat_result) -> bool:
    """Tell of a folder on Windows whether it stands for another one: IO_REPARSE_TAG_MOUNT_POINT."""
    return getattr(status, "st_reparse_tag", 0) == 0xA0000003
