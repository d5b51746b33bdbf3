"""Finding the pictures that a command names: files, folders, patterns and lists of paths."""

import codecs
import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.runtime.errors import ImageError
from segship.runtime.image_opening import open_regular
from segship.runtime.images import IMAGE_SUFFIXES
from segship.runtime.printable import printable

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"})
LIST_SUFFIX: Final = ".txt"

MAX_LIST: Final = 64 << 20
"""Bytes of a list of paths."""


@dataclass(frozen=True)
class SourceFile:
    """A picture or video to be segmented.

    Attributes:
        path: of the file.
        place: its path below what was given, which the outputs mirror.
        error: why it cannot even be opened, if that is known.
    """

    path: Path
    place: Path
    error: ImageError | None = None


_Found = tuple[Path, ImageError | None]


def find_images(sources: Sequence[Path], *, leave_out: Iterable[Path] = ()) -> list[SourceFile]:
    """List pictures: files as they are named, folders with all that is below them, sorted.

    Args:
        sources: files and folders. A named file counts whatever its name ends in.
        leave_out: folders whose content is not looked at: those that outputs go to.

    Raises:
        ImageError: if a source is missing, or a folder holds no pictures or cannot be read.
    """
    outputs = {folder.resolve() for folder in leave_out}
    found = [entry for source in sources for entry in _in_folder_or_itself(source, outputs)]
    for _, error in found:
        if error is not None:
            raise error
    return _placed(found, sources)


def find_files(sources: Sequence[str | Path], *, leave_out: Iterable[Path] = ()) -> list[SourceFile]:
    """List pictures and videos: files, folders, patterns, and lists of paths.

    - A named file counts whatever its name ends in; one that ends in ``.txt`` is a list of paths, one a line, UTF-8. A
      path of a list is looked for beside the list first, then in the current folder; it may be a folder. No line is a
      comment, since names may start with any character; empty ones are skipped.
    - A folder is all the pictures below it, sorted; hidden ones and links to folders are left out, and so are pipes,
      sockets and devices. Videos are named, or matched.
    - A pattern (``*``, ``?``, ``[…]``, ``**`` for any folders) that no file has for its name is all pictures and videos
      that it matches, sorted, and those of the folders that it matches.

    Each file is listed once. A folder below that cannot be read, and a path of a list that is missing, are listed with
    their errors.

    Raises:
        ImageError: if a source is missing or cannot be read, or there is no picture in it.
    """
    outputs = {folder.resolve() for folder in leave_out}
    return _placed([entry for source in sources for entry in _named(Path(source), outputs)], sources)


def _placed(found: Iterable[_Found], sources: Sequence[str | Path]) -> list[SourceFile]:
    entries: dict[Path, _Found] = {}  # by absolute path, so that a picture named twice is done once
    for path, error in found:
        entries.setdefault(_absolute(path), (path, error))
    if len(sources) == 1 and Path(sources[0]).is_dir():
        root = _absolute(Path(sources[0]))
    else:
        good = [absolute for absolute, (_, error) in entries.items() if error is None]
        root = Path(os.path.commonpath([absolute.parent for absolute in good or entries]))
        beside = _absolute(Path(sources[0])).parent
        if len(sources) == 1 and Path(sources[0]).suffix.lower() == LIST_SUFFIX and root.is_relative_to(beside):
            root = beside  # so that a part of a list places its pictures as the whole list does
    return [SourceFile(path, _below(absolute, root), error) for absolute, (path, error) in entries.items()]


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) and path != root else Path(path.name or "root")


