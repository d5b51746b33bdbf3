"""A model in an engine, as the command line names it, opened as ``seg-infer`` opens it."""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from segship.benchmarks.record import BenchError, Subject
from segship.runtime.backends import load_backend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.certificate import Proof
from segship.runtime.errors import ModelError
from segship.runtime.knobs import read_knobs
from segship.runtime.model_file import CHECKPOINT_SUFFIX, content_sha256
from segship.runtime.proof import unproven
from segship.runtime.segmenter import Segmenter
from segship.runtime.segmenter_plan import card_of


@dataclass(frozen=True)
class Choice:
    """What is to be measured, in what.

    Attributes:
        model: an ``.onnx`` file; of the backend ``torch`` the checkpoint.
        asked: the engine with options of it, NAME[:KEY=VALUE,…]: ``ort``, or ``openvino:precision=engine``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        batch: pictures in a run.
        threads: that the engine may use on the CPU; None: the CPUs that there are.
    """

    model: Path
    asked: str = "ort"
    device: str = "auto"
    batch: int = 1
    threads: int | None = None

    @property
    def backend(self) -> str:
        """The engine's name."""
        return self.asked.partition(":")[0]

    @property
    def options(self) -> EngineOptions:
        """What is asked of the engine.

        Raises:
            BenchError: if those are no options of an engine.
        """
        settings = self.asked.partition(":")[2]
        pairs, keys = (
            settings.split(",") if settings else [],
            [field.name for field in dataclasses.fields(EngineOptions)],
        )
        if unknown := [pair for pair in pairs if pair.partition("=")[0].strip() not in keys]:
            raise BenchError(
                f"--backend {self.asked}: {unknown[0]!r} is no option of an engine; expected KEY=VALUE, with one "
                f"of the keys {', '.join(keys)}"
            )
        try:
            return read_knobs(pairs, threads=self.threads).engine
        except click.UsageError as error:
            found = error.message.replace("--set.engine.", "").replace("--set ", "")
            raise BenchError(f"--backend {self.asked}: {found}") from error


def open_choice(choice: Choice, **more: Any) -> Segmenter:
    """Load a model into the engine that was chosen for it.

    Args:
        choice: model and engine.
        more: further arguments of :class:`~segship.runtime.segmenter.Segmenter`, which overrule those of the choice.

    Raises:
        BenchError: if the engine's options are none, or a model that cuts pictures into tiles is to take several.
        SegshipError: whatever the segmenter raises; :class:`~segship.runtime.errors.ModelError` where a model that
            takes one picture at a time is to take several.
    """
    arguments: dict[str, Any] = {"backend": choice.backend, "device": choice.device, "options": choice.options} | more
    card = arguments.get("card") or card_of(choice.model)
    if card.tile_overlap is None and "tile" not in more:
        arguments.setdefault("batch", choice.batch)
    elif choice.batch > 1:
        raise BenchError(f"--batch {choice.batch}: {choice.model} cuts pictures into tiles, a picture at a time")
    if choice.backend == "opencv":
        cv2.setNumThreads(-1)  # as many as in a new process, whatever was opened before
    if choice.backend == "torch" and choice.batch > 1:  # PyTorch takes as many as it gets; no checkpoint's card says so
        card = dataclasses.replace(card, dynamic=("batch",))
        backend = load_backend("torch", choice.model, card, arguments["device"], arguments["options"])
        arguments |= {"backend": backend, "card": card}
    segmenter = Segmenter(choice.model, **arguments)
    share_cv2_threads(segmenter)
    return segmenter


def share_cv2_threads(segmenter: Segmenter) -> None:
    """Give OpenCV the threads that ``seg-infer`` gives it beside this engine; to be called before each run of many.

    They are the whole process's: one, but for OpenCV's own engine.
    """
    info = segmenter.info
    threads = info.threads if info.backend == "opencv" else 1
    if cv2.getNumThreads() != threads:
        cv2.setNumThreads(threads)
        cv2.cvtColor(np.zeros((512, 512, 3), np.uint8), cv2.COLOR_RGB2GRAY)  # starts them, or the next run would


def subject_of(choice: Choice, segmenter: Segmenter) -> Subject:
    """Return what a measurement is of: file, engine, and what the file's certificate says of the two.

    Raises:
        ModelError: if the file cannot be read.
    """
    model, card, engine = choice.model, segmenter.card, segmenter.info
    is_checkpoint = model.suffix == CHECKPOINT_SUFFIX
    proof = None
    if card.certificate is not None and not unproven(model, card, engine):
        proof = card.certificate.proof(engine.backend, engine.engine, engine.device, engine.precision)
    return Subject(
        str(model),
        file_sha256(model) if is_checkpoint else content_sha256(model, card),
        card.network.arch if card.network else None,
        choice.asked,
        engine,
        card.preprocess.size,
        choice.batch,
        None if proof is None else proof_in_words(proof),
        card.precision,
    )


def proof_in_words(proof: Proof) -> str:
    """Say what came of a comparison with PyTorch: ``exact: 100 % of labels, max |Δ| 1.3e-05``."""
    if proof.label_agreement == 1:
        labels = "exact: 100 % of labels"
    else:  # rounded down, or it might say 100 %
        labels = f"{math.floor(1e6 * proof.label_agreement) / 1e4:.4f} % of labels"
        labels += f", mIoU {proof.miou:.5f}" if proof.unexplained_flips else ", the others near ties"
    return labels if proof.max_abs is None else f"{labels}, max |Δ| {proof.max_abs:.1e}"


def check_checkpoint(model: Path, checkpoint: Path) -> None:
    """Check that a model was exported from a checkpoint, so that one can stand for the other.

    Raises:
        BenchError: if it was exported from another one, or does not say from which.
        ModelError: if either cannot be read.
    """
    expected, found = card_of(model).provenance.checkpoint_sha256, file_sha256(checkpoint)
    if not expected:
        raise BenchError(f"{model} does not say which checkpoint it was exported from, so {checkpoint} may be another")
    if found != expected:
        raise BenchError(
            f"{model} was exported from a checkpoint of sha-256 {expected}, and {checkpoint} has {found}; "
            "give the one that it was exported from"
        )


def file_sha256(path: Path) -> str:
    """Return the sha-256 of a checkpoint's file.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
