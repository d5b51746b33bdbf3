"""What the documents promise is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8"))
    places = [(document.parent / link if link else document, heading) for link, heading in links]
    assert [place for place, _ in places if not place.exists()] == []
    assert [place for place, heading in places if heading and heading not in headings_of(place)] == []


def headings_of(document: Path) -> set[str]:
    """Return the names that links to the headings of a document have."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_every_script_that_a_document_names_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "benchmarks/README.md").read_text("utf-8")
    scripts = set(re.findall(r"python -m segship\.benchmarks\.(\w+)", text))
    assert {"accuracy", "latency", "pipeline"} <= scripts
    assert all((ROOT / "benchmarks" / f"{script}.py").is_file() for script in scripts)
