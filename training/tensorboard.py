"""What a training run tells TensorBoard: scalars and sample sheets, as event files in a folder of the run."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from PIL import Image as PillowImage

from segship.runtime.errors import OutputError, require
from segship.training.report import EpochRecord

EVENTS: Final = "tensorboard"
"""Folder of the event files, inside that of the run."""


class EventLog:
    """Event files of one run, which grow while it goes on. Use it as a context manager, or call ``close``.

    Args:
        folder: is made if it is missing.
        resumed_step: None for a new run; for one that goes on, the optimiser's steps it has behind it. TensorBoard then
            hides what was written after that step before the run was interrupted.

    Raises:
        MissingExtraError: if TensorBoard is not installed.
        OutputError: if the folder cannot be written; every method raises it, too.
    """

    def __init__(self, folder: Path, *, resumed_step: int | None = None) -> None:
        require("tensorboard", extra="tensorboard", purpose="writing TensorBoard events")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with self._writing():
            self._writer = SummaryWriter(folder, purge_step=None if resumed_step is None else resumed_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def training_step(self, step: int, *, loss: float, learning_rate: float) -> None:
        """Add what one step of the optimiser came to; ``step`` is counted from 1."""
        self._scalars(step, {"step/loss": loss, "step/learning_rate": learning_rate})

    def epoch(self, record: EpochRecord, class_names: tuple[str, ...]) -> None:
        """Add an epoch's figures, at its step, and bring all that was added to the disk. NaN figures are left out."""
        figures = {
            "epoch/loss": record.train_loss,
            "epoch/learning_rate": record.learning_rate,
            "epoch/data_wait": record.data_wait,
            "epoch/seconds": record.seconds,
        }
        if record.scores is not None:
            figures |= {f"validation/{name}": value for name, value in record.scores.summary().items()}
            ious = zip(class_names, record.scores.iou.tolist(), strict=True)
            figures |= {f"IoU/{name}": value for name, value in ious}
        self._scalars(record.step, figures)
        with self._writing():
            self._writer.flush()

    def sheet(self, step: int, path: Path) -> None:
        """Add a sample sheet that was written as a picture file."""
        with PillowImage.open(path) as image, self._writing():
            self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Bring everything to the disk and end the file."""
        with self._writing():
            self._writer.close()

    def _scalars(self, step: int, figures: dict[str, float]) -> None:
        with self._writing():
            for tag, value in figures.items():
                if not math.isnan(value):
                    self._writer.add_scalar(tag, value, step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write TensorBoard events to {self._folder}: {error.strerror or error}"
            ) from error
