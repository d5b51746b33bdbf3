"""Sources that have a web address: what may be said of it, and pictures behind one."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from segship.runtime.errors import ImageError, one_line
from segship.runtime.source_item import Source, SourceItem

ADDRESS: Final = re.compile(r"(rtsps?|https?)://", re.IGNORECASE)
HTTP: Final = re.compile(r"https?://", re.IGNORECASE)

TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 1 << 30
"""Of a picture that is fetched."""
LONGEST_S: Final = 300.0
"""How long a picture may take to come."""
_PIECE: Final = 1 << 16


def public_url(url: str) -> str:
    """Return an address for messages and results: without user, password and query, any of which may be a secret."""
    parts = _split(url)
    return parts._replace(netloc=_host(parts), query="", fragment="").geturl()


def url_suffix(url: str) -> str:
    """Return how the path of an address ends, such as ``.jpg``, in lower case."""
    return PurePosixPath(_split(url).path).suffix.lower()


def url_place(url: str) -> Path:
    """Return a relative path for outputs: host and path of an address.

    What is asked for behind a ``?`` tells pictures apart, too, but may be a secret: a short hash stands for it.
    """
    parts = _split(url)
    names = [_host(parts), *parts.path.split("/")]
    place = Path(*(re.sub(r"[^\w.-]|^\.+", "_", unquote(name)) for name in names if name))
    if not parts.query:
        return place
    asked = hashlib.sha256(parts.query.encode(errors="backslashreplace")).hexdigest()[:8]
    has_path = bool(parts.path.strip("/"))
    return place.with_name(f"{place.stem}-{asked}{place.suffix}") if has_path else place / asked


class PictureUrl(Source):
    """One picture behind an HTTP address, fetched when it is its turn.

    Args:
        url: ``http://`` or ``https://``; user and password in it are sent as basic authentication (RFC 7617).
        timeout_s: seconds that the server may be silent.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._timeout_s = url, timeout_s

    @property
    def count(self) -> int:
        """One."""
        return 1

    def __iter__(self) -> Iterator[SourceItem]:
        from http.client import HTTPException  # here, as below: most jobs need neither, and both take a while

        name = public_url(self._url)
        try:
            picture: bytes | ImageError = _fetch(self._url, self._timeout_s)
        except (OSError, HTTPException, ValueError) as error:
            picture = ImageError(f"{name}: cannot be fetched ({one_line(error)})")
        yield SourceItem(picture, name, url_place(self._url))


def _fetch(url: str, timeout_s: float) -> bytes:
    import urllib.request

    parts = _split(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl())  # noqa: S310  # http and https
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
    content, end = bytearray(), time.monotonic() + LONGEST_S
    with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
        while piece := response.read1(_PIECE):
            content += piece
            if len(content) > MAX_BYTES or time.monotonic() > end:
                raise ValueError(
                    f"no end after {len(content)} bytes; at most {MAX_BYTES >> 30} GiB in {LONGEST_S:g} s are read"
                )
        promised = response.headers.get("Content-Length", "")
    if promised.isdecimal() and len(content) < int(promised):
        raise ValueError(f"it broke off after {len(content)} of {promised} bytes")
    return bytes(content)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ImageError(f"an address that cannot be read ({error})") from None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]
