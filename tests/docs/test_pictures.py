"""The pictures of the documents are made by one command."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"]


@pytest.fixture(scope="module")
def made() -> set[Path]:
    """What ``make pictures`` puts beside the documents, and has rules for."""
    done = subprocess.run(["make", "-n", "pictures"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {ROOT / target for target in re.findall(r"^cp \S+\.png (\S+\.png)$", done.stdout, re.MULTILINE)}


def test_make_pictures_makes_every_picture_that_a_document_shows(made: set[Path]) -> None:
    links = {
        (document.parent / link).resolve()
        for document in DOCUMENTS
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text("utf-8"))
        if not link.startswith("http")
    }
    assert links
    assert links <= made
    assert all(link.is_file() for link in links)


def test_no_other_picture_lies_in_the_documents(made: set[Path]) -> None:
    assert set((ROOT / "docs").rglob("*.png")) <= made
