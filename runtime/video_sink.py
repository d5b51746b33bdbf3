"""The video that a job writes: the overlays of a video's frames, at its own frame rate."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from segship.runtime.errors import OutputError
from segship.runtime.outputs import OutputOptions, overlay_picture
from segship.runtime.printable import printable
from segship.runtime.render import RgbImage
from segship.runtime.source_item import Source
from segship.runtime.video_writer import VideoWriter

if TYPE_CHECKING:
    from segship.runtime.infer import Job
    from segship.runtime.result import Result

_UNKNOWN_FPS: Final = 25.0
"""Frames a second where the source does not tell: a camera mostly does not."""


class VideoSink:
    """Writes ``out/video/NAME.mp4``, opened with the first frame.

    Of a file it is written whole or not at all. Of a live source, which does not come again, all that came is kept,
    however it ends; and where its frames change their size, as a camera's may that was lost and found again, they go
    on in ``NAME-2.mp4``.

    Args:
        job: says where.
        source: the video or stream.
        options: how frames are drawn.
    """

    def __init__(self, job: "Job", source: Source, options: OutputOptions) -> None:
        self._job, self._source, self._options = job, source, options
        self._stack = ExitStack()
        self._writer: VideoWriter | None = None
        self._parts = 1

    def frame(self, result: "Result") -> RgbImage:
        """Draw a frame, (H, W, 3) uint8 RGB."""
        return overlay_picture(result, self._options)

    def write(self, place: Path, frame: RgbImage) -> None:
        """Add a frame, in its order; ``place`` is that of its item.

        Raises:
            OutputError: if the video cannot be written, or is there already.
        """
        size = frame.shape[0], frame.shape[1]
        if self._writer is None:
            path = self._path(place)
            if not self._may_write(path):
                raise OutputError(f"{printable(path)} is there already; add --overwrite, or choose another --out")
            self._writer = self._open(path, size)
        elif self._source.is_live and size != self._writer.size:
            self._stack.close()
            self._writer = self._open(self._next_path(place), size)
        self._writer.write(frame)

    def _open(self, path: Path, size: tuple[int, int]) -> VideoWriter:
        return self._stack.enter_context(VideoWriter(path, self._source.fps or _UNKNOWN_FPS, size))

    def _path(self, place: Path, addition: str = "") -> Path:
        folder = place.parent
        return self._job.out / "video" / folder.with_name(f"{folder.name}{addition}.mp4")  # dots are part of its name

    def _next_path(self, place: Path) -> Path:
        """Return the first path with a number that may be written, so that nothing that was there ends a recording."""
        while True:
            self._parts += 1
            if self._may_write(path := self._path(place, f"-{self._parts}")):
                return path

    def _may_write(self, path: Path) -> bool:
        return self._job.overwrite or not path.exists()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._source.is_live:
            kind = error = traceback = None
        self._stack.__exit__(kind, error, traceback)
