"""The examples of the pages are run: an example that does not work is a fault of the page or of the program.

The ``shell`` and ``python`` blocks of a page run one after the other in one folder, each in a process of its own, the
shell with ``set -euo pipefail``. Comments in the page, which no reader sees, say what lies in that folder and what is
done differently here::

    <!-- needs: street.onnx, photos/ -->                   anywhere: what is lent, of conftest.py's MAKERS
    <!-- not run: it needs a GPU -->                       before a block: it is not run, and why
    <!-- run: --epochs 40 → --epochs 1; … → … -->          before a block: what is shorter when it is run here
    <!-- file: classes.json -->                            before a block: it is the content of this file

The address ``http://127.0.0.1:8765/live`` in an example is a live stream.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN: Final = ("shell", "python")
SHOWN: Final = ("", "text", "json", "toml", "yaml", "dockerfile", "c", "cpp", "csharp", "java", "javascript", "rust")
"""Languages of blocks that are no examples in the sense of this file: output, files, other languages."""

LIVE: Final = "http://127.0.0.1:8765/live"
FENCE: Final = re.compile(
    r"(?P<marks>(?:^<!--(?:(?!-->).)*-->\n+)*)^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)^```$", re.MULTILINE
)
MARK: Final = re.compile(r"<!--\s*(not run|run|file|needs):\s*((?:(?!-->).)*?)\s*-->")
TIMEOUT_S: Final = 600


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)


def blocks_of(text: str) -> list[Block]:
    """Read the fenced blocks of a page, in order."""
    return [
        Block(
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            {kind: value for kind, value in MARK.findall(found["marks"]) if kind != "needs"},
        )
        for found in FENCE.finditer(text)
    ]


def name_of(page: Path) -> str:
    """Return what a page is called: there are several READMEs."""
    return page.relative_to(ROOT).as_posix()


def needs_of(text: str) -> list[str]:
    """Read what a page needs in its folder."""
    lists = [values for kind, values in MARK.findall(text) if kind == "needs"]
    return [name.strip() for names in lists for name in names.split(",")]


def shortened(block: Block) -> str:
    """Return what is run of a block."""
    text = block.text
    for change in filter(None, re.split(r";\s+", block.marks.get("run", ""))):
        shown, arrow, quick = change.partition(" → ")
        assert arrow, f"line {block.line}: {change!r} is no change; expected WHAT IS SHOWN → WHAT IS RUN"
        assert shown in text, f"line {block.line}: {shown!r}, which is to be changed, is not in the block"
        text = text.replace(shown, quick)
    return text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_example_of_a_page_runs(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    blocks = blocks_of(text)
    if not any(block.language in RUN and "not run" not in block.marks for block in blocks):
        pytest.skip("the page has no example to run")
    for name in needs_of(text):
        request.getfixturevalue("shelf").lend(name, tmp_path)
    commands = request.getfixturevalue("commands")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "",
    }
    for block in blocks:
        code = shortened(block)
        if LIVE in code:
            code = code.replace(LIVE, request.getfixturevalue("live_stream"))
        if "file" in block.marks:
            target = tmp_path / block.marks["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code, "utf-8")
        elif block.language in RUN and "not run" not in block.marks:
            run_block(block.language, code, tmp_path, environment, f"{name_of(page)}, line {block.line}")


def run_block(language: str, code: str, folder: Path, environment: dict[str, str], where: str) -> None:
    if language == "python":
        (folder / "example.py").write_text(code, "utf-8")
        command = [sys.executable, "example.py"]
    else:
        command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=TIMEOUT_S,
    )
    told = f"{where}: exit status {done.returncode}\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, told
    assert "Traceback (most recent call last)" not in done.stderr, told


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text("utf-8")
    blocks = blocks_of(text)
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(blocks), "a block is not closed, or is indented"
    kinds = [kind for kind, _ in MARK.findall(text)]
    assert len(kinds) == text.count("<!--"), "a comment is no mark"
    assert len(kinds) - kinds.count("needs") == sum(len(block.marks) for block in blocks), "a mark is before no block"
    for block in blocks:
        assert block.language in (*RUN, *SHOWN), f"line {block.line}: {block.language!r} is no known language"
        reason = block.marks.get("not run")
        assert reason is None or len(reason.split()) > 2, f"line {block.line}: expected a reason why it is not run"
        assert len(block.marks) < 2, f"line {block.line}: one mark is enough"
        shortened(block)


PAGE = """# A page

<!-- needs: street.onnx, photos/ -->

<!-- run: 40 → 1; b → c -->
```shell
echo 40 b
```

<!-- not run: it needs a GPU -->

```python
print(1)
```

```
output
```
"""


def test_a_page_is_taken_apart() -> None:
    assert needs_of(PAGE) == ["street.onnx", "photos/"]
    first, second, third = blocks_of(PAGE)
    assert first == Block(6, "shell", "echo 40 b\n", {"run": "40 → 1; b → c"})
    assert shortened(first) == "echo 1 c\n"
    assert second == Block(12, "python", "print(1)\n", {"not run": "it needs a GPU"})
    assert third == Block(16, "", "output\n")


def test_a_change_of_what_is_not_shown_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="is not in the block"):
        shortened(Block(1, "shell", "seg-train --epochs 40\n", {"run": "--epochs 50 → --epochs 1"}))


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("shell", "false\ntrue\n", "exit status 1"),
        ("shell", "seg-infer missing.onnx missing.jpg\n", "missing.onnx"),
        ("python", "1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_an_example_that_fails_fails_the_test(
    language: str, code: str, message: str, commands: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    with pytest.raises(AssertionError, match=message):
        run_block(language, code, tmp_path, environment, "here")
