"""From float32 to 8 bits within a budget: what harms most goes back into float32.

Not by NNCF 3.4 and its ``quantize_with_accuracy_control``, which were measured side by side, on the same pictures.
NNCF marks values before they are pooled and joined, where ONNX Runtime needs the marks after, and leaves transposed
convolutions as they are; so there its graphs are slower than float32: U²-NetP 0.7 times as fast and U-Net 0.8, where
these are 2.4 times. And to keep 0.2 % of a U-Net's labels it put 8 layers back, after 188 s of computing; 2 are
enough, found in 16 s.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx

from segship.export.calibration import Calibration
from segship.export.damage import PROBES, Meter
from segship.export.int8 import Int8Graphs, Target
from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError


@dataclass(frozen=True)
class SheetRow:
    """What became of a layer.

    Attributes:
        layer: name of its node.
        operator: of the node.
        error: share of the labels that differ if this layer alone is in 8 bits, in percent; None if not measured.
        decision: what it computes in.
    """

    layer: str
    operator: str
    error: float | None
    decision: Literal["int8", "float32"]


@dataclass(frozen=True)
class Quantised:
    """A graph in 8 bits, and how it was come to.

    Attributes:
        model: the graph.
        rows: the sheet: a row a layer, in the graph's order.
        unit: of damage: ``points of mIoU`` or ``% of the labels``.
        reference_miou: of the graph in float32, in points; None without labels.
        damage_before: of all layers in 8 bits.
        damage: of the graph.
        budget: that damage was to stay within; None if there was none.
        pictures: that damage was measured on.
        meter: that measured it.
    """

    model: onnx.ModelProto
    rows: tuple[SheetRow, ...]
    unit: str
    reference_miou: float | None
    damage_before: float
    damage: float
    budget: float | None
    pictures: int
    meter: Meter = field(repr=False)

    @property
    def in_float32(self) -> int:
        """Number of layers that went back into float32."""
        return sum(row.decision == "float32" for row in self.rows)

    @property
    def summary(self) -> str:
        """What was come to, in a sentence."""
        budget = "no budget" if self.budget is None else f"budget {self.budget:g}"
        return (
            f"{len(self.rows) - self.in_float32} of {len(self.rows)} layers in 8 bits. Damage: {self.damage:.3f} "
            f"{self.unit} on {self.pictures} pictures ({budget}; all of them in 8 bits: {self.damage_before:.3f})."
        )

    def to_plain(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["model"], values["meter"]
        return values | {"rows": [dataclasses.asdict(row) for row in self.rows]}

    def to_csv(self) -> str:
        """Return the sheet as comma-separated values: layer, operator, error in percent, decision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("layer", "operator", "error_percent", "decision"))
        writer.writerows(
            (row.layer, row.operator, "" if row.error is None else f"{row.error:.4f}", row.decision)
            for row in self.rows
        )
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return what was come to and the sheet, worst layers first, as a Markdown table."""
        lines = [
            self.summary,
            "",
            f"| layer | operator | labels that differ with it alone in 8 bits, {PROBES} pictures | decision |",
            "|---|---|---|---|",
        ]
        for row in sorted(self.rows, key=lambda row: -(row.error or 0.0)):
            error = "not measured" if row.error is None else f"{row.error:.4f} %"
            lines.append(f"| {row.layer} | {row.operator} | {error} | {row.decision} |")
        return "\n".join(lines) + "\n"


def quantise(
    model: onnx.ModelProto,
    card: ModelCard,
    pictures: Calibration,
    *,
    target: Target = "cpu",
    budget: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> Quantised:
    """Bring a graph into 8 bits, and as many layers back into float32 as a budget asks for.

    Layers are ranked by what each alone does to the labels, and the fewest of the worst go back that bring the damage
    of the whole within the budget: their number is searched by doubling, then by halving the interval. The graph that
    is returned was itself measured.

    Args:
        model: float32, of opset 13 or above; left as it is.
        card: of the model.
        pictures: to take ranges from and to measure damage on.
        target: the engine that it is for. Damage is measured in ONNX Runtime in any case.
        budget: points of mIoU that may be lost or, of pictures without labels, percent of the labels that may differ;
            None: all layers go into 8 bits, and none is measured for itself.
        tell: called with what is being done.
        advance: called after each picture that was run.

    Raises:
        ExportError: if no choice of layers keeps within the budget; it says what the best came to.
        MissingExtraError: if ONNX Runtime is not installed.
        ImageError: if a picture cannot be read.
    """
    tell(f"taking ranges from {len(pictures.ranges)} pictures")
    graphs = Int8Graphs(model, card, pictures.ranges, target, advance)
    tell(f"measuring float32 on {len(pictures.measured)} pictures")
    meter = Meter(model, card, pictures, advance)
    tell("measuring all layers in 8 bits")
    before = damage = meter.damage(built := graphs.build(graphs.layers))
    errors: dict[str, float] = {}
    back: Sequence[str] = ()
    if budget is not None:
        tell(f"measuring each of {len(graphs.layers)} layers")
        errors = {layer: meter.probe(graphs.build([layer])) for layer in graphs.layers}
    if budget is not None and before > budget:
        tell(f"the damage is {before:.3f} {meter.unit}; putting layers back into float32")
        ranking = sorted(graphs.layers, key=lambda layer: -errors[layer])
        built, damage, back = _within(budget, ranking, before, graphs, meter)
    rows = tuple(
        SheetRow(layer, operator, errors.get(layer), "float32" if layer in back else "int8")
        for layer, operator in graphs.layers.items()
    )
    return Quantised(
        built, rows, meter.unit, meter.reference_miou, before, damage, budget, len(pictures.measured), meter
    )


def _within(
    budget: float, ranking: Sequence[str], all_damage: float, graphs: Int8Graphs, meter: Meter
) -> tuple[onnx.ModelProto, float, Sequence[str]]:
    """Return the graph, its damage and its layers in float32, for the fewest of ``ranking`` that keep the budget."""

    def attempt(count: int) -> tuple[onnx.ModelProto, float, Sequence[str]]:
        candidate = graphs.build(ranking[count:])
        return candidate, meter.damage(candidate), ranking[:count]

    too_few, count, most = 0, 1, len(ranking) - 1  # one layer stays in 8 bits, or it would be float32
    best = all_damage
    while count <= most:
        found = attempt(count)
        best = min(best, found[1])
        if found[1] <= budget:
            break
        too_few, count = count, max(count + 1, min(2 * count, most))
    else:
        raise ExportError(
            f"no choice of layers keeps within the budget of {budget:g} {meter.unit}: the best came to {best:.3f}; "
            "raise --budget, name other pictures with --calibrate, or export with --precision fp16"
        )
    while count - too_few > 1:
        middle = (too_few + count) // 2
        candidate = attempt(middle)
        if candidate[1] <= budget:
            count, found = middle, candidate
        else:
            too_few = middle
    return found
