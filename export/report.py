"""What came of a comparison with PyTorch: as a table, as plain values, and as the certificate in the card."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from segship.runtime.backends import EngineInfo
from segship.runtime.candidate import EngineRow, Worst
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.compare import ABSOLUTE_TOLERANCE, LOOSE, RELATIVE_TOLERANCE
from segship.runtime.engine_table import engine_name, engine_table, plain_row


@dataclass(frozen=True)
class ParityReport:
    """Each engine that was asked for and is installed against PyTorch.

    Attributes:
        reference: the engine that ran the checkpoint.
        rows: one an engine, device and precision.
        pictures: what was compared, in words.
        refused: why an engine cannot run the file, by its name; it says so itself when it is asked to.
        missing: how to install each engine that is not here, by name.
        resize_agreement: share of the real pictures' labels that PyTorch gives alike by the graph's way of resizing
            frames and by the trainer's, 0…1; None where the two are the same.
    """

    reference: EngineInfo
    rows: tuple[EngineRow, ...]
    pictures: str
    refused: dict[str, str]
    missing: dict[str, str]
    resize_agreement: float | None = None

    @property
    def failed(self) -> list[EngineRow]:
        """The rows that do not keep to their gate."""
        return [row for row in self.rows if row.gate is not None and row.is_bad]

    @property
    def passes(self) -> bool:
        """Whether every engine that runs the file computes what it must, and at least one does."""
        return not self.failed and self.resizes_alike and any(row.gate is not None for row in self.rows)

    @property
    def resizes_alike(self) -> bool:
        """Whether frames that are resized by the graph get the labels of those that the trainer resizes."""
        return self.resize_agreement is None or self.resize_agreement >= LOOSE.min_agreement

    @property
    def worst(self) -> Worst | None:
        """The picture on which an engine that must keep to a gate differs most."""
        found = [row.worst for row in self.rows if row.gate is not None and row.worst is not None]
        return max(found, key=lambda worst: worst.badness, default=None)

    def certificate(self, content_sha256: str) -> Certificate:
        """Return what the card of the compared file says of this comparison."""
        rows = [
            Proof(
                backend=row.engine.backend,
                engine=row.engine.engine,
                device=row.engine.device,
                precision=row.engine.precision,
                gate="" if row.gate is None else str(row.gate),
                passes=row.verdict == "same",
                max_abs=row.comparison.max_abs,
                p99_abs=row.comparison.p99_abs,
                cosine=row.comparison.cosine,
                label_agreement=row.comparison.label_agreement,
                unexplained_flips=row.comparison.unexplained_flips,
                miou=row.comparison.miou,
                lost=row.comparison.lost,
            )
            for row in self.rows
            if row.comparison is not None
        ]
        reference = f"{self.reference.engine} on {self.reference.device}"
        pictures = self.pictures
        if self.resize_agreement is not None:
            pictures += (
                f", resized in float32 ({100 * self.resize_agreement:.3f} % of the labels as by the trainer's rule)"
            )
        return Certificate(content_sha256, reference, pictures, ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, tuple(rows))

    def to_plain(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "reference": dataclasses.asdict(self.reference),
            "pictures": self.pictures,
            "rows": [plain_row(row) for row in self.rows],
            "refused": self.refused,
            "missing": self.missing,
            "resize_agreement": self.resize_agreement,
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
            *engine_table(self.rows),
            "",
            "Labels are compared at the pictures' own sizes.",
        ]
        if self.resize_agreement is not None:
            lines += [
                f"By the trainer's way of resizing frames, in place of the graph's in float32, PyTorch gives "
                f"{100 * self.resize_agreement:.4f} % of the real pictures' labels alike; asked is "
                f"≥ {100 * LOOSE.min_agreement:g} %."
            ]
        lines += [f"{engine_name(row.engine)} {row.fault}" for row in self.rows if row.fault]
        lines += [f"Cannot run this file: {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"Not checked: {name} is not installed ({how})." for name, how in self.missing.items()]
        return "\n".join(lines) + "\n"
