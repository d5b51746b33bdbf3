"""What came of a check on this machine: as tables, and as plain values."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.certificate import Proof
from segship.runtime.compare import Comparison, Expected, Gate, figures
from segship.runtime.golden import Golden
from segship.runtime.segmenter import Result

Verdict = Literal["same", "DIFFERS", "FAILS", "recorded", "reference", "runs"]

_COLUMNS: Final = (
    *("engine", "device", "precision", "max abs Δ", "99 % abs Δ", "cosine"),
    *("same labels", "flips, no near tie", "mIoU of masks", ""),
)


@dataclass(frozen=True)
class Worst:
    """The picture on which an engine differs most: its name, what was expected, what came, and how far that is."""

    name: str
    expected: Expected
    result: Result
    comparison: Comparison


@dataclass(frozen=True)
class CheckRow:
    """One engine.

    Attributes:
        engine: that ran the model.
        gate: what it must keep to; None where nothing is asked of it.
        comparison: over all pictures; None where nothing was compared.
        fault: where and how it differs, or why it fails; empty where it does not.
        worst: the picture on which it differs most.
        verdict: in a word.
    """

    engine: EngineInfo
    gate: Gate | None
    comparison: Comparison | None
    fault: str = ""
    worst: Worst | None = field(default=None, repr=False)
    verdict: Verdict = "same"

    @property
    def is_bad(self) -> bool:
        """Whether the engine does not do what it must."""
        return self.verdict in ("DIFFERS", "FAILS")


@dataclass(frozen=True)
class ModelCheck:
    """A model on this machine.

    Attributes:
        model: the file.
        content_sha256: of its graph, weights and card; see ``model_file.content_sha256``.
        card: that it carries.
        golden: the golden outputs; None if there were none.
        pictures: number of the user's pictures.
        against_golden: one row an engine; None without golden outputs.
        among_each_other: likewise, against the first of them; None without pictures.
        noise: likewise, on one picture of noise that is compared with nothing; None if anything was compared.
        refused: why an engine that is installed does not run the model, by its name.
        missing: why an engine was not asked: it is not installed, or has no such device; by its name.
    """

    model: Path
    content_sha256: str
    card: ModelCard
    golden: Golden | None
    pictures: int
    against_golden: list[CheckRow] | None
    among_each_other: list[CheckRow] | None
    noise: list[CheckRow] | None
    refused: dict[str, str]
    missing: dict[str, str]

    @property
    def is_certified(self) -> bool | None:
        """Whether the certificate is this very file's; None if it carries none."""
        certificate = self.card.certificate
        return None if certificate is None else certificate.content_sha256 == self.content_sha256

    @property
    def faults(self) -> list[str]:
        """What is not as it must be, a line each; empty where all is the same."""
        found = []
        if self.is_certified is False:
            found.append("the certificate is not this file's: its graph, weights or card were changed after the proof")
        for rows in (self.against_golden, self.among_each_other, self.noise):
            found += [f"{_name(row.engine)}: {row.fault}" for row in rows or () if row.is_bad]
        proven = {row.backend for row in self.card.certificate.rows if row.passes} if self.card.certificate else set()
        found += [
            f"{name} ran this file where it was proven: {self.refused[name]}" for name in self.refused.keys() & proven
        ]
        return found

    @property
    def worst(self) -> Worst | None:
        """The picture on which any engine differs most."""
        found = [row.worst for rows in (self.against_golden, self.among_each_other) for row in rows or () if row.worst]
        return max(found, key=lambda worst: worst.comparison.differing_pixels, default=None)

    def to_plain(self) -> dict[str, Any]:
        """Return the check as plain values, for JSON."""
        certificate = self.card.certificate
        tables = {
            "golden": self.against_golden,
            "engines": self.among_each_other,
            "noise": self.noise,
        }
        return {
            "model": str(self.model),
            "content_sha256": self.content_sha256,
            "certificate": None
            if certificate is None
            else {"matches": self.is_certified} | dataclasses.asdict(certificate),
            **{name: None if rows is None else [_plain(row) for row in rows] for name, rows in tables.items()},
            "refused": self.refused,
            "missing": self.missing,
            "faults": self.faults,
            "passes": not self.faults,
        }

    def to_markdown(self) -> str:
        """Return the check as Markdown."""
        lines = [*self._certificate_lines()]
        if self.golden is not None and self.against_golden is not None:
            reference = printable(self.golden.reference) or "PyTorch"
            lines += ["", f"Against {self.golden.path}, {len(self.golden.names)} pictures as {reference} saw them:", ""]
            lines += _table(self.against_golden)
        if self.among_each_other is not None:
            first = _name(self.among_each_other[0].engine)
            lines += ["", f"Against {first}, on {self.pictures} of your pictures:", ""]
            lines += _table(self.among_each_other)
            if len(self.among_each_other) == 1:
                lines += ["", "There is only one engine here, so nothing was compared on your pictures."]
        if self.noise is not None:
            lines += ["", "Nothing was compared: each engine ran one picture of noise. Give --golden FILE or pictures."]
            lines += ["", *_table(self.noise)]
        lines += [""] if self.refused or self.missing else []
        lines += [f"Does not run this file: {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"Not checked: {name}: {reason}" for name, reason in self.missing.items()]
        lines += ["", *(f"NOT THE SAME: {fault}" for fault in self.faults)] if self.faults else []
        return "\n".join(lines) + "\n"

    def _certificate_lines(self) -> list[str]:
        certificate = self.card.certificate
        if certificate is None:
            return [f"{self.model} carries no certificate: nothing says that it was compared with PyTorch."]
        verdict = "matches this file" if self.is_certified else "DOES NOT match this file"
        return [
            printable(
                f"Certificate: {verdict} ({certificate.content_sha256[:12]}…). "
                f"Against {certificate.reference}, on {certificate.pictures}:"
            ),
            "",
            *proof_table(certificate.rows),
        ]


def proof_table(rows: Sequence[Proof]) -> list[str]:
    """Return the rows of a certificate as the lines of a Markdown table."""
    return _as_table(
        [
            *map(printable, (row.engine, row.device, row.precision)),
            _figure(row.max_abs, ".1e"),
            _figure(row.p99_abs, ".1e"),
            _figure(row.cosine, ".7f"),
            f"{100 * row.label_agreement:.4f} %",
            str(row.unexplained_flips),
            f"{row.miou:.5f}",
            "recorded" if not row.gate else "same" if row.passes else "DIFFERS",
        ]
        for row in rows
    )


def printable(text: str) -> str:
    """Return text from a file of a stranger with nothing in it that would steer a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _table(rows: Sequence[CheckRow]) -> list[str]:
    gates = dict.fromkeys(f"{row.engine.precision}: {row.gate}" for row in rows if row.gate is not None)
    lines = _as_table([*_engine_cells(row.engine), *_figure_cells(row.comparison), row.verdict] for row in rows)
    return [*lines, *([""] if gates else []), *(f"Asked of {gate}." for gate in gates)]


def _as_table(rows: Any) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]


def _engine_cells(engine: EngineInfo) -> list[str]:
    return [engine.engine, engine.device, engine.precision]


def _figure_cells(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["n/a"] * 6
    return [
        _figure(comparison.max_abs, ".1e"),
        _figure(comparison.p99_abs, ".1e"),
        _figure(comparison.cosine, ".7f"),
        f"{100 * comparison.label_agreement:.4f} %",
        f"{comparison.unexplained_flips} of {comparison.differing_pixels}",
        f"{comparison.miou:.5f}",
    ]


def _figure(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _name(engine: EngineInfo) -> str:
    return f"{engine.engine} on {engine.device} in {engine.precision}"


def _plain(row: CheckRow) -> dict[str, Any]:
    values = {
        "engine": dataclasses.asdict(row.engine),
        "gate": None if row.gate is None else str(row.gate),
        "verdict": row.verdict,
        "fault": row.fault,
    }
    return values if row.comparison is None else values | figures(row.comparison)
