"""Does the exported file compute what PyTorch computes? Asked of the very file that ships, from picture to mask."""

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.compare import Comparison, compare
from segship.runtime.images import Conversion, ImageSource
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.runtime.segmenter import Segmenter

RANDOM_PICTURES: Final = 3
DEMO_PICTURES: Final = 8
ENGINES: Final = {"ort": ("onnxruntime", "cpu"), "opencv": ("cv2", "")}
"""Engines that parity is checked on: their module and the extra that brings it."""


@dataclass(frozen=True)
class ParityRow:
    """One engine against PyTorch.

    Attributes:
        engine: that ran the file.
        comparison: over all pictures.
    """

    engine: EngineInfo
    comparison: Comparison


@dataclass(frozen=True)
class ParityReport:
    """Each of ``ENGINES`` that is installed against PyTorch.

    Attributes:
        reference: the engine that ran the checkpoint.
        rows: one an engine.
        pictures: what was compared, in words.
        missing: how to install each engine that is not here, by name.
    """

    reference: EngineInfo
    rows: tuple[ParityRow, ...]
    pictures: str
    missing: dict[str, str]

    @property
    def passes(self) -> bool:
        """Whether every engine that was compared computes what PyTorch computes."""
        return all(row.comparison.passes for row in self.rows)

    def to_json(self) -> str:
        """Return the report as a JSON document; NaN becomes null."""
        rows = []
        for row in self.rows:
            figures = {k: None if v != v else v for k, v in dataclasses.asdict(row.comparison).items()}
            figures |= {"label_agreement": row.comparison.label_agreement, "passes": row.comparison.passes}
            rows.append({"engine": dataclasses.asdict(row.engine)} | figures)
        return json.dumps(
            {
                "reference": dataclasses.asdict(self.reference),
                "pictures": self.pictures,
                "rows": rows,
                "missing": self.missing,
                "passes": self.passes,
            }
        )

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = [
            f"Reference: {self.reference.engine} on {self.reference.device}. Pictures: {self.pictures}.",
            "",
            "| engine | device | max abs Δ | 99 % abs Δ | beyond tolerance | same labels | flips, no near tie | |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            c = row.comparison
            lines.append(
                f"| {row.engine.engine} | {row.engine.device} | {_figure(c.max_abs)} | {_figure(c.p99_abs)} "
                f"| {c.beyond_tolerance} | {100 * c.label_agreement:.4f} % | {c.unexplained_flips} of "
                f"{c.differing_pixels} | {'same' if c.passes else 'DIFFERS'} |"
            )
        lines += [
            "",
            "Tolerance of a logit: 1e-4 + 1e-3 · |reference|. Labels are compared at the pictures' own sizes.",
        ]
        lines += [f"Not checked: {name} is not installed ({how})." for name, how in self.missing.items()]
        return "\n".join(lines) + "\n"


def check_parity(
    model: Path, checkpoint: Path, images: Sequence[Path], convert: Sequence[Conversion] = ()
) -> ParityReport:
    """Compare an exported file with its checkpoint on each of ``ENGINES`` that is installed, on the CPU.

    Args:
        model: the ONNX file.
        checkpoint: that it was exported from.
        images: real pictures; none: pictures of the built-in dataset. Three seeded random ones come along.
        convert: lossy conversions of the pictures that are allowed.

    Raises:
        ImageError: if a picture cannot be read.
        BackendError: if an engine fails, or returns what is no number.
        ModelError: if an engine cannot load the file.
    """
    installed = [name for name, (module, _) in ENGINES.items() if importlib.util.find_spec(module)]
    missing = {name: f'pip install "segship[{ENGINES[name][1]}]"' for name in ENGINES if name not in installed}
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(Segmenter(checkpoint, backend="torch", device="cpu", convert=convert))
        candidates = [
            stack.enter_context(Segmenter(model, backend=name, device="cpu", convert=convert)) for name in installed
        ]
        comparisons: list[list[Comparison]] = [[] for _ in candidates]
        for picture in _pictures(images, reference.card):
            expected = reference(picture)
            for candidate, found in zip(candidates, comparisons, strict=True):
                found.append(compare(expected, candidate(picture)))
        rows = tuple(
            ParityRow(candidate.info, Comparison.merged(found))
            for candidate, found in zip(candidates, comparisons, strict=True)
        )
        real = len(comparisons[0]) - RANDOM_PICTURES
        words = f"{RANDOM_PICTURES} random, {real} {'given' if images else 'of the built-in dataset'}"
        return ParityReport(reference.info, rows, words, missing)


def _pictures(images: Sequence[Path], card: ModelCard) -> Iterator[ImageSource]:
    yield from _random_pictures(card.preprocess)
    if images:
        yield from images
    else:
        yield from _demo_pictures(card.preprocess)


def _random_pictures(form: Preprocess) -> Iterator[ImageSource]:
    """Yield noise at the network's size: no two neighbours alike, so that nothing is hidden by smoothness."""
    full = FULL_SCALE[form.depth]
    for seed in range(RANDOM_PICTURES):
        noise = np.random.default_rng(seed).integers(0, full, (*form.size, form.channels), form.depth, endpoint=True)
        yield noise


def _demo_pictures(form: Preprocess) -> Iterator[ImageSource]:
    from segship.training.data.demo import open_demo

    variant = "" if form.channels == 3 else f"grey{form.depth.removeprefix('uint')}"
    pictures = open_demo(variant).val
    yield from (pictures[index].image for index in range(DEMO_PICTURES))


def _figure(value: float) -> str:
    return "n/a" if value != value else f"{value:.1e}"
