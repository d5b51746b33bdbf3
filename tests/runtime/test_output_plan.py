import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError, OutputError
from segship.runtime.output_plan import Plan
from segship.runtime.outputs import OutputOptions
from segship.runtime.source_item import Source, SourceItem
from segship.runtime.sources import FileSource

Run = Callable[..., tuple[int, str, str]]
Photo = NDArray[np.uint8]


class Both(FileSource):
    """Pictures in files, and behind them others of which nobody knows beforehand."""

    is_joined = True

    def __init__(self, files: list[SourceItem], others: list[SourceItem]) -> None:
        super().__init__(files)
        self._others = others

    def __iter__(self) -> Iterator[SourceItem]:
        yield from self.items
        yield from self._others


def items(*places: str) -> list[SourceItem]:
    return [SourceItem(Path("unused"), place, Path(place)) for place in places]


def plan(source: Source, out: Path, **options: Any) -> Plan:
    chosen = {"overwrite": False, "skip_existing": False, "kinds": ("mask",)} | options
    job: Any = SimpleNamespace(out=out, knobs=SimpleNamespace(outputs=OutputOptions()), **chosen)
    return Plan(job, source)


def named(source: Source, out: Path) -> list[str]:
    made = plan(source, out)
    return [made.name(item).as_posix() for item in list(made.to_do(iter(source)))]


def test_no_two_pictures_of_joined_sources_have_one_name(tmp_path: Path) -> None:
    source = Both(items("a.png", "s/b.png"), items("a", "A", "film/frame-000001", "film/frame-000001", "s/b-2", "s/b"))
    assert named(source, tmp_path) == [
        "a", "s/b", "a-2", "A-3", "film/frame-000001", "film/frame-000001-2", "s/b-2", "s/b-3",
    ]  # fmt: skip


def test_what_cannot_be_read_takes_no_name_from_what_can(tmp_path: Path) -> None:
    bad = SourceItem(ImageError("gone"), "gone", Path("a"))
    assert named(Both([bad, *items("b.png")], [bad, *items("a")]), tmp_path)[-1] == "a"
    assert named(FileSource([bad, *items("a")]), tmp_path) == ["a", "a"]


def test_pictures_among_others_are_checked_before_the_first_is_read(tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    (tmp_path / "mask/a.png").touch()
    source = Both(items("a.jpg"), items("a"))
    with pytest.raises(OutputError, match=r"a\.png is there already"):
        plan(source, tmp_path)
    left = plan(source, tmp_path, skip_existing=True)
    assert [left.name(item).as_posix() for item in left.to_do(iter(source))] == ["a-2"]
    assert left.left_out == 1


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"skip_existing": True}])
def test_a_picture_whose_outputs_cannot_be_named_is_an_error_of_its_own(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    long, deep = items("ü" * 126 + ".jpg"), items("/".join(["d" * 200] * 22))
    known, unknown = [*long, *items("a.png")], [*deep, *items("v/frame-000001")]
    source = Both(known, unknown)
    first, good, second, other = plan(source, tmp_path, **options).to_do(iter(source))
    assert "its output's name is too long (256 bytes, and a name may have 255); rename it" in str(first.picture)
    assert "its output's path is too long" in str(second.picture)
    assert (good, other) == (known[1], unknown[1])


@pytest.fixture
def host() -> Iterator[str]:
    """A server of pictures whose grey is what their query says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = io.BytesIO()
            PillowImage.new("RGB", (64, 48), (int(self.path.rpartition("=")[2]),) * 3).save(file, "PNG")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pictures_of_addresses_that_differ_in_query_or_login_are_all_written(
    infer: Run, tiny_model: Path, host: str, tmp_path: Path
) -> None:
    addresses = [f"http://{login}{host}/snap.png?grey={grey}" for login in ("", "me:secret@") for grey in (10, 240)]
    status, text, err = infer(tiny_model, *addresses, "--out", tmp_path, "--save", "mask", "--json")
    assert (status, err) == (0, "")
    masks = [one["outputs"]["mask"] for one in json.loads(text)["images"]]
    assert len(set(masks)) == 4
    assert sorted(masks) == sorted(str(path) for path in (tmp_path / "mask").rglob("*.png"))
    assert "secret" not in "".join(masks)


def test_a_picture_whose_outputs_name_is_too_long_is_skipped_and_the_rest_done(
    infer: Run, tiny_model: Path, photo: Photo, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "x" * 250 + ".png"):
        PillowImage.fromarray(photo).save(folder / name)
    status, text, err = infer(tiny_model, folder, "--out", tmp_path / "out", "--save", "mask,contours", "--json")
    assert (status, err.count("\n")) == (3, 1)
    assert "its output's name is too long (258 bytes" in err
    assert [Path(one["source"]).name for one in json.loads(text)["images"]] == ["a.png"]
