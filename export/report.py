"""What came of a comparison with PyTorch: as a table, as plain values, and as the certificate in the card."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from segship.runtime.backends import EngineInfo
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.compare import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Comparison, Expected, Gate, figures
from segship.runtime.segmenter import Result


@dataclass(frozen=True)
class Worst:
    """The picture on which an engine differs most: what was expected of it, what came, and how far that is."""

    expected: Expected
    result: Result
    comparison: Comparison


@dataclass(frozen=True)
class ParityRow:
    """One engine against PyTorch.

    Attributes:
        engine: that ran the file.
        gate: what it must keep to; None where the comparison is only recorded.
        comparison: over all pictures; None where the engine failed on one.
        fault: where and how it left PyTorch's road; empty where it keeps to its gate.
        worst: the picture on which it differs most.
    """

    engine: EngineInfo
    gate: Gate | None
    comparison: Comparison | None
    fault: str = ""
    worst: Worst | None = field(default=None, repr=False)

    @property
    def keeps_to_gate(self) -> bool:
        """Whether the engine computes what it must; true of what is only recorded."""
        return self.gate is None or (self.comparison is not None and self.comparison.passes(self.gate))


@dataclass(frozen=True)
class ParityReport:
    """Each engine that was asked for and is installed against PyTorch.

    Attributes:
        reference: the engine that ran the checkpoint.
        rows: one an engine, device and precision.
        pictures: what was compared, in words.
        refused: why an engine cannot run the file, by its name; it says so itself when it is asked to.
        missing: how to install each engine that is not here, by name.
    """

    reference: EngineInfo
    rows: tuple[ParityRow, ...]
    pictures: str
    refused: dict[str, str]
    missing: dict[str, str]

    @property
    def failed(self) -> list[ParityRow]:
        """The rows that do not keep to their gate."""
        return [row for row in self.rows if not row.keeps_to_gate]

    @property
    def passes(self) -> bool:
        """Whether every engine that runs the file computes what it must, and at least one does."""
        return not self.failed and any(row.gate is not None for row in self.rows)

    def certificate(self, content_sha256: str) -> Certificate:
        """Return what the card of the compared file says of this comparison."""
        rows = [
            Proof(
                backend=row.engine.backend,
                engine=row.engine.engine,
                device=row.engine.device,
                precision=row.engine.precision,
                gate="" if row.gate is None else str(row.gate),
                passes=row.gate is not None and row.keeps_to_gate,
                max_abs=row.comparison.max_abs,
                p99_abs=row.comparison.p99_abs,
                cosine=row.comparison.cosine,
                label_agreement=row.comparison.label_agreement,
                unexplained_flips=row.comparison.unexplained_flips,
                miou=row.comparison.miou,
            )
            for row in self.rows
            if row.comparison is not None
        ]
        reference = f"{self.reference.engine} on {self.reference.device}"
        return Certificate(
            content_sha256, reference, self.pictures, ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, tuple(rows)
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        rows = [
            {
                "engine": dataclasses.asdict(row.engine),
                "gate": None if row.gate is None else str(row.gate),
                "passes": row.keeps_to_gate,
                "fault": row.fault,
            }
            | ({} if row.comparison is None else figures(row.comparison))
            for row in self.rows
        ]
        return {
            "reference": dataclasses.asdict(self.reference),
            "pictures": self.pictures,
            "rows": rows,
            "refused": self.refused,
            "missing": self.missing,
            "passes": self.passes,
        }

    def to_json(self) -> str:
        """Return the report as a JSON document."""
        return json.dumps(self.to_plain(), ensure_ascii=False)

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = [
            f"Reference: {self.reference.engine} on {self.reference.device}. Pictures: {self.pictures}.",
            "",
            "| engine | device | precision | max abs Δ | 99 % abs Δ | cosine | same labels | flips, no near tie "
            "| mIoU of masks | |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(_cells(row))} |" for row in self.rows]
        gates = dict.fromkeys(f"{row.engine.precision}: {row.gate}" for row in self.rows if row.gate is not None)
        lines += ["", *(f"Asked of {gate}. Labels are compared at the pictures' own sizes." for gate in gates)]
        lines += [f"{row.engine.engine} in {row.engine.precision}: {row.fault}" for row in self.rows if row.fault]
        lines += [f"Cannot run this file: {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"Not checked: {name} is not installed ({how})." for name, how in self.missing.items()]
        return "\n".join(lines) + "\n"


def _cells(row: ParityRow) -> list[str]:
    engine, c = row.engine, row.comparison
    name = [engine.engine, engine.device, engine.precision]
    if c is None:
        return [*name, *["n/a"] * 6, "FAILS"]
    verdict = "recorded" if row.gate is None else "same" if row.keeps_to_gate else "DIFFERS"
    return [
        *name,
        _figure(c.max_abs, ".1e"),
        _figure(c.p99_abs, ".1e"),
        _figure(c.cosine, ".7f"),
        f"{100 * c.label_agreement:.4f} %",
        f"{c.unexplained_flips} of {c.differing_pixels}",
        f"{c.miou:.5f}",
        verdict,
    ]


def _figure(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
