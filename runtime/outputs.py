"""Where the pictures of results go: a tree that mirrors the input's, ``out/KIND/…/name.png``."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.files import write_text
from segship.runtime.sources import SourceFile

OutputKind = Literal["mask", "color", "overlay"]
OUTPUT_KINDS: Final[tuple[OutputKind, ...]] = get_args(OutputKind)


def output_paths(out: Path, kinds: Sequence[OutputKind], name: str | Path) -> dict[OutputKind, Path]:
    """Return the file of each kind of output for the picture called ``name`` (without suffix)."""
    return {kind: out / kind / f"{name}.png" for kind in kinds}


def output_names(files: Sequence[SourceFile]) -> list[Path]:
    """Name each picture's outputs by its place.

    Pictures that differ in their suffix only keep it (``name.jpg``, ``name.png``), so that none writes over another.
    """
    stems = [file.place.with_suffix("") for file in files]
    taken = collections.Counter(str(path).casefold() for path in [*stems, *(file.place for file in files)])
    return [stem if taken[str(stem).casefold()] == 1 else file.place for stem, file in zip(stems, files, strict=True)]


def check_free(out: Path, kinds: Sequence[OutputKind], names: Sequence[Path]) -> None:
    """Check that no output is there already.

    Raises:
        OutputError: naming one that is, and how many are.
    """
    paths = [path for name in names for path in output_paths(out, kinds, name).values()]
    if existing := [path for path in paths if path.exists()]:
        raise OutputError(
            f"{existing[0]} is there already ({len(existing)} of {len(paths)} outputs are); "
            "add --overwrite, or choose another --out"
        )


def write_classes(folder: Path, card: ModelCard, *, overwrite: bool) -> None:
    """Write ``classes.json`` (id, name, colour) beside the masks in ``folder``.

    Raises:
        OutputError: if one with other classes is there already and ``overwrite`` is False.
    """
    rows = zip(card.class_names, card.palette, strict=True)
    classes = [{"id": i, "name": name, "color": list(color)} for i, (name, color) in enumerate(rows)]
    listed = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in classes)
    text = f"[\n  {listed}\n]\n"
    path = folder / "classes.json"
    if not overwrite and path.exists() and path.read_bytes() != text.encode():
        raise OutputError(f"{path} names other classes than this model has; add --overwrite, or choose another --out")
    write_text(path, text)
