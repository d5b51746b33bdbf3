"""The video that a job writes: the overlays of a video's frames, at its own frame rate."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from segship.runtime.errors import OutputError
from segship.runtime.outputs import OutputOptions, overlay_picture
from segship.runtime.render import RgbImage
from segship.runtime.source_item import Source
from segship.runtime.video_writer import VideoWriter

if TYPE_CHECKING:
    from segship.runtime.infer import Job
    from segship.runtime.result import Result

_UNKNOWN_FPS: Final = 25.0
"""Frames a second where the source does not tell: a camera mostly does not."""


class VideoSink:
    """Writes ``out/video/NAME.mp4``, opened with the first frame; whole or not at all.

    Args:
        job: says where.
        source: the video or stream.
        options: how frames are drawn.
    """

    def __init__(self, job: "Job", source: Source, options: OutputOptions) -> None:
        self._job, self._source, self._options = job, source, options
        self._stack = ExitStack()
        self._writer: VideoWriter | None = None

    def frame(self, result: "Result") -> RgbImage:
        """Draw a frame, (H, W, 3) uint8 RGB."""
        return overlay_picture(result, self._options)

    def write(self, place: Path, frame: RgbImage) -> None:
        """Add a frame, in its order; ``place`` is that of its item.

        Raises:
            OutputError: if the video cannot be written, or is there already.
        """
        if self._writer is None:
            folder = place.parent
            path = self._job.out / "video" / folder.with_name(f"{folder.name}.mp4")  # dots are part of its name
            self._check_free(path)
            writer = VideoWriter(path, self._source.fps or _UNKNOWN_FPS, (frame.shape[0], frame.shape[1]))
            self._writer = self._stack.enter_context(writer)
        self._writer.write(frame)

    def _check_free(self, path: Path) -> None:
        if path.exists() and not self._job.overwrite:
            raise OutputError(f"{path} is there already; add --overwrite, or choose another --out")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._source.is_live:  # how a recording ends
            kind = error = traceback = None
        self._stack.__exit__(kind, error, traceback)
