"""What ``seg-infer`` says while it goes on, and at its end."""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TextIO

import click

from segship.runtime.errors import EngineCrashError, ImageError, SegshipError
from segship.runtime.pipeline import Crew
from segship.runtime.records import plain_timings
from segship.runtime.source_item import Source, SourceItem
from segship.runtime.stage_report import StageReport

if TYPE_CHECKING:
    from rich.progress import Progress

_MANY: Final = 10
"""Pictures from which on medians say something."""

Style = Literal["lines", "json", "jsonl", "quiet"]


class InferReport:
    """Tells of a job: a line a picture and a bar, or one JSON document, or a JSON document a line.

    A context manager, so that the bar goes when the job ends.

    Args:
        what: what does the job, as plain values.
        headline: the same as a line.
        source: of the pictures.
        style: how it is told.
        crew: that does the work; None: it is not on this machine.

    Attributes:
        is_complete: whether the job came to its end; to be set then.
    """

    def __init__(
        self, what: dict[str, Any], headline: str, source: Source, *, style: Style, crew: Crew | None = None
    ) -> None:
        self._what, self._headline, self._source, self._style = what, headline, source, style
        self._start = time.perf_counter()
        self.done, self.skipped = 0, 0
        self.is_complete = False
        self._more: dict[str, Any] = {}
        self._stages = StageReport(crew or Crew())
        # On disk, so that memory does not grow with the job; what is printed in the end is one document or none.
        self._records = _unnamed_file()
        self._errors = _unnamed_file()
        self._bar = self._make_bar()

    def __enter__(self) -> Self:
        """Say what runs."""
        if self._style == "lines":
            click.echo(self._headline)
        elif self._style == "jsonl":
            click.echo(json.dumps({"job": self._what}, ensure_ascii=False))
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        self._records.close()
        self._errors.close()

    def skip(self, item: SourceItem, error: SegshipError) -> None:
        """Tell of a picture that was skipped.

        Raises:
            SegshipError: ``error`` itself, if the next picture would meet it too: one of the model, or of the disk.
        """
        if not isinstance(error, ImageError | EngineCrashError):
            raise error
        self.tell_skipped(item.name, str(error))

    def tell_skipped(self, name: str, error: str) -> None:
        """Tell of a picture that was skipped, and why."""
        entry = json.dumps({"source": name, "error": error}, ensure_ascii=False)
        self._errors.write((", " if self.skipped else "") + entry)
        self.skipped += 1
        if self._style == "jsonl":
            click.echo(entry)
        click.echo(f"skipped: {error}", err=True)
        self._advance()

    def show(self, record: Mapping[str, Any], timings: Mapping[str, float] | None = None) -> None:
        """Tell of a picture that is done, in its order.

        Args:
            record: of its result (:func:`segship.runtime.records.record`).
            timings: of its result; None: the record holds what is to be told of them.
        """
        record = {"index": self.done, **record}
        if timings is not None:
            self._stages.add(timings)
            record["timings_ms"] = plain_timings(timings)
        if self._style == "lines":
            click.echo(_line(record))
        elif self._style == "jsonl":
            click.echo(json.dumps(record, ensure_ascii=False))
        elif self._style == "json":
            self._records.write((", " if self.done else "") + json.dumps(record, ensure_ascii=False))
        self.done += 1
        self._advance()

    def add(self, more: dict[str, Any]) -> None:
        """Take what is known of the job only at its end, as plain values."""
        self._more |= more

    def end(self, out: Path | None, *, left_out: int = 0) -> None:
        """Tell of the whole job.

        Args:
            out: where outputs were written; None: nowhere.
            left_out: pictures that were done already.
        """
        seconds = time.perf_counter() - self._start
        live = {"dropped": self._source.dropped, "reconnections": self._source.reconnections}
        tail = {
            "complete": self.is_complete,
            "seconds": seconds,
            "done": self.done,
            "left_out": left_out,
            **(live if self._source.is_live else {}),
            **self._more,
            **self._stages.to_plain(),
        }
        if self._style == "json":
            self._print_document(tail)
        elif self._style == "jsonl":
            click.echo(json.dumps({"end": tail | {"skipped": self.skipped}}, ensure_ascii=False))
        elif self._style == "lines":
            self._print_summary(seconds, out, left_out)

    def _print_document(self, tail: dict[str, Any]) -> None:
        """Print one document; its longest parts come from disk, piece by piece."""
        head = json.dumps(self._what | tail, ensure_ascii=False)
        click.echo(head[:-1] + ', "images": [', nl=False)
        self._copy(self._records)
        click.echo('], "skipped": [', nl=False)
        self._copy(self._errors)
        click.echo("]}")

    def _copy(self, file: Any) -> None:
        file.seek(0)
        while piece := file.read(1 << 20):
            click.echo(piece, nl=False)

    def _print_summary(self, seconds: float, out: Path | None, left_out: int) -> None:
        done = self.done
        parts = ["1 picture" if done == 1 else f"{done} pictures"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{left_out} there already"] if left_out else []
        if self._source.is_live:
            parts.append(f"{self._source.dropped} dropped for newer ones")
            parts += [f"reconnected {self._source.reconnections} times"] if self._source.reconnections else []
        written = f" → {out}/" if out and done else ""
        click.echo(f"{', '.join(parts)} in {seconds:.2f} s ({done / seconds:.3g} a second){written}")
        if done >= _MANY and (told := str(self._stages)):
            click.echo(told)

    def _make_bar(self) -> "Progress | None":
        many = self._source.count is None or self._source.count > 1
        scrolls = self._style in ("lines", "jsonl") and sys.stdout.isatty()  # a bar would tell nothing more there
        if self._style == "quiet" or not many or scrolls or not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        bar.add_task("segmenting", total=self._source.count)
        return bar

    def _advance(self) -> None:
        if self._bar:
            self._bar.advance(self._bar.task_ids[0])


def _unnamed_file() -> TextIO:
    """Open a file without a name; what of a path is no Unicode goes in as JSON escapes it."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")  # closed in __exit__


def _line(record: Mapping[str, Any]) -> str:
    largest = sorted(record["areas"].items(), key=lambda entry: -entry[1]["share"])
    shares = "  ".join(f"{name} {area['share']:.1%}" for name, area in largest if area["pixels"])
    return f"{record['source']}  {record['width']}×{record['height']}  {shares}"
