"""Folders of engines: whole or not there."""

import dataclasses
import json
from pathlib import Path

import pytest

from segship.runtime.backends.tensorrt_cache import EngineKey, building, engine_folder, is_whole
from segship.runtime.errors import OutputError

KEY = EngineKey("NVIDIA L4", "8.9", "580.95", "10.13.3", "1.31.1", "ab" * 32, "fp32", False, None, ((1, 3, 8, 8),) * 3)


def build(folder: Path, content: str = "engine") -> None:
    with building(folder, KEY) as new:
        assert not is_whole(new)
        (new / "part.engine").write_text(content)


def test_an_engine_is_whole_only_when_it_was_built_to_the_end(tmp_path: Path) -> None:
    folder = engine_folder(KEY, str(tmp_path / "new" / "cache"))
    assert not is_whole(folder)
    build(folder)
    assert is_whole(folder)
    assert (folder / "part.engine").read_text() == "engine"
    assert json.loads((folder / "engine.json").read_text())["gpu"] == "NVIDIA L4"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = engine_folder(KEY, str(tmp_path))

    def interrupted() -> None:
        with building(folder, KEY) as new:
            (new / "part.engine").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_build_the_same_the_first_stays(tmp_path: Path) -> None:
    folder = engine_folder(KEY, str(tmp_path))
    with building(folder, KEY) as slow:
        (slow / "part.engine").write_text("slow")
        build(folder, "fast")
    assert (folder / "part.engine").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_without_its_mark_is_built_again(tmp_path: Path) -> None:
    folder = engine_folder(KEY, str(tmp_path))
    folder.mkdir()
    (folder / "old.engine").write_text("old")
    build(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["engine.json", "part.engine"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot keep an engine in .*file"):
        build(engine_folder(KEY, str(tmp_path / "file")))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineKey)])
def test_whatever_an_engine_depends_on_is_in_its_name(field: str) -> None:
    other = dataclasses.replace(KEY, **{field: ((1, 3, 8, 8),) if field == "shapes" else "other"})
    assert other.name != KEY.name
    assert dataclasses.replace(other, **{field: getattr(KEY, field)}).name == KEY.name


def test_by_itself_it_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder(KEY, None) == tmp_path / "segship" / "tensorrt" / KEY.name
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert engine_folder(KEY, None) == Path.home() / ".cache" / "segship" / "tensorrt" / KEY.name
