"""What the documents promise is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benchmarks/README.md",
        "docs/training.md",
        "docs/export.md",
        "docs/inference.md",
    ],
)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    document = ROOT / name
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_script_that_a_document_names_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "benchmarks/README.md").read_text("utf-8")
    scripts = set(re.findall(r"python -m segship\.benchmarks\.(\w+)", text))
    assert {"accuracy", "latency", "pipeline"} <= scripts
    assert all((ROOT / "benchmarks" / f"{script}.py").is_file() for script in scripts)
