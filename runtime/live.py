"""Cameras and streams: frames that do not wait."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segship.runtime.capture import TIMEOUT_MS, Capture
from segship.runtime.errors import ImageError
from segship.runtime.image_opening import check_pixels
from segship.runtime.images import MAX_PIXELS
from segship.runtime.source_item import Source, SourceItem, Tell, say_nothing
from segship.runtime.urls import ADDRESS, public_url, url_place

_QUEUE: Final = 8
"""Frames that wait where none may be dropped."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_CLOSING_S: Final = 1.0


class LiveSource(Source):
    """The frames of a camera or stream, which a thread of their own reads, so that none is old.

    A connection that is lost is made again, after 0.5, 1, 2, … 10 s. Where that fails too often, the last item says so.

    Args:
        address: ``rtsp://…``, ``http://…``, ``https://…``, ``camera:N`` or ``N``.
        latest: keep only the newest frame, and count the others as dropped. False: keep each, in a short queue; what
            comes faster than it is taken then waits in the camera, the network or nowhere.
        max_pixels: a stream of larger frames is refused, and ends where they become larger.
        reconnect: how often in a row the connection is made again before it is given up.
        tell: called, from the thread that reads, when the connection is lost and found.
        timeout_ms: how long connecting, and each frame, may take.

    Raises:
        ImageError: if it cannot be reached now, or its frames are too large.
    """

    is_live = True
    is_video = True

    def __init__(
        self,
        address: str,
        *,
        latest: bool = True,
        max_pixels: int = MAX_PIXELS,
        reconnect: int = 10,
        tell: Tell = say_nothing,
        timeout_ms: int = TIMEOUT_MS,
    ) -> None:
        self._source: str | int = address if ADDRESS.match(address) else int(address.removeprefix("camera:"))
        if isinstance(self._source, str):
            self._name, self._folder = public_url(self._source), url_place(self._source).with_suffix("")
        else:
            self._name, self._folder = f"camera:{self._source}", Path(f"camera-{self._source}")
        self._max_pixels = max_pixels
        self._latest, self._reconnect, self._tell, self._timeout_ms = latest, reconnect, tell, timeout_ms
        self._changed = threading.Condition()
        self._waiting: deque[SourceItem] = deque()
        self._received = self._dropped = self._reconnections = self._attempts = 0
        self._is_closed = self._has_ended = False
        capture = self._connect()
        if capture is None:
            reason = (
                "there is no such camera, or another program has it"
                if isinstance(self._source, int)
                else "cannot be reached, or sends no video; check address, login and network"
            )
            raise ImageError(f"{self._name}: {reason}")
        try:
            check_pixels(capture.size, max_pixels, self._name)
        except ImageError:
            capture.close()
            raise
        self._fps = capture.fps
        self._reader = threading.Thread(target=self._read, args=(capture,), name="segship-live", daemon=True)
        self._reader.start()

    @property
    def fps(self) -> float | None:
        """Frames a second, if it tells."""
        return self._fps

    @property
    def dropped(self) -> int:
        """Frames left out so far, for newer ones."""
        return self._dropped

    @property
    def reconnections(self) -> int:
        """How often it was lost and found again."""
        return self._reconnections

    def __iter__(self) -> Iterator[SourceItem]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_ended or self._is_closed)
                if self._is_closed or not self._waiting:
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """End the reading; whoever waits for a frame waits no longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._reader.join(_CLOSING_S)  # a read that hangs ends by its own time limit

    def _connect(self) -> Capture | None:
        capture = Capture(self._source, timeout_ms=self._timeout_ms)
        return capture if capture.is_open else None

    def _read(self, capture: Capture | None) -> None:
        try:
            while capture is not None:
                self._read_connection(capture)
                capture = self._connect_again()
        except ImageError as error:
            self._end_with(error)
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _read_connection(self, capture: Capture) -> None:
        try:
            while (frame := capture.read()) is not None:
                self._received += 1
                self._attempts = 0
                check_pixels((frame.shape[1], frame.shape[0]), self._max_pixels, self._name)
                name, place = f"{self._name} frame {self._received}", self._folder / f"frame-{self._received:06d}"
                if not self._hand_over(SourceItem(frame, name, place, captured=time.time())):
                    return
        finally:
            capture.close()

    def _hand_over(self, item: SourceItem) -> bool:
        """Put a frame where it is taken from; tell whether another is wanted."""
        with self._changed:
            if self._latest:
                self._dropped += len(self._waiting)
                self._waiting.clear()
            else:
                self._changed.wait_for(lambda: self._is_closed or len(self._waiting) < _QUEUE)
            self._waiting.append(item)
            self._changed.notify_all()
            return not self._is_closed

    def _connect_again(self) -> Capture | None:
        while self._attempts < self._reconnect:  # what connects and then sends nothing has not been found again
            pause_s = min(_FIRST_PAUSE_S * 2**self._attempts, _LONGEST_PAUSE_S)
            self._attempts += 1
            with self._changed:
                if self._is_closed:
                    return None
            self._tell(f"{self._name}: lost; connecting again in {pause_s:g} s ({self._attempts} of {self._reconnect})")
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, pause_s):
                    return None
            if (capture := self._connect()) is not None:
                self._reconnections += 1
                self._tell(f"{self._name}: connected again")
                return capture
        raise ImageError(f"{self._name}: lost, and not found again in {self._reconnect} attempts")

    def _end_with(self, error: ImageError) -> None:
        with self._changed:
            self._waiting.append(SourceItem(error, self._name, self._folder))
