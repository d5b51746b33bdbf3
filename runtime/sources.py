"""From what a command is given to the pictures that it works on: files, stdin, videos, cameras, streams."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from segship.runtime.errors import ImageError
from segship.runtime.image_opening import open_regular
from segship.runtime.images import MAX_PIXELS, Page, source_name
from segship.runtime.printable import printable
from segship.runtime.source_files import VIDEO_SUFFIXES, SourceFile, find_files
from segship.runtime.source_item import Source, SourceItem, Tell, page_place, say_nothing
from segship.runtime.tiff_pages import TIFF_SUFFIXES, full_pages
from segship.runtime.urls import ADDRESS, HTTP, url_suffix

RECONNECT: Final = 10
"""How often in a row a live source is connected again before it is given up."""

_PICTURE_URL_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def open_sources(
    sources: Sequence[str | Path],
    *,
    leave_out: Iterable[Path] = (),
    limit: int | None = None,
    latest: bool | None = None,
    max_pixels: int = MAX_PIXELS,
    reconnect: int = RECONNECT,
    tell: Tell = say_nothing,
    stdin: BinaryIO | None = None,
) -> Source:
    """Open what a command is given.

    - ``-``: encoded pictures on stdin, one behind the other, as ``ffmpeg -f image2pipe`` writes them.
    - ``camera:N``, or a number that no file has for its name: a camera.
    - ``rtsp://…``, ``http://…``, ``https://…``: a stream; one picture if an HTTP address ends like one (``.jpg``,
      ``.png``, …), a video that does not run away if it ends like one (``.mp4``, …).
    - everything else: files, folders, patterns and lists of paths (:func:`~segship.runtime.source_files.find_files`).
      A video is its frames, a TIFF of several pages its pages. They come first, in their order, and then the others.

    Args:
        sources: as above.
        leave_out: folders whose content is not looked at: those that outputs go to.
        limit: items at most; None: all.
        latest: of a live source, keep only the newest frame and count the others as dropped; False: lag rather than
            leave one out; None: True for live sources.
        max_pixels: frames of videos and streams of more are refused.
        reconnect: how often in a row a live source is connected again before it is given up.
        tell: called, from any thread, with a line about what happens to a source: lost, found again.
        stdin: what ``-`` reads; None: the process's.

    Raises:
        ImageError: if a file or folder is missing, a live source cannot be reached or is not alone, or ``latest`` is
            said of what does not run away.
    """
    if limit is not None and limit < 1:
        raise ImageError(f"a limit of {limit} pictures; expected 1 or more")
    if live := [str(source) for source in sources if is_live(source)]:
        if len(sources) > 1:
            raise ImageError("a live source goes on for ever: give it alone, and run one command for each")
        from segship.runtime.live import LiveSource

        stream = LiveSource(live[0], latest=latest is not False, max_pixels=max_pixels, reconnect=reconnect, tell=tell)
        return _limited([stream], limit)
    if latest is not None:
        raise ImageError(
            "only a live source (camera, stream) drops frames or falls behind; leave out --latest and --every-frame"
        )
    files = [source for source in sources if _is_file(source)]
    parts = _file_parts(find_files(files, leave_out=leave_out), max_pixels, tell) if files else []
    parts += [_other_part(str(source), max_pixels, tell, stdin) for source in sources if not _is_file(source)]
    return _limited(parts, limit)


def is_live(source: str | Path) -> bool:
    """Tell whether a source is a camera or a stream, which does not wait."""
    if isinstance(source, Path):
        return False
    if re.fullmatch(r"camera:\d{1,3}", source) or (re.fullmatch(r"\d{1,3}", source) and not Path(source).exists()):
        return True
    return ADDRESS.match(source) is not None and not (
        HTTP.match(source) and url_suffix(source) in _PICTURE_URL_SUFFIXES | VIDEO_SUFFIXES
    )


class FileSource(Source):
    """Pictures in files, all known beforehand.

    Args:
        items: in order.
    """

    def __init__(self, items: list[SourceItem]) -> None:
        self.items: list[SourceItem] = items

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.items)

    def __iter__(self) -> Iterator[SourceItem]:
        return iter(self.items)


class _Joined(Source):
    """Sources one after the other, up to a limit."""

    def __init__(self, parts: Sequence[Source], limit: int | None) -> None:
        self._parts, self._limit = parts, limit
        self.is_live = parts[0].is_live
        self.is_video = len(parts) == 1 and parts[0].is_video
        self.is_joined = len(parts) > 1

    @property
    def known_items(self) -> list[SourceItem]:
        return list(
            itertools.islice(itertools.chain.from_iterable(part.known_items for part in self._parts), self._limit)
        )

    @property
    def count(self) -> int | None:
        count = self._parts[0].count if len(self._parts) == 1 else None  # of several, some may have to be opened for it
        return count if self._limit is None or count is None else min(count, self._limit)

    @property
    def fps(self) -> float | None:
        return self._parts[0].fps if len(self._parts) == 1 else None

    @property
    def dropped(self) -> int:
        return self._parts[0].dropped

    @property
    def reconnections(self) -> int:
        return self._parts[0].reconnections

    def __iter__(self) -> Iterator[SourceItem]:
        return itertools.islice(itertools.chain.from_iterable(self._parts), self._limit)

    def close(self) -> None:
        with ExitStack() as stack:
            for part in self._parts:
                stack.callback(part.close)


def _limited(parts: Sequence[Source], limit: int | None) -> Source:
    if len(parts) > 1:
        return _Joined(parts, limit)
    if limit is None:
        return parts[0]
    items = parts[0].items
    return _Joined(parts, limit) if items is None else FileSource(items[:limit])


def _is_file(source: str | Path) -> bool:
    return isinstance(source, Path) or not (source == "-" or ADDRESS.match(source))


def _other_part(source: str, max_pixels: int, tell: Tell, stdin: BinaryIO | None) -> Source:
    if source == "-":
        from segship.runtime.stdin_images import StdinSource

        return StdinSource(stdin)
    if url_suffix(source) in VIDEO_SUFFIXES:
        from segship.runtime.video import VideoSource

        return VideoSource(source, max_pixels=max_pixels, tell=tell)
    from segship.runtime.urls import PictureUrl

    return PictureUrl(source)


def _file_parts(files: Sequence[SourceFile], max_pixels: int, tell: Tell) -> list[Source]:
    """Divide files into runs of pictures, and videos, in their order."""
    stems = Counter(str(file.place.with_suffix("")).casefold() for file in files)
    parts: list[Source] = []
    for is_video, group in itertools.groupby(files, key=_is_video):
        if is_video:
            from segship.runtime.video import VideoSource

            parts += [VideoSource(file.path, _folder(file, stems), max_pixels=max_pixels, tell=tell) for file in group]
        else:
            parts.append(FileSource([item for file in group for item in _items(file, stems)]))
    return parts


def _is_video(file: SourceFile) -> bool:
    return file.error is None and file.path.suffix.lower() in VIDEO_SUFFIXES


def _folder(file: SourceFile, stems: Counter[str]) -> Path:
    """Return the folder for the outputs of a file of several pictures; its suffix tells it from another of its name."""
    stem = file.place.with_suffix("")
    return stem if stems[str(stem).casefold()] == 1 else file.place


def _items(file: SourceFile, stems: Counter[str]) -> Iterator[SourceItem]:
    """Return what a file holds: itself, or its pages."""
    name = printable(file.path)
    pages, damage = _pages(file)
    if len(pages) <= 1 and not (pages and damage):
        yield SourceItem(file.error or file.path, name, file.place)
        return
    folder = _folder(file, stems)
    for number in pages:
        page = Page(file.path, number)
        yield SourceItem(page, source_name(page), page_place(folder, number + 1))
    if damage:
        yield SourceItem(ImageError(f"{name}: damaged picture ({damage})"), name, file.place)


def _pages(file: SourceFile) -> tuple[list[int], str]:
    """Number the pages of a TIFF; none: the file is another one, or cannot be read, which reading it will tell."""
    if file.error is not None or file.path.suffix.lower() not in TIFF_SUFFIXES:
        return [], ""
    try:
        with open_regular(file.path) as opened:
            pages = full_pages(opened)
    except (OSError, ImageError):
        return [], ""
    return pages.numbers, pages.damage
