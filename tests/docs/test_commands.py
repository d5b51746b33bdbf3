"""The commands' reference, their completion by shells, and how documents write them."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest

ROOT: Final = Path(__file__).parents[2]
SCRIPTS: Final[dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
DOCUMENTS: Final = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


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


def written(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the project's commands in a document's shell blocks: program or benchmark's module, and arguments."""
    for block in re.findall(r"^```shell\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            words.whitespace_split = True
            yield from _commands(list(words))


def _commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    names = [n for n, word in enumerate(words) if word in SCRIPTS or word.startswith("segship.benchmarks.")]
    if names and words[0] not in ("for", "docker"):  # a container's arguments are those of its entry point
        start = names[0] + 1
        rest = words[start:]
        end = next((n for n, word in enumerate(rest) if word and set(word) <= set("|&;<>")), len(rest))
        yield words[start - 1], rest[:end]
        yield from _commands(rest[end + 1 :])


def parsed(name: str, arguments: list[str], generator: dict[str, Any]) -> None:
    """Let a command read its arguments, as far as no file need be there.

    Raises:
        click.UsageError: if it cannot.
    """
    if name in SCRIPTS:
        command = generator["command_at"](generator["COMMANDS"][name])
    else:
        own = vars(importlib.import_module(name)).values()
        command = next(value for value in own if isinstance(value, click.Command))
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group) and arguments[0] != "--help":
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_parser(context).parse_args(list(arguments))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_documents_write_is_what_commands_take(document: Path, generator: dict[str, Any]) -> None:
    for name, arguments in written(document.read_text("utf-8")):
        try:
            parsed(name, arguments, generator)
        except click.UsageError as error:
            pytest.fail(f"{document.name}: {name} {shlex.join(arguments)}: {error.format_message()}")


def test_commands_are_found_in_a_document_and_wrong_ones_are_told(generator: dict[str, Any]) -> None:
    text = "```shell\nls | seg-infer a.onnx - --save mask > x  # why\nif seg-check model m.onnx; then exit; fi\n```\n"
    found = list(written(text + "```python\nseg-infer\n```\n"))
    assert found == [("seg-infer", ["a.onnx", "-", "--save", "mask"]), ("seg-check", ["model", "m.onnx"])]
    for arguments in (["a.onnx", "--sav", "mask"], ["a.onnx", "--limit"]):
        with pytest.raises(click.UsageError):
            parsed("seg-infer", arguments, generator)
