from pathlib import Path

import pytest

from segship.runtime.errors import ImageError
from segship.runtime.sources import SourceFile, find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Empty files: three pictures and two others."""
    root = tmp_path / "tree"
    for name in ("b.PNG", "a.jpg", "notes.txt", "sub/deep/c.tiff", "sub/data.npy"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def places(files: list[SourceFile]) -> list[str]:
    return [file.place.as_posix() for file in files]


def test_a_folder_is_its_pictures_sorted_with_those_of_its_folders(tree: Path) -> None:
    files = find_images([tree])
    assert places(files) == ["a.jpg", "b.PNG", "sub/deep/c.tiff"]
    assert [file.path for file in files] == [tree / place for place in places(files)]


def test_a_named_file_counts_whatever_its_name(tree: Path) -> None:
    assert places(find_images([tree / "notes.txt"])) == ["notes.txt"]


def test_several_sources_keep_their_order_and_mirror_what_they_share(tree: Path) -> None:
    files = find_images([tree / "sub", tree / "a.jpg"])
    assert places(files) == ["sub/deep/c.tiff", "a.jpg"]


def test_a_picture_named_in_several_ways_is_done_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    sources = [Path("a.jpg"), tree / "a.jpg", Path("sub/../a.jpg"), tree]
    assert places(find_images(sources)) == ["a.jpg", "b.PNG", "sub/deep/c.tiff"]
    assert find_images(sources)[0].path == Path("a.jpg")


def test_outputs_of_files_above_stay_in_their_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "sub" / "deep")
    files = find_images([Path("../../a.jpg"), Path("c.tiff")])
    assert places(files) == ["a.jpg", "sub/deep/c.tiff"]
    assert places(find_images([Path("../..")])) == ["a.jpg", "b.PNG", "sub/deep/c.tiff"]


def test_the_folder_of_the_outputs_is_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for leave_out in (tree / "sub", Path("sub"), Path("sub/deep/..")):
        assert places(find_images([tree], leave_out=[leave_out])) == ["a.jpg", "b.PNG"]


def test_links_to_folders_are_no_way_into_a_loop(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "linked.png").symlink_to(tree / "a.jpg")
    assert places(find_images([tree])) == ["a.jpg", "b.PNG", "linked.png", "sub/deep/c.tiff"]


def test_a_missing_source_is_named(tree: Path) -> None:
    with pytest.raises(ImageError, match=r"missing: no such file or folder"):
        find_images([tree, tree / "missing"])


def test_a_folder_without_pictures_says_what_pictures_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"holds no pictures \(\.bmp, \.jpeg, \.jpg, \.png, "):
        find_images([tmp_path])


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".b.0f3a.png"):
        (tmp_path / name).touch()
    assert places(find_images([tmp_path])) == ["a.png"]
