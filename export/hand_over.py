"""What an integrator needs, in one folder: the model, how to run it in words and numbers, and what proves it."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segship.export.instructions import instructions
from segship.export.triton import triton_name, write_repository
from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError, OutputError
from segship.runtime.external_data import external_files
from segship.runtime.files import write_text
from segship.runtime.golden import read_golden
from segship.runtime.model_file import check_fits, content_sha256, read_card

README, CARD, GOLDEN, TRITON = "README.md", "card.json", "golden.npz", "triton"
CONTENTS: Final = frozenset({README, CARD, GOLDEN, TRITON})
"""What lies in such a folder besides the model."""


def hand_over(folder: Path, model: Path, golden: Path, *, overwrite: bool = False) -> None:
    """Write a model and all that is needed to run and to check it into a folder, whole or not at all.

    It holds the model with the files of its weights, ``card.json``, ``golden.npz``, a ``README.md`` with pre- and
    post-processing in words, numbers and a program, and ``triton/``, a model repository for Triton Inference Server.

    Args:
        folder: that is new, or empty.
        model: the exported file, which carries its card.
        golden: what ``seg-export --golden`` wrote for it.
        overwrite: also replace a folder that such a hand-over lies in.

    Raises:
        OutputError: if the folder holds something already, or cannot be written.
        ModelError: if the model or the golden file is missing or damaged, or they do not belong together.
        CardError: if the model carries no card.
    """
    card = read_card(model)
    check_fits(model, card)
    _check_own(model, card)
    if read_golden(golden).content_sha256 != content_sha256(model):
        raise ModelError(f"{golden} was made for another model than {model}; take the one that was written with it")
    name = triton_name(model)
    with _replaced(folder, overwrite) as new:
        _copy_model(model, new / model.name)
        # A copy, too: weights beside a model that are a hard link are refused, like any link that leads elsewhere.
        _copy_model(model, write_repository(new / TRITON, name, card))
        shutil.copyfile(golden, new / GOLDEN)
        write_text(new / CARD, card.to_json(indent=2) + "\n")
        write_text(new / README, instructions(card, model, triton=f"{TRITON}/{name}"))


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that a hand-over would not be written into.

    Raises:
        OutputError: if it holds something already, or is none.
    """
    try:
        there = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    if there and not there >= CONTENTS:
        raise OutputError(f"{folder} holds other things than a hand-over ({min(there)}, say); choose a new folder")
    if there and not overwrite:
        raise OutputError(f"{folder} holds a hand-over already; add --overwrite, or choose another folder")


def _check_own(model: Path, card: ModelCard) -> None:
    if (card.input_layout, card.input_type, card.output_layout, card.output_stride) != (None, "float32", None, 1):
        raise ModelError(
            f"{model} was not made by seg-export, as the order of its axes, its type or its output's size show; a "
            "hand-over describes graphs of seg-export only"
        )


def _copy_model(model: Path, to: Path) -> None:
    """Copy an ONNX file and what holds its weights, which it names by their place beside it."""
    for file in (model, *external_files(model)):
        target = to if file == model else to.parent / file.relative_to(model.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


@contextlib.contextmanager
def _replaced(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write into, which takes the place of ``folder`` on success, and goes on failure."""
    folder = folder.resolve()
    check_free(folder, overwrite=overwrite)
    new, old = (folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
