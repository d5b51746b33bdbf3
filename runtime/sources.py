"""Finding the pictures that a command names: files and folders."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from segship.runtime.errors import ImageError
from segship.runtime.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class SourceFile:
    """A picture to be segmented.

    Attributes:
        path: of the file.
        place: its path below what was given, which the outputs mirror.
    """

    path: Path
    place: Path


def find_images(sources: Sequence[Path], *, leave_out: Iterable[Path] = ()) -> list[SourceFile]:
    """List pictures: files as they are named, folders with all that is below them, sorted.

    Args:
        sources: files and folders. A named file counts whatever its name ends in.
        leave_out: folders whose content is not looked at: those that outputs go to.

    Raises:
        ImageError: if a source is missing, or a folder holds no pictures.
    """
    outputs = {folder.resolve() for folder in leave_out}
    paths: dict[Path, Path] = {}  # by absolute path, so that a picture named twice is done once
    for source in sources:
        if source.is_dir():
            found = _walk(source, outputs)
            if not found:
                raise ImageError(f"{source} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
            for path in found:
                paths.setdefault(_absolute(path), path)
        elif source.exists():
            paths.setdefault(_absolute(source), source)
        else:
            raise ImageError(f"{source}: no such file or folder")
    if len(sources) == 1 and sources[0].is_dir():
        root = _absolute(sources[0])
    else:
        root = Path(os.path.commonpath([absolute.parent for absolute in paths]))
    return [SourceFile(path, absolute.relative_to(root)) for absolute, path in paths.items()]


def _absolute(path: Path) -> Path:
    """Make absolute, and take out "..": outputs mirror the rest, and must not lie beside the folder they belong in."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # Path.absolute keeps "..", Path.resolve follows links


def _walk(folder: Path, leave_out: set[Path]) -> list[Path]:
    """List the pictures below a folder; links to folders are not followed, so there is no way into a loop."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if (Path(place) / name).resolve() not in leave_out)
        found += (Path(place) / name for name in sorted(files) if _is_picture(name))
    return found


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")  # hidden, or half-written


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ImageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error
