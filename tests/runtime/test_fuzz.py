"""A short run of the fuzzing that ``benchmarks/fuzz.py`` does by the thousand, and whether it would find anything."""

import os
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from segship.benchmarks.fuzz_mutations import mutated_bytes, mutated_model
from segship.benchmarks.fuzz_seeds import model_seeds, picture_seeds
from segship.runtime.errors import ImageError
from segship.runtime.images import Page, read_image
from segship.runtime.segmenter import Segmenter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="memory is limited on POSIX systems only")


def test_nothing_but_clean_errors_comes_of_damaged_files(tmp_path: Path) -> None:
    from segship.benchmarks.fuzz import fuzz

    options = ["--images", "300", "--models", "40", "--cli-every", "300", "--findings", str(tmp_path / "findings")]
    done = CliRunner().invoke(fuzz, options, standalone_mode=False)
    assert done.return_value == 0, done.output
    assert done.output.endswith("\n0 findings\n")
    assert "images accepted: " in done.output
    assert "models refused by ModelError: " in done.output


def test_a_crash_too_much_memory_and_too_much_time_are_findings_that_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segship.benchmarks.fuzz import fuzz

    # Python imports a module of this name when it starts, in the worker too.
    (tmp_path / "sitecustomize.py").write_text(
        """
import os, sys, time
import PIL.BmpImagePlugin, PIL.PngImagePlugin, PIL.JpegImagePlugin, PIL.WebPImagePlugin

def crash(*_): os.abort()
def eat(*_): return bytearray(1 << 34)
def hang(*_): time.sleep(600)
def fail(*_): raise RuntimeError("of a kind that nobody expects")

if "segship.benchmarks.fuzz_worker" in sys.orig_argv:
    PIL.BmpImagePlugin.BmpImageFile._open = crash
    PIL.PngImagePlugin.PngImageFile._open = eat
    PIL.JpegImagePlugin.JpegImageFile._open = fail
    PIL.WebPImagePlugin.WebPImageFile._open = hang
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    findings = tmp_path / "findings"
    options = ["--images", "14", "--models", "0", "--seed", "12", "--cli-every", "0", "--time-limit", "1"]
    options += ["--findings", str(findings)]
    done = CliRunner().invoke(fuzz, options, standalone_mode=False)
    assert done.return_value == 1
    assert "FINDING the worker crashed (SIGABRT): " in done.output
    assert "FINDING the worker did not answer within 3 s: " in done.output
    assert "FINDING MemoryError in image_opening.py:_open: " in done.output
    assert "FINDING RuntimeError in image_opening.py:_open: " in done.output
    reports = sorted(findings.glob("*.txt"))
    assert done.output.endswith(f"\n{len(reports)} findings\n")
    assert all(report.with_suffix("").is_file() for report in reports)


@pytest.mark.parametrize("name", picture_seeds())
def test_every_picture_that_fuzzing_starts_from_is_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(picture_seeds()[name])
    if name == "pages.tif":
        with pytest.raises(ImageError, match="3 pages"):
            read_image(path, channels=3, depth="uint8")
    source = Page(path, 1) if name == "pages.tif" else path
    assert read_image(source, channels=3, depth="uint8", convert=("alpha", "depth")).shape in ((24, 40, 3), (40, 24, 3))


@pytest.mark.parametrize("name", model_seeds())
def test_every_model_that_fuzzing_starts_from_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "seed.onnx").write_bytes(model_seeds()[name])
    with Segmenter(tmp_path / "seed.onnx", device="cpu") as segmenter:
        labels = segmenter(_picture(tmp_path)).labels
    assert labels.shape == (40, 24)
    assert len(set(labels.flat)) > 1


def _picture(folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(picture_seeds()["rgb.png"])
    return path


def test_the_same_seed_gives_the_same_damage() -> None:
    pictures, models = list(picture_seeds().values()), list(model_seeds().values())
    for number in range(20):
        assert len({mutated_bytes(pictures[3], pictures, random.Random(number)) for _ in range(2)}) == 1
        assert len({mutated_model(models[0], models, random.Random(number)) for _ in range(2)}) == 1
    assert len({mutated_bytes(pictures[3], pictures, random.Random(number)) for number in range(50)}) > 45