def _absolute(path: Path) -> Path:
    """Make absolute, and take out "..": outputs mirror the rest, and must not lie beside the folder they belong in."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # Path.absolute keeps "..", Path.resolve follows links


def _named(source: Path, leave_out: set[Path]) -> Iterator[_Found]:
    if not os.path.lexists(source) and glob.has_magic(str(source)):
        return _matched(source, leave_out)
    if source.suffix.lower() == LIST_SUFFIX and source.is_file():
        return _listed(source, leave_out)
    return _in_folder_or_itself(source, leave_out)


def _in_folder_or_itself(source: Path, leave_out: set[Path]) -> Iterator[_Found]:
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except FileNotFoundError:
        raise ImageError(f"{printable(source)}: no such file or folder") from None
    except (OSError, ValueError) as error:  # no permission, a name too long or with a zero in it, a loop of links
        raise _unreadable(source, error) from None
    if not is_folder:
        yield source, None
        return
    is_empty = True
    for path, found_error in _walk(source, leave_out):
        if path == source and found_error is not None:
            raise found_error
        yield path, found_error
        is_empty = False
    if is_empty:
        raise ImageError(f"{printable(source)} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _walk(folder: Path, leave_out: set[Path]) -> Iterator[_Found]:
    """List the pictures below a folder, and the folders that cannot be read."""
    for place, entries, error in _folders(folder, leave_out):
        if error is not None:
            yield place, error
        for entry in entries:
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and _is_visible_file(entry):
                yield place / entry.name, None


def _folders(folder: Path, leave_out: set[Path]) -> Iterator[tuple[Path, list[os.DirEntry[str]], ImageError | None]]:
    """List a folder and those below with their entries; links are not followed, so there is no way into a loop."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        entries, error = _entries(place)
        yield place, entries, error
        below = [place / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        waiting += [path for path in reversed(below) if not leave_out or path.resolve() not in leave_out]


def _entries(folder: Path) -> tuple[list[os.DirEntry[str]], ImageError | None]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name), None
    except OSError as error:
        return [], ImageError(f"{printable(folder)}: the folder cannot be read ({error.strerror})")


def _is_visible_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a file and not hidden, or half-written; links that lead nowhere are reported later."""
    if entry.name.startswith("."):
        return False
    try:
        return entry.is_file() or not Path(entry.path).exists()
    except OSError:
        return True


def _matched(pattern: Path, leave_out: set[Path]) -> Iterator[_Found]:
    """List the pictures and videos that a pattern matches, and those of the folders that it matches."""
    start = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    matches_all_folders = "**" in pattern.parts
    is_empty = True
    for path, error in _expand(Path(*pattern.parts[:start]), pattern.parts[start:], leave_out):
        if error is None and path.is_dir():
            found = [] if matches_all_folders else list(_walk(path, leave_out))
        else:
            found = [(path, error)]
        yield from found
        is_empty = is_empty and not found
    if is_empty:
        raise ImageError(f"{printable(pattern)}: no picture or video has such a name")


def _expand(folder: Path, parts: tuple[str, ...], leave_out: set[Path]) -> Iterator[_Found]:
    """List files and folders that the parts of a pattern match below a folder, and folders that cannot be read."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for place, _, error in _folders(folder, leave_out):
            if error is not None:
                yield place, error
            else:
                yield from _expand(place, rest or ("*",), leave_out)
        return
    entries, error = _entries(folder)
    if error is not None:
        yield folder, error
    for entry in entries:
        if not fnmatch.fnmatchcase(entry.name, part) or (entry.name.startswith(".") and not part.startswith(".")):
            continue
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if path.resolve() not in leave_out:
                yield from _expand(path, rest, leave_out) if rest else [(path, None)]
        elif not rest and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and _is_visible_file(entry):
            yield path, None


def _listed(source: Path, leave_out: set[Path]) -> Iterator[_Found]:
    """List what a list of paths names."""
    try:
        with open_regular(source) as file:
            content = file.read(MAX_LIST + 1)
    except OSError as error:
        raise _unreadable(source, error) from None
    if len(content) > MAX_LIST or b"\0" in content:
        raise ImageError(f"{printable(source)}: no list of paths (a text of at most {MAX_LIST >> 20} MiB, one a line)")
    lines = [line.removesuffix("\r") for line in os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).split("\n")]
    if not any(lines):
        raise ImageError(f"{printable(source)} lists no pictures")
    for line in filter(None, lines):
        beside = source.parent / line
        path = beside if os.path.lexists(beside) else Path(line)
        try:
            yield from _in_folder_or_itself(path, leave_out)
        except ImageError as error:
            yield path, error


def _unreadable(path: Path, error: OSError | ValueError) -> ImageError:
    return ImageError(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error})")
