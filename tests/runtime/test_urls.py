import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.sources import open_sources
from segship.runtime.urls import public_url, url_place, url_suffix

PIXELS = np.random.default_rng(2).integers(0, 256, (6, 9, 3), np.uint8)
LOGIN = "Basic " + base64.b64encode(b"me:pass word").decode()


class Handler(BaseHTTPRequestHandler):
    """A picture for who logs in, a way to it, a way elsewhere, an answer that breaks off, and nothing else."""

    def do_GET(self) -> None:
        file = io.BytesIO()
        PillowImage.fromarray(PIXELS).save(file, "PNG")
        content = file.getvalue()
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/open.png" if self.path == "/moved.png" else "/login.png")
            self.end_headers()
        elif self.path.startswith("/open.png") or self.headers.get("Authorization") == LOGIN:
            self._answer(content)
        elif self.path == "/short.png":
            self._answer(content, promised=len(content) + 10)
        else:
            self.send_error(404)

    def _answer(self, content: bytes, promised: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(promised or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/open.png", "/open.png?size=9", "/moved.png"])
def test_a_picture_behind_an_address_is_fetched(host: str, path: str) -> None:
    with open_sources([f"http://{host}{path}"]) as source:
        assert (source.count, source.is_live) == (1, False)
        (item,) = source
    np.testing.assert_array_equal(read_image(item.picture, channels=3, depth="uint8"), PIXELS)
    assert item.name == f"http://{host}{path.partition('?')[0]}"
    assert item.place == url_place(f"http://{host}{path}")


def test_user_and_password_are_sent_and_not_shown(host: str) -> None:
    (item,) = open_sources([f"http://me:pass%20word@{host}/login.png"])
    np.testing.assert_array_equal(read_image(item.picture, channels=3, depth="uint8"), PIXELS)
    assert item.name == f"http://{host}/login.png"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/gone.png", r"cannot be fetched \(HTTP Error 404: Not Found\)"),
        ("/login.png", r"cannot be fetched \(HTTP Error 404"),
        ("/moved-with-login.png", r"cannot be fetched \(HTTP Error 404"),  # a login is for whom it was given
        ("/short.png", r"cannot be fetched \(it broke off after \d+ of \d+ bytes"),
    ],
)
def test_what_cannot_be_fetched_is_an_error_of_its_item(host: str, path: str, words: str) -> None:
    login = "me:pass%20word@" if "moved" in path else "me:wrong@"
    (item,) = open_sources([f"http://{login}{host}{path}"])
    with pytest.raises(ImageError, match=rf"http://{host}{path}: {words}") as caught:
        read_image(item.picture, channels=3, depth="uint8")
    assert "wrong" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error_of_its_item() -> None:
    (item,) = open_sources(["http://me:secret@127.0.0.1:9/a.png"])
    assert "http://127.0.0.1:9/a.png: cannot be fetched (" in str(item.picture)
    assert "secret" not in str(item.picture)


@pytest.mark.parametrize(
    ("url", "shown", "place"),
    [
        ("rtsp://me:secret@cam.local:554/live/1", "rtsp://cam.local:554/live/1", "cam.local_554/live/1"),
        ("https://cam/a.jpg?token=secret#secret", "https://cam/a.jpg", "cam/a-1359227d.jpg"),
        ("rtsp://cam.local?channel=1", "rtsp://cam.local", "cam.local/1fb571f4"),
        ("https://cam/a.jpg?#secret", "https://cam/a.jpg", "cam/a.jpg"),
        ("http://me:se@cret@cam/../../etc/%2e%2e/x", "http://cam/../../etc/%2e%2e/x", "cam/_/_/etc/_/x"),
        ("http://cam/a%2Fb\\c .jpg", "http://cam/a%2Fb\\c .jpg", "cam/a_b_c_.jpg"),
    ],
)
def test_an_address_is_shown_and_mirrored_without_secrets_or_ways_out(url: str, shown: str, place: str) -> None:
    assert public_url(url) == shown
    assert url_place(url) == Path(place)


def test_how_an_address_ends_is_how_its_path_ends() -> None:
    assert url_suffix("http://cam/a.JPG?b=c.mp4") == ".jpg"
    assert url_suffix("http://cam.png") == ""


def test_an_address_that_is_none_is_one_line() -> None:
    with pytest.raises(ImageError, match="an address that cannot be read"):
        open_sources(["http://[bad/a.png"])


def test_addresses_that_differ_in_what_they_ask_for_have_places_of_their_own() -> None:
    places = {url_place(f"http://cam/snap.png?ch={channel}") for channel in range(100)}
    assert len(places) == 100
    assert {place.parent for place in places} == {Path("cam")}
    assert {place.suffix for place in places} == {".png"}
