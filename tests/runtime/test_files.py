from pathlib import Path

import pytest

from segship.runtime.errors import OutputError
from segship.runtime.files import replacing, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new folder" / "größe.json"
    with replacing(path, durable=durable) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError("no more ink")

    with pytest.raises(ValueError, match="no more ink"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(OutputError, match=r"cannot write .*a\.txt: "):
            write_text(path, "text")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_name_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    with pytest.raises(OutputError, match=r"a\\x0ab: Is a directory"):
        write_text(tmp_path / "a\nb", "text")


def test_a_place_that_is_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: Is a directory"):
        write_text(tmp_path / "a.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("letters", ["n" * 251, "道" * 83])
def test_a_name_of_the_longest_length_can_be_written(letters: str, tmp_path: Path) -> None:
    path = tmp_path / f"{letters}.txt"
    write_text(path, "text")
    assert path.read_text() == "text"


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Straße 道路\n")
    assert (tmp_path / "a.txt").read_bytes() == "Straße 道路\n".encode()
