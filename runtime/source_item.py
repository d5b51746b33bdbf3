"""What every source yields, and what is common to all sources."""

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from segship.runtime.errors import ImageError
from segship.runtime.images import ImageSource

Tell = Callable[[str], None]
"""Called, from any thread, with a line about what happens to a source."""


@dataclass(frozen=True, eq=False)
class SourceItem:
    """A picture to be segmented.

    Attributes:
        picture: what :func:`~segship.runtime.images.read_image` takes; an error if it could not even be opened, which
            is raised when it is read.
        name: for messages and results, printable: a path, ``scan.tif[page 3]``, ``stdin #2``, ``video.mp4 frame 17``.
        place: relative path that the outputs mirror, with the suffix where it has one.
        time_s: position in a video, in seconds, by its time stamps.
        captured: when a live frame came, in seconds since 1970.
    """

    picture: ImageSource | ImageError
    name: str
    place: Path
    time_s: float | None = None
    captured: float | None = None


class Source(abc.ABC):
    """Pictures, one after the other; to be iterated once, and closed.

    What cannot be read is an item that holds its error, and never ends the others.

    Attributes:
        items: all of them, where they are known beforehand: files. None for what comes as it comes.
        is_live: a camera or a stream, which does not wait.
        is_video: its items are the frames of one video or stream, in order.
        is_joined: several sources one after the other; of each alone the items have places of their own.
    """

    items: list[SourceItem] | None = None
    is_live: bool = False
    is_video: bool = False
    is_joined: bool = False

    @property
    def known_items(self) -> Sequence[SourceItem]:
        """Those that are known beforehand: all, or those in files among others; a limit may leave out the last."""
        return self.items or ()

    @property
    def count(self) -> int | None:
        """How many items there are; of a video about how many; None if that is not known."""
        return None

    @property
    def fps(self) -> float | None:
        """Frames a second of a video or stream, if it tells."""
        return None

    @property
    def dropped(self) -> int:
        """Frames of a live source that were left out so far, for newer ones."""
        return 0

    @property
    def reconnections(self) -> int:
        """How often a live source was lost and found again."""
        return 0

    @abc.abstractmethod
    def __iter__(self) -> Iterator[SourceItem]: ...

    def close(self) -> None:  # noqa: B027  # files need none
        """Free what is held; a thread that waits for the next item of a live source waits no longer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def page_place(folder: Path, page: int) -> Path:
    """Return the place of a page, numbered from 1, of a file of several whose outputs go to a folder."""
    return folder / f"page-{page:04d}"


def say_nothing(line: str) -> None:
    """Take a line for which nobody has asked."""
