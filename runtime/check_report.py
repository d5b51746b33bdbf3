"""What came of a check on this machine: as tables, and as plain values."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.runtime.candidate import EngineRow, Worst
from segship.runtime.card import ModelCard
from segship.runtime.engine_table import engine_name, engine_table, plain_row, proof_table
from segship.runtime.golden import Golden
from segship.runtime.printable import printable


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
    against_golden: list[EngineRow] | None
    among_each_other: list[EngineRow] | None
    noise: list[EngineRow] | None
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
            found += [f"{engine_name(row.engine)}: {row.fault}" for row in rows or () if row.is_bad]
        proven = {row.backend for row in self.card.certificate.rows if row.passes} if self.card.certificate else set()
        found += [
            f"{name} ran this file where it was proven: {self.refused[name]}" for name in self.refused.keys() & proven
        ]
        return found

    @property
    def worst(self) -> Worst | None:
        """The picture on which any engine differs most."""
        found = [row.worst for rows in (self.against_golden, self.among_each_other) for row in rows or () if row.worst]
        return max(found, key=lambda worst: worst.badness, default=None)

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
            **{name: None if rows is None else [plain_row(row) for row in rows] for name, rows in tables.items()},
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
            lines += engine_table(self.against_golden)
        if self.among_each_other is not None:
            first = engine_name(self.among_each_other[0].engine)
            lines += ["", f"Against {first}, on {self.pictures} of your pictures:", ""]
            lines += engine_table(self.among_each_other)
            if len(self.among_each_other) == 1:
                lines += ["", "There is only one engine here, so nothing was compared on your pictures."]
        if self.noise is not None:
            lines += ["", "Nothing was compared: each engine ran one picture of noise. Give --golden FILE or pictures."]
            lines += ["", *engine_table(self.noise)]
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
