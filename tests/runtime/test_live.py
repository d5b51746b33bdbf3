"""Streams of a real server on this machine; what a camera does is what a stream does."""

import io
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.live import LiveSource
from segship.runtime.source_item import SourceItem
from segship.runtime.sources import open_sources

DEADLINE_S = 60


class Server:
    """Sends numbered grey frames as multipart JPEGs; may be stopped and started again on its port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://user:secret@127.0.0.1:{self.port}/cam.mjpg"
        self.sent = 0
        self.size = 64, 48
        self.sends = threading.Event()
        self.sends.set()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        outer, stop = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while not stop.is_set():
                        if outer.sends.wait(0.1):
                            outer.sent += 1
                            self.wfile.write(part(outer.sent, outer.size))
                            time.sleep(0.005)
                except OSError:
                    pass  # the reader has gone

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = False  # so that closing waits until none sends
        self._stop = stop
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._stop.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def part(number: int, size: tuple[int, int]) -> bytes:
    """A frame whose grey tells its number."""
    file = io.BytesIO()
    PillowImage.new("L", size, number % 256).save(file, "JPEG", quality=95)
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"
    return head.encode() + file.getvalue() + b"\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.sends.set()
    server.stop()


def grey(item: SourceItem) -> int:
    return round(float(np.median(read_image(item.picture, channels=3, depth="uint8"))))


def steps(greys: list[int]) -> list[int]:
    """How many frames lie between one and the next; a decoder may be off by one."""
    return [(after - before) % 256 for before, after in itertools.pairwise(greys)]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_slow_reader_gets_new_frames_and_is_told_how_many_it_missed(server: Server) -> None:
    with LiveSource(server.url) as source:
        assert (source.is_live, source.count, source.dropped) == (True, None, 0)
        frames = iter(source)
        first = next(frames)
        wait_until(lambda: source.dropped >= 20)
        dropped = source.dropped
        newest = next(frames)
    number = int(newest.name.rpartition(" ")[2])
    assert number >= 22
    assert dropped + 2 <= number
    assert abs((grey(newest) - grey(first)) % 256 - (number - int(first.name.rpartition(" ")[2]))) <= 2
    assert newest.place.name == f"frame-{number:06d}"
    assert newest.captured is not None
    assert abs(newest.captured - time.time()) < DEADLINE_S


def test_where_none_may_be_dropped_each_frame_comes(server: Server) -> None:
    with LiveSource(server.url, latest=False) as source:
        frames = iter(source)
        items = [next(frames) for _ in range(5)]
        time.sleep(0.3)  # in which more come than may wait
        items += [next(frames) for _ in range(40)]
        assert source.dropped == 0
    assert [int(item.name.rpartition(" ")[2]) for item in items] == list(range(1, 46))
    assert set(steps([grey(item) for item in items])) <= {0, 1, 2}


def test_a_lost_stream_is_found_again_and_both_are_told(server: Server) -> None:
    told: list[str] = []
    with LiveSource(server.url, tell=told.append) as source:
        frames = iter(source)
        next(frames)
        server.stop()
        wait_until(lambda: told)
        server.start()
        wait_until(lambda: source.reconnections == 1)
        seen = server.sent
        wait_until(lambda: server.sent > seen)
        assert read_image(next(frames).picture, channels=3, depth="uint8").shape == (48, 64, 3)
    assert told[0] == f"http://127.0.0.1:{server.port}/cam.mjpg: lost; connecting again in 0.5 s (1 of 10)"
    assert told[-1] == f"http://127.0.0.1:{server.port}/cam.mjpg: connected again"


def test_attempts_are_counted_from_the_last_frame(server: Server) -> None:
    told: list[str] = []
    with LiveSource(server.url, reconnect=3, tell=told.append) as source:
        frames = iter(source)
        for losses in range(5):
            assert not isinstance(next(frames).picture, ImageError)
            wait_until(lambda losses=losses: source.reconnections == losses)
            server.stop()
            server.start()
        wait_until(lambda: source.reconnections == 5)
    assert sum(line.endswith("connected again") for line in told) == 5


def test_a_stream_that_stays_lost_ends_with_an_error(server: Server) -> None:
    told: list[str] = []
    with LiveSource(server.url, reconnect=2, tell=told.append) as source:
        frames = iter(source)
        next(frames)
        server.stop()
        *_, last = frames
    assert str(last.picture).endswith("cam.mjpg: lost, and not found again in 2 attempts")
    assert [line.partition("again in ")[2] for line in told] == ["0.5 s (1 of 2)", "1 s (2 of 2)"]
    assert "secret" not in "".join([*told, last.name, str(last.place), str(last.picture)])


def test_a_stream_that_falls_silent_is_lost(server: Server) -> None:
    with LiveSource(server.url, reconnect=0, timeout_ms=500) as source:
        frames = iter(source)
        next(frames)
        server.sends.clear()
        *_, last = frames
    assert "lost, and not found again in 0 attempts" in str(last.picture)


def test_closing_from_another_thread_frees_who_waits_for_a_frame(server: Server) -> None:
    source = LiveSource(server.url, timeout_ms=5000)
    frames = iter(source)
    next(frames)
    server.sends.clear()
    rest: list[SourceItem] = []
    waiting = threading.Thread(target=lambda: rest.extend(frames))
    waiting.start()
    time.sleep(0.2)
    start = time.monotonic()
    source.close()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()
    assert time.monotonic() - start < 4  # sooner than its time limit would end it


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://user:secret@127.0.0.1:9/cam", r"http://127\.0\.0\.1:9/cam: cannot be reached, or sends no video"),
        ("rtsp://user:secret@127.0.0.1:9/cam?token=secret", r"rtsp://127\.0\.0\.1:9/cam: cannot be reached"),
        ("camera:99", "camera:99: there is no such camera, or another program has it"),
        ("99", "camera:99: there is no such camera"),
    ],
)
def test_what_cannot_be_reached_at_first_is_an_error_without_secrets(source: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        open_sources([source])
    assert "secret" not in str(caught.value)


def test_what_cannot_be_reached_makes_no_noise() -> None:
    script = (
        "import sys\nfrom segship.runtime.errors import ImageError\nfrom segship.runtime.live import LiveSource\n"
        "for address in sys.argv[1:]:\n    try:\n        LiveSource(address)\n"
        "    except ImageError:\n        print('error')\n"
    )  # in a process of its own, since FFmpeg asks once in a process what it may say
    addresses = ["http://127.0.0.1:9/cam", "rtsp://127.0.0.1:9/cam", "camera:99"]
    done = subprocess.run([sys.executable, "-c", script, *addresses], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("error\n" * 3, "")


def test_a_stream_is_opened_by_its_address_and_ends_at_the_limit(server: Server) -> None:
    with open_sources([server.url], limit=3) as source:
        assert source.is_live
        assert source.fps == pytest.approx(25, abs=25)
        assert len(list(source)) == 3


def test_frames_of_more_pixels_than_allowed_are_refused_at_once(server: Server) -> None:
    with pytest.raises(ImageError, match=r"cam\.mjpg: 64×48 = 3072 pixels, above --max-pixels 3000") as caught:
        open_sources([server.url], max_pixels=3000)
    assert "secret" not in str(caught.value)


def test_a_stream_ends_where_its_frames_become_larger_than_allowed(server: Server) -> None:
    with open_sources([server.url], max_pixels=3100) as source:
        frames = iter(source)
        assert read_image(next(frames).picture, channels=3, depth="uint8").shape == (48, 64, 3)
        server.stop()
        server.size = 80, 60
        server.start()
        *_, last = frames
    assert "cam.mjpg: 80×60 = 4800 pixels, above --max-pixels 3100" in str(last.picture)
