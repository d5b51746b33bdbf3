"""What a training run tells of itself while it goes on."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from segship.training.report import EpochRecord  # needs PyTorch, which a check of data does not


class Progress:
    """What a run tells; this base keeps it to itself."""

    def begin(self, what: str, steps: int) -> None:
        """Announce a stretch of work of so many steps."""

    def advance(self, loss: float | None = None) -> None:
        """One step is done; one of training had this loss."""

    def record(self, record: "EpochRecord", *, is_best: bool) -> None:
        """An epoch, or what lies between two validations, is done."""

    def note(self, text: str) -> None:
        """Something is worth a line."""


class ConsoleProgress(Progress):
    """A bar for the stretch of work that goes on and a line for each epoch that is done, on stderr.

    Args:
        quiet: show neither.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, loss="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, steps: int) -> None:
        """Show a new bar."""
        self._bar.reset(self._task, description=what, total=steps, loss="")

    def advance(self, loss: float | None = None) -> None:
        """Move the bar."""
        self._bar.update(self._task, advance=1, loss="" if loss is None else f"loss {loss:.4f}")

    def record(self, record: "EpochRecord", *, is_best: bool) -> None:
        """Print the record's line."""
        parts = [f"epoch {record.epoch:3}", f"loss {record.train_loss:.4f}"]
        if record.scores is not None:
            parts += [
                f"mIoU {record.scores.miou:.4f}",
                f"pixel accuracy {record.scores.pixel_accuracy:.4f}",
                f"mean class accuracy {record.scores.mean_class_accuracy:.4f}",
            ]
        parts += [f"lr {record.learning_rate:.2e}", f"{record.seconds:.0f} s"]
        self._console.print("  ".join(parts) + ("  [bold]best[/bold]" if is_best else ""))

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)
