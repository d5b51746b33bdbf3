import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.errors import ImageError
from segship.runtime.images import Page, read_image
from segship.runtime.sources import is_live, open_sources

PIXELS = np.random.default_rng(4).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A picture, a stack of three pages, a damaged stack, and what is no picture."""
    root = tmp_path / "tree"
    root.mkdir()
    PillowImage.fromarray(PIXELS).save(root / "a b.png")
    pages = [PillowImage.new("RGB", (8, 6), (page, 0, 0)) for page in (10, 20, 30)]
    pages[0].save(root / "scan.tif", save_all=True, append_images=pages[1:])
    (root / "bad.tiff").write_bytes(b"II*\0\xff\xff\xff\x7f")
    (root / "notes.md").touch()
    return root


def write_video(path: Path, frames: int = 4) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 10, (32, 24))
    for _ in range(frames):
        writer.write(PIXELS)
    writer.release()
    return path


def test_files_are_all_known_beforehand_a_page_each(tree: Path) -> None:
    with open_sources([str(tree)]) as source:
        assert (source.count, source.is_live, source.is_video, source.fps) == (5, False, False, None)
        assert source.items is not None
        assert list(source) == source.items
    assert [item.place.as_posix() for item in source.items] == [
        "a b.png", "bad.tiff", "scan/page-0001", "scan/page-0002", "scan/page-0003",
    ]  # fmt: skip
    assert [item.name for item in source.items][-2:] == [f"{tree / 'scan.tif'}[page {page}]" for page in (2, 3)]
    assert source.items[-1].picture == Page(tree / "scan.tif", 2)
    assert source.items[0].picture == tree / "a b.png"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # what Pillow calls the tags of a damaged TIFF
def test_each_item_is_read_or_says_why_not(tree: Path) -> None:
    items = open_sources([tree]).items or []
    np.testing.assert_array_equal(read_image(items[0].picture, channels=3, depth="uint8"), PIXELS)
    with pytest.raises(ImageError, match=r"bad\.tiff: damaged picture"):
        read_image(items[1].picture, channels=3, depth="uint8")
    assert [int(read_image(item.picture, channels=3, depth="uint8").max()) for item in items[2:]] == [10, 20, 30]


def test_pages_behind_damage_are_missed_and_the_others_read(tree: Path) -> None:
    content = bytearray((tree / "scan.tif").read_bytes())
    whole = open_sources([tree / "scan.tif"]).items
    (tree / "scan.tif").write_bytes(content[: len(content) * 2 // 3])
    *pages, last = open_sources([tree / "scan.tif"]).items or []
    assert whole is not None
    assert [page.name for page in pages] == [page.name for page in whole[: len(pages)]]
    assert 0 < len(pages) < 3
    assert "scan.tif: damaged picture (the list of its pages is damaged after" in str(last.picture)


def test_pages_of_files_of_one_name_do_not_meet(tree: Path) -> None:
    (tree / "scan.png").write_bytes((tree / "a b.png").read_bytes())
    places = [item.place.as_posix() for item in open_sources([tree]).items or []]
    assert places[-4:] == ["scan.png", "scan.tif/page-0001", "scan.tif/page-0002", "scan.tif/page-0003"]


def test_a_video_is_its_frames(tree: Path) -> None:
    with open_sources([str(write_video(tree / "film.mkv"))]) as source:
        assert (source.count, source.is_video, source.fps, source.items) == (4, True, 10.0, None)
        assert [item.place.as_posix() for item in source] == [f"film/frame-{number:06d}" for number in (1, 2, 3, 4)]


def test_pictures_videos_and_stdin_come_behind_each_other(tree: Path) -> None:
    write_video(tree / "film.mkv", frames=2)
    stdin = io.BytesIO((tree / "a b.png").read_bytes())
    with open_sources(["-", str(tree / "*"), str(tree / "film.mkv")], stdin=stdin) as source:
        assert (source.count, source.is_video, source.items) == (None, False, None)
        places = [item.place.as_posix() for item in source]
    assert places == [
        "a b.png", "bad.tiff", "film/frame-000001", "film/frame-000002",
        "scan/page-0001", "scan/page-0002", "scan/page-0003", "stdin-000001",
    ]  # fmt: skip


def test_the_limit_counts_items_of_all_kinds(tree: Path) -> None:
    write_video(tree / "film.mkv")
    with open_sources([str(tree)], limit=3) as source:
        assert source.count == 3
        assert [item.place.name for item in source.items or []] == ["a b.png", "bad.tiff", "page-0001"]
    with open_sources([str(tree / "film.mkv")], limit=3) as source:
        assert (source.count, source.is_video, source.fps) == (3, True, 10.0)
        assert len(list(source)) == 3
    with open_sources([str(tree / "film.mkv")], limit=30) as source:
        assert source.count == 4
    with pytest.raises(ImageError, match="a limit of 0 pictures; expected 1 or more"):
        open_sources([str(tree)], limit=0)


def test_pictures_of_the_limit_are_all_that_stdin_is_read_for(tree: Path) -> None:
    png = (tree / "a b.png").read_bytes()
    stdin = io.BytesIO(png + b"what follows")
    assert [item.picture for item in open_sources(["-"], limit=1, stdin=stdin)] == [png]


def test_the_limit_of_pixels_is_that_of_frames_too(tree: Path) -> None:
    (item,) = open_sources([str(write_video(tree / "film.mkv"))], max_pixels=100)
    assert "above --max-pixels 100" in str(item.picture)


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("camera:0", True),
        ("0", True),
        ("rtsp://cam/1", True),
        ("RTSP://cam/1", True),
        ("http://cam/mjpg?a=b.png", True),
        ("https://cam/a.png", False),
        ("https://cam/a.mp4", False),
        ("-", False),
        ("a.png", False),
        ("camera:x", False),
    ],
)
def test_cameras_and_streams_are_live(source: str, live: bool) -> None:
    assert is_live(source) == live


def test_a_number_that_is_a_file_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_live("7")
    Path("7").mkdir()
    assert not is_live("7")


def test_a_live_source_is_alone(tree: Path) -> None:
    with pytest.raises(ImageError, match="give it alone, and run one command for each"):
        open_sources(["camera:0", str(tree)])


def test_what_does_not_run_away_drops_nothing(tree: Path) -> None:
    with pytest.raises(ImageError, match="leave out --latest and --every-frame"):
        open_sources([str(tree)], latest=True)


def test_a_missing_source_is_an_error_at_once(tree: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.mp4: no such file or folder"):
        open_sources([str(tree), str(tree / "missing.mp4")])


def test_sources_are_closed_together(tree: Path, write_deep_tiff: Callable[..., Path]) -> None:
    path = write_video(tree / "film.mkv")
    with open_sources([str(tree / "scan.tif"), str(path)]) as source:
        items = iter(source)
        for _ in range(4):
            next(items)
    assert list(items) == []
