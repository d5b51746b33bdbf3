"""The process in which damaged files are read: it may hang, eat memory or crash, and ``fuzz`` notes that.

It answers each message on its standard input by one on its standard output, see ``segship.runtime.backends.framing``.
"""

import functools
import io
import re
import resource
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segship.runtime.backends.framing import private_streams, receive, send
from segship.runtime.backends.isolated import IsolatedBackend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.big_pictures import BigPicture
from segship.runtime.errors import SegshipError
from segship.runtime.foreign import foreign_card
from segship.runtime.images import read_image
from segship.runtime.model_file import check_fits, content_sha256, has_card, read_card, read_onnx_header
from segship.runtime.segmenter import Segmenter
from segship.runtime.sources import open_sources

_CONTAINED = re.compile(r" engine (crashed|ended with status|did not answer) ?.*")
_TIFFS = (b"II", b"MM")


def main() -> None:
    """Answer until there are no more questions."""
    requests, replies = private_streams()
    warnings.simplefilter("ignore")  # decoders warn of what they repair
    while (message := receive(requests)) is not None:
        question, _ = message
        size = question["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        path = Path(question["path"])
        if question["kind"] == "image":
            roads = image_roads(path, question["form"])
        else:
            roads = model_roads(path, question["backend"], question["time_limit_s"], question["memory_mb"])
        send(replies, outcome(roads))


def outcome(roads: Iterable[Callable[[], object]]) -> dict[str, Any]:
    """Go all roads; return what came of them, as plain values.

    Returns:
        - ``outcome``: ``accepted`` if the first road led to its end, ``refused`` if it raised a :class:`SegshipError`,
          ``finding`` if one of the roads raised anything else;
        - ``error``: class of the error that refused;
        - ``contained``: what an isolated engine died of, a text each;
        - of a finding ``what``, the exception and where in segship it passed, and ``traceback``.
    """
    refused: dict[int, str] = {}
    contained: list[str] = []
    for number, road in enumerate(roads):
        try:
            road()
        except SegshipError as error:
            refused[number] = type(error).__name__
            if found := _CONTAINED.search(str(error)):
                contained.append(found.group(1))
            if "\n" in str(error):
                return _finding(error, "an error of several lines")
        except Exception as error:  # noqa: BLE001  # which is what is looked for
            return _finding(error, type(error).__name__)
    return {"outcome": "refused" if 0 in refused else "accepted", "error": refused.get(0), "contained": contained}


def _finding(error: Exception, name: str) -> dict[str, Any]:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "segship" in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__] or frames
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "nowhere in segship"
    text = "".join(traceback.format_exception(error))
    return {"outcome": "finding", "what": f"{name} in {where}", "traceback": text[-20_000:]}


def image_roads(path: Path, form: dict[str, Any]) -> list[Callable[[], object]]:
    """Return the ways in which a picture comes in: by its path, as bytes, on stdin, and row by row if it is a TIFF."""
    data = path.read_bytes()

    def all_of(sources: list[str], stdin: io.BytesIO | None = None) -> None:
        refused = None
        with open_sources(sources, stdin=stdin) as source:
            for item in source:
                try:
                    read_image(item.picture, **form)
                except SegshipError as error:  # the others are read all the same
                    refused = error
        if refused:
            raise refused

    def row_by_row() -> None:
        with BigPicture(path) as picture:
            height = picture.size[0]
            for start in range(0, min(height, 4096), 16):
                picture.rows(start, min(start + 16, height))

    roads: list[Callable[[], object]] = [
        functools.partial(read_image, path, **form),
        functools.partial(read_image, data, **form),
        functools.partial(all_of, [str(path)]),
        functools.partial(all_of, ["-"], io.BytesIO(data)),
    ]
    return [*roads, row_by_row] if data.startswith(_TIFFS) else roads


def model_roads(path: Path, backend: str, time_limit_s: float, memory_mb: int) -> list[Callable[[], object]]:
    """Return what is done with a model file: what reads it, and a picture through an engine in a process of its own."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)

    def run() -> None:
        card = read_card(path) if has_card(path) else foreign_card(path)
        engine = IsolatedBackend(
            backend, path, card, "cpu", EngineOptions(threads=1), timeout_s=time_limit_s, memory_limit_mb=memory_mb
        )
        with Segmenter(path, backend=engine, card=card) as segmenter:
            segmenter(picture)

    return [
        run,
        functools.partial(read_onnx_header, path),
        functools.partial(content_sha256, path),
        functools.partial(foreign_card, path),
        lambda: check_fits(path, read_card(path)),
    ]


if __name__ == "__main__":
    main()
