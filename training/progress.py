"""Progress of a training run on a terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from segship.training.report import EpochRecord
from segship.training.trainer import Progress


class ConsoleProgress(Progress):
    """A bar for the stretch of work that goes on and a line for each epoch that is done, on stderr.

    Args:
        quiet: show neither.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, steps: int) -> None:
        """Show a new bar."""
        self._bar.reset(self._task, description=what, total=steps)

    def advance(self) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """Print the epoch's line."""
        scores = record.scores
        self._console.print(
            f"epoch {record.epoch:3}  loss {record.train_loss:.4f}  mIoU {scores.miou:.4f}  "
            f"pixel accuracy {scores.pixel_accuracy:.4f}  mean class accuracy {scores.mean_class_accuracy:.4f}  "
            f"lr {record.learning_rate:.2e}  {record.seconds:.0f} s" + ("  [bold]best[/bold]" if is_best else "")
        )
