"""The messages that the page on troubleshooting explains are messages of the program."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
EXPLAINED: Final = [message for row in re.findall(r"(?m)^\| (`.+?) \|", PAGE) for message in re.findall("`(.+?)`", row)]
VARIES: Final = "…"


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts in a module, with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else VARIES for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def texts() -> str:
    modules = [path for floor in ("runtime", "export", "training") for path in (ROOT / floor).rglob("*.py")]
    return "\n".join([*(text for path in modules for text in texts_of(path)), (ROOT / "Makefile").read_text("utf-8")])


def test_messages_are_explained() -> None:
    assert len(EXPLAINED) > 40
    assert len(EXPLAINED) == len(set(EXPLAINED))


@pytest.mark.parametrize("message", EXPLAINED)
def test_the_program_has_a_message_that_is_explained(message: str, texts: str) -> None:
    assert message.strip(VARIES) in texts


def test_a_message_of_no_program_is_found_out(texts: str) -> None:
    assert "takes two pictures at a time; export it" not in texts
