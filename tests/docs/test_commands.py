"""The commands' reference, and their completion by shells."""

import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SCRIPTS: Final[dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/make_commands.py"))


def completed(words: str, *, shell: str = "bash") -> str:
    """Return what a shell is told that the last of these words may become; without words, how it is to ask."""
    name = words.split()[0]
    module, _, function = SCRIPTS[name].partition(":")
    code = f"import sys; sys.argv = [{name!r}]; from {module} import {function}; {function}()"
    asked = {f"_{name.upper().replace('-', '_')}_COMPLETE": f"{shell}_{'complete' if ' ' in words else 'source'}"}
    at = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked | at, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_reference_is_what_the_commands_say_now(generator: dict[str, Any]) -> None:
    written = (ROOT / "docs/commands.md").read_text("utf-8")
    assert written == generator["reference"](), "make docs writes it anew"


def test_the_reference_has_every_command_that_is_installed(generator: dict[str, Any]) -> None:
    assert generator["COMMANDS"].keys() == SCRIPTS.keys()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("seg-train --arch u", ["unet", "u2net", "u2netp", "u2net5p"]),
        ("seg-train --backbone vgg1", ["vgg11", "vgg13", "vgg16", "vgg19"]),
        ("seg-export best.safetensors --head l", ["logits", "labels"]),
        ("seg-export best.safetensors --precision i", ["int8"]),
        ("seg-infer model.onnx one.jpg --upscale l", ["logits", "labels"]),
        ("seg-infer model.onnx one.jpg --skip", ["--skip-existing"]),
        ("seg-check m", ["model"]),
        ("seg-check card model.onnx --scale ", ["full_scale", "image_max"]),
        ("seg-infer model.onnx --backend o", ["opencv", "openvino", "ort"]),
        ("seg-infer model.onnx --save mask,co", ["mask,color", "mask,contours"]),
        ("seg-bench model.onnx --backend t", ["tensorrt", "torch"]),
        ("seg-bench model.onnx --qui", ["--quick", "--quiet"]),
    ],
)
def test_a_shell_is_told_what_a_word_may_become(words: str, expected: list[str]) -> None:
    assert completed(words).splitlines() == [f"plain,{word}" for word in expected]


def test_a_shell_completes_files_by_itself() -> None:
    assert completed("seg-infer model").splitlines() == ["file,model"]


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef seg-infer"), ("fish", "complete --no-files")])
def test_other_shells_are_told_how_to_ask(shell: str, words: str) -> None:
    assert words in completed("seg-infer", shell=shell)
