"""What ``seg-export`` says of a file that it exported, and what it writes besides."""

import json
import tempfile
from pathlib import Path

from segship.export.exporter import ExportResult
from segship.export.golden import write_golden_of
from segship.export.hand_over import hand_over
from segship.runtime.card import Shape
from segship.runtime.compare_image import comparison_image
from segship.runtime.files import write_text
from segship.runtime.render import write_rgb


def write_beside(
    result: ExportResult,
    report: Path | None,
    compare_images: Path | None,
    golden: Path | None,
    hand_over_to: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Write what was asked for besides the model: table, worst picture, golden outputs, hand-over.

    Raises:
        OutputError: if a place cannot be written.
    """
    if report is not None:
        sheet = "" if result.sheet is None else f"\n{result.sheet.to_markdown()}"
        write_text(report, result.parity.to_markdown() + sheet)
    worst = result.parity.worst
    if compare_images is not None and worst is not None:
        write_rgb(compare_images, comparison_image(worst.expected, worst.result))
    if golden is not None:
        write_golden_of(result, golden)
    if hand_over_to is not None:
        with tempfile.TemporaryDirectory() as folder:
            own = golden
            if own is None:
                own = Path(folder) / "golden.npz"
                write_golden_of(result, own)
            hand_over(hand_over_to, result.path, own, overwrite=overwrite)


def to_text(result: ExportResult) -> str:
    """Return the table, and the file in a sentence."""
    card = result.card
    lines = [result.parity.to_markdown()]
    if result.sheet is not None:
        lines.append(result.sheet.summary)
    if result.speed_ratio is not None:
        lines.append(f"{card.precision} runs {result.speed_ratio:.2f} times as fast as fp32 in ONNX Runtime here.")
    lines += [
        f"{result.path}: opset {result.opset}, {result.nodes} nodes ({result.nodes_traced} traced), "
        f"{_size(result.bytes)}, {card.precision}, takes {card.input_form} {_shape(card.input_shape)}, "
        f"returns {card.head} {_shape(card.output_shape)}",
        f"next: seg-infer {result.path} PICTURES",
    ]
    return "\n".join(lines)


def to_json(result: ExportResult) -> str:
    """Return all figures as one JSON document."""
    card = result.card
    return json.dumps(
        {
            "path": str(result.path),
            "opset": result.opset,
            "nodes": result.nodes,
            "nodes_traced": result.nodes_traced,
            "bytes": result.bytes,
            "head": card.head,
            "input": card.input_form,
            "frame": card.frame,
            "dynamic": card.dynamic,
            "precision": card.precision,
            "content_sha256": card.certificate.content_sha256 if card.certificate else None,
            "warnings": result.warnings,
            "speed_ratio": result.speed_ratio,
            "quantised": None if result.sheet is None else result.sheet.to_plain(),
            "parity": result.parity.to_plain(),
        },
        ensure_ascii=False,
    )


def _shape(shape: Shape) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
