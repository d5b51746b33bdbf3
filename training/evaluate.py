"""Measuring a checkpoint without training it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from segship.runtime.card import ModelCard
from segship.training.checkpoint import load_checkpoint
from segship.training.data import DataOptions, open_dataset
from segship.training.device import pick_device
from segship.training.metrics import ConfusionMatrix
from segship.training.progress import Progress
from segship.training.scores_report import Fact, report_of, table, write_report
from segship.training.setup import check_kind
from segship.training.validate import measure


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint came to.

    Attributes:
        matrix: what was counted.
        card: of the checkpoint.
        facts: what was measured, on what and with what.
    """

    matrix: ConfusionMatrix
    card: ModelCard
    facts: dict[str, Fact]

    def to_json(self) -> str:
        """Return what ``report.json`` holds, on one line of ASCII."""
        return json.dumps(report_of(self.matrix, self.card, self.facts))

    def to_text(self) -> str:
        """Return the table for people."""
        return table(self.matrix, self.card)


def evaluate(
    checkpoint: Path, data: str, options: DataOptions, device: str, out: Path | None, progress: Progress
) -> Evaluation:
    """Measure a checkpoint on the validation part of a dataset.

    Args:
        checkpoint: of ``seg-train``.
        data: as ``--data`` takes it.
        options: of the dataset.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        out: folder for ``report.json`` and ``confusion.png``; None: neither is written.
        progress: told what goes on.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        DatasetError: if the dataset is wrong, or of other classes.
    """
    network, card = load_checkpoint(checkpoint)
    dataset = open_dataset(data, options).val
    check_kind(dataset, data, card, str(checkpoint))
    chosen = pick_device(device)
    progress.begin("measuring", len(dataset))
    start = time.perf_counter()
    matrix = measure(network.to(chosen), card, dataset, chosen, progress.advance)
    facts: dict[str, Fact] = {
        "checkpoint": str(checkpoint),
        "sha256": card.provenance.checkpoint_sha256,
        "data": data,
        "pictures": len(dataset),
        "device": str(chosen),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if out is not None:
        write_report(out, matrix, card, facts)
    return Evaluation(matrix, card, facts)
