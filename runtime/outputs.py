"""Where the pictures of results go: a tree that mirrors the input's."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.files import write_text
from segship.runtime.segmenter import OutputKind
from segship.runtime.sources import SourceFile


def plan_outputs(
    files: Sequence[SourceFile], out: Path, kinds: Sequence[OutputKind], *, overwrite: bool
) -> list[dict[OutputKind, Path]]:
    """Decide every output's path before anything is written: ``out/KIND/…/name.png``.

    Two pictures that differ in their suffix only keep it (``name.jpg.png``), so that none writes over another.

    Raises:
        OutputError: if one of them is there already and ``overwrite`` is False.
    """
    stems = collections.Counter(str(file.place.with_suffix("")).casefold() for file in files)
    plan: list[dict[OutputKind, Path]] = []
    for file in files:
        alone = stems[str(file.place.with_suffix("")).casefold()] == 1
        name = f"{file.place.stem if alone else file.place.name}.png"
        plan.append({kind: out / kind / file.place.parent / name for kind in kinds})
    existing = [path for paths in plan for path in paths.values() if path.exists()]
    if existing and not overwrite:
        total = sum(len(paths) for paths in plan)
        raise OutputError(
            f"{existing[0]} is there already ({len(existing)} of {total} outputs are); "
            "add --overwrite, or choose another --out"
        )
    return plan


def write_classes(out: Path, card: ModelCard) -> None:
    """Write ``classes.json`` (id, name, colour) beside the masks in ``out``."""
    rows = zip(card.class_names, card.palette, strict=True)
    classes = [{"id": i, "name": name, "color": list(color)} for i, (name, color) in enumerate(rows)]
    text = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in classes)
    write_text(out / "classes.json", f"[\n  {text}\n]\n")
