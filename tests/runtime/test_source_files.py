import os
from pathlib import Path

import pytest

from segship.runtime.errors import ImageError
from segship.runtime.source_files import SourceFile, find_files, find_images


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


def test_pipes_among_pictures_are_left_out_and_never_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "pipe.png")
    (tree / "linked.png").symlink_to(tree / "pipe.png")
    assert places(find_files([tree])) == ["a.jpg", "b.PNG", "sub/deep/c.tiff"]


def test_a_link_that_leads_nowhere_or_in_a_circle_is_listed_to_be_reported(tree: Path) -> None:
    (tree / "circle.png").symlink_to(tree / "circle.png")
    (tree / "gone.png").symlink_to(tree / "nowhere")
    assert places(find_files([tree])) == ["a.jpg", "b.PNG", "circle.png", "gone.png", "sub/deep/c.tiff"]


def test_a_folder_below_that_cannot_be_read_is_an_error_beside_the_pictures(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # not by its mode: root may read everything
    files = find_files([tree])
    assert places(files) == ["a.jpg", "b.PNG", "sub"]
    assert str(files[-1].error) == f"{tree / 'sub'}: the folder cannot be read (Permission denied)"
    with pytest.raises(ImageError, match=r"sub: the folder cannot be read"):
        find_images([tree])
    with pytest.raises(ImageError, match=r"sub: the folder cannot be read"):
        find_files([tree / "sub"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*", ["a.jpg", "b.PNG", "sub/deep/c.tiff"]),
        ("**/*.tiff", ["c.tiff"]),
        ("**", ["a.jpg", "b.PNG", "sub/deep/c.tiff"]),
        ("s?b/d[e]ep/*", ["c.tiff"]),
        ("**/deep/c.*", ["c.tiff"]),
    ],
)
def test_a_pattern_is_the_pictures_that_it_matches(tree: Path, pattern: str, expected: list[str]) -> None:
    assert places(find_files([str(tree / pattern)])) == expected


def test_a_pattern_goes_round_no_circle_and_into_no_folder_of_outputs(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    assert places(find_files([tree / "**/*"], leave_out=[tree / "sub/deep"])) == ["a.jpg", "b.PNG"]


def test_a_name_that_looks_like_a_pattern_is_a_name_if_there_is_such_a_file(tree: Path) -> None:
    (tree / "a[1].jpg").touch()
    (tree / "a1.jpg").touch()
    assert places(find_files([tree / "a[1].jpg"])) == ["a[1].jpg"]


def test_a_pattern_that_matches_nothing_is_named(tree: Path) -> None:
    with pytest.raises(ImageError, match=r"\*\.webp: no picture or video has such a name"):
        find_files([tree / "*.webp"])


def test_each_part_of_a_list_places_its_pictures_as_the_whole_list_does(tmp_path: Path) -> None:
    names = ["photos/a/1.jpg", "photos/b/1.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for part, listed in (("all", names), ("first", names[:1]), ("second", names[1:])):
        (tmp_path / f"{part}.txt").write_text("\n".join(listed))
        assert places(find_files([tmp_path / f"{part}.txt"])) == listed


def test_a_list_names_pictures_beside_it_or_below_the_current_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "#1 ö.png").touch()
    (tree / "list.txt").write_bytes("\ufeff#1 ö.png\r\n\nsub\nhere.jpg\nno.png\n".encode())
    current = tree.parent / "current"
    current.mkdir()
    (current / "here.jpg").touch()
    monkeypatch.chdir(current)
    files = find_files([tree / "list.txt"])
    assert [str(file.path) for file in files] == [
        str(tree / "#1 ö.png"), str(tree / "sub/deep/c.tiff"), "here.jpg", "no.png",
    ]  # fmt: skip
    assert places(files)[:3] == ["tree/#1 ö.png", "tree/sub/deep/c.tiff", "current/here.jpg"]
    assert str(files[3].error) == "no.png: no such file or folder"


@pytest.mark.parametrize(("content", "words"), [(b"\n\n", "lists no pictures"), (b"a.png\0b.png", "no list of paths")])
def test_a_list_that_is_none_is_said_to_be_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        find_files([tmp_path / "list.txt"])


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b.png"):
        with pytest.raises(ImageError, match=r"cannot be read|no such file"):
            find_files([tmp_path / name])


def test_names_whose_bytes_are_no_text_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / name).touch()
    assert [file.path for file in find_files([tmp_path])] == [tmp_path / name]
