"""The scripts that measure inference run as they are; what they measure is for people to judge."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks import big_picture, cold_start, memory, same_labels
from segship.benchmarks.record import BenchError


@pytest.fixture
def pictures(photo: NDArray[np.uint8], tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.roll(photo, number, axis=1)).save(folder / f"{number}.png")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_compares_the_first_pictures_with_all(tiny_model: Path, pictures: Path) -> None:
    options = ["--pictures", "7", "--seconds", "0.2", "--first", "3"]
    done = CliRunner().invoke(memory.memory, [str(tiny_model), str(pictures), *options])
    assert done.exit_code == 0, done.output
    found = re.findall(r"first 3 (\d+) MB, whole job (\d+) MB \((\d+) pictures\): ratio (\S+)", done.output)
    assert [int(count) for _, _, count, _ in found] == [7, 6]
    for first, whole, _, ratio in found:
        assert 20 < int(first) <= int(whole)
        assert float(ratio) == pytest.approx(int(whole) / int(first), abs=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_says_when_the_job_failed_or_was_too_short(
    tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[str | Path] = [tiny_model, pictures, "--jsonl", "--save", ""]
    with pytest.raises(BenchError, match="the job was over after 2 pictures; expected 3 or more"):
        memory.peak(arguments, first=3)
    with pytest.raises(BenchError, match="seg-infer ended with status 2 after 0 pictures: No such option"):
        memory.peak([*arguments, "--nosuch"], first=1)
    monkeypatch.setattr(memory, "peak_bytes", lambda _: 0)  # as of a process that has ended
    with pytest.raises(BenchError, match="the job of 2 pictures was over before its memory could be read"):
        memory.peak(arguments, first=2)


def test_cold_start_times_each_process(tiny_model: Path, pictures: Path) -> None:
    arguments = [str(tiny_model), str(pictures / "0.png"), "--runs", "1"]
    done = CliRunner().invoke(cold_start.cold_start, arguments)
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    medians = {name: float(median) for name, median, _, _ in rows}
    assert medians["python"] < medians["from segship.runtime import Segmenter"] < medians["seg-infer MODEL PICTURE"]


def test_a_model_that_is_missing_is_told_by_the_process_that_missed_it(pictures: Path, tmp_path: Path) -> None:
    missing, picture = str(tmp_path / "missing.onnx"), str(pictures / "0.png")
    for command, arguments in (
        (cold_start.cold_start, [missing, picture, "--runs", "1"]),
        (big_picture.big_picture, [missing, str(pictures), "--side", "64", "--out", str(tmp_path / "out")]),
    ):
        done = CliRunner().invoke(command, arguments)
        assert isinstance(done.exception, BenchError)
        assert f"ended with status 1: cannot read the model {missing}" in str(done.exception)


def test_a_big_picture_is_measured_in_a_process_of_its_own(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--side", "300", "--tile", "64", "--overlap", "0", "--save", "mask,overlay", "--out", str(out)]
    done = CliRunner().invoke(big_picture.big_picture, [str(tiny_model), str(pictures), *options])
    assert done.exit_code == 0, done.output
    assert "300×300, ort, writes mask,overlay" in done.output
    assert " 25 tiles " in done.output
    for kind in ("mask", "overlay"):
        with Image.open(out / f"{kind}.png") as written:
            assert written.size == (300, 300)
    found = re.search(r"peak (\S+) GB resident \((\S+) with the model loaded\)", done.output)
    assert found is not None
    assert 0.02 < float(found[2]) <= float(found[1]) < 4


def test_same_labels_compares_forms_and_engines(tiny_model: Path, pictures: Path) -> None:
    arguments = [str(tiny_model), str(pictures / "0.png"), "--backend", "ort", "--backend", "opencv"]
    done = CliRunner().invoke(same_labels.same_labels, [*arguments, "--tile", "48x64"])
    assert done.exit_code == 0, done.output
    assert done.output.count("same as array, bytes, Pillow image, stream, command, stdin, video") == 4
    assert done.output.count("same as by ort") == 2


def test_same_labels_fails_where_an_engine_differs(
    tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_labels, "read_image", lambda path, **_: np.zeros((90, 120, 3), np.uint8))
    done = CliRunner().invoke(same_labels.same_labels, [str(tiny_model), str(pictures / "0.png"), "--backend", "ort"])
    assert done.exit_code == 1
    assert "DIFFERENT as array, video" in done.output
