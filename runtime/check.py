"""Does this machine compute what was proven? A model's engines against its golden outputs, and against each other."""

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from segship.runtime.backends import ENTRY_POINT_GROUP, EngineInfo, default_backend, load_backend
from segship.runtime.candidate import Candidate, EngineRow
from segship.runtime.card import ModelCard
from segship.runtime.check_report import ModelCheck
from segship.runtime.compare import LOOSE, STRICT, Expected, Gate
from segship.runtime.errors import BackendError, DeviceError, MissingExtraError, ModelError
from segship.runtime.golden import Golden, read_golden
from segship.runtime.images import Conversion, ImageSource
from segship.runtime.model_file import check_fits, content_sha256, read_card
from segship.runtime.preprocess import FULL_SCALE
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

REFERENCE_BACKEND: Final = "torch"
"""Runs checkpoints, not exported files."""

INT8_SLACK: Final = 0.002
"""By so much less may int8 agree here than where it was proven: CPUs round and saturate it in different ways."""

ENGINES_AGREE: Final = Gate(within_tolerance=False, min_agreement=STRICT.min_agreement)
"""Of engines in float32 that return labels: which of their flips are near ties only logits can tell."""


def check_model(
    model: Path,
    pictures: Sequence[Path] = (),
    *,
    golden: Path | None = None,
    backends: Sequence[str] = (),
    device: str = "auto",
    convert: Collection[Conversion] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> ModelCheck:
    """Repeat a model's proof on this machine.

    Each engine goes its own road from a picture's file to its mask: against the golden outputs, and on ``pictures``
    against the first engine. Without either, each runs one picture of noise.

    Args:
        model: the ``.onnx`` file.
        pictures: of the user.
        golden: the file that ``seg-export --golden`` wrote for this model.
        backends: names of the engines; none: all that are installed.
        device: that they run on: ``auto``, ``cpu`` or ``cuda[:N]``.
        convert: lossy conversions of pictures that are allowed.
        tell: called with what is being done.

    Raises:
        ModelError: if the model or the golden file is missing or damaged, or they do not belong together.
        CardError: if the model carries no card.
        BackendError: if no engine runs the model, or there is none of the name.
        ImageError: if one of ``pictures`` cannot be read.
    """
    card = read_card(model)
    check_fits(model, card)
    content = content_sha256(model)
    kept = None if golden is None else _golden_of(golden, model, content, card)
    with contextlib.ExitStack() as stack:
        engines, refused, missing = _engines(model, card, backends, device, convert, tell)
        for engine in engines:
            stack.enter_context(engine)
        if not engines:
            raise BackendError(f"no engine runs {model}: " + "; ".join([*refused.values(), *missing.values()]))
        against_golden = None if kept is None else _against_golden(engines, kept, card, tell)
        among_each_other = _among_each_other(engines, pictures, card, tell) if pictures else None
        noise = [_runs(engine) for engine in engines] if kept is None and not pictures else None
    return ModelCheck(
        model, content, card, kept, len(pictures), against_golden, among_each_other, noise, refused, missing
    )


def gate_here(card: ModelCard, engine: EngineInfo) -> Gate | None:
    """Return what an engine must keep to on this machine; None where nothing says how far int8 may be."""
    if card.precision == "int8":
        return _int8_gate(card, engine)
    return STRICT if card.precision == engine.precision == "fp32" else LOOSE


def _int8_gate(card: ModelCard, engine: EngineInfo) -> Gate | None:
    """What was recorded for the engine or, if it was not there, the least of what was for others, less a little."""
    if card.certificate is None:
        return None
    own = card.certificate.proof(engine.backend, engine.engine, engine.device, engine.precision)
    rows = [own] if own else [row for row in card.certificate.rows if row.passes]
    if not rows:
        return None
    return Gate(within_tolerance=False, min_agreement=min(row.label_agreement for row in rows) - INT8_SLACK)


def _golden_of(path: Path, model: Path, content: str, card: ModelCard) -> Golden:
    golden = read_golden(path)
    if golden.content_sha256 != content:
        if card.certificate is not None and card.certificate.content_sha256 == golden.content_sha256:
            return golden  # of this model before it was changed: that is a fault, and the stage tells what was changed
        raise ModelError(
            f"{path} was made for another model than {model} (it names the content {golden.content_sha256[:12]}…, "
            f"this model's is {content[:12]}…); take the one that was written with it: seg-export --golden"
        )
    return golden


def _engines(
    model: Path,
    card: ModelCard,
    backends: Sequence[str],
    device: str,
    convert: Collection[Conversion],
    tell: Callable[[str], None],
) -> tuple[list[Segmenter], dict[str, str], dict[str, str]]:
    """Load the model into each engine; return those that run it, and why others do not, and are not there."""
    engines: list[Segmenter] = []
    refused: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(backends or installable_backends()):
        tell(f"loading {name}")
        try:
            engine = load_backend(name, model, card, device)
        except (MissingExtraError, DeviceError) as error:
            if backends:
                raise
            missing[name] = str(error)
        except (ModelError, BackendError) as error:
            if backends:
                raise
            refused[name] = str(error)
        else:
            engines.append(Segmenter(model, backend=engine, card=card, convert=convert))
    return engines, refused, missing


def installable_backends() -> list[str]:
    """Return the names of all engines that run exported files, the one that is taken by default first."""
    names = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP).names - {REFERENCE_BACKEND}
    return sorted(names, key=lambda name: (name != default_backend(), name))


def _against_golden(
    engines: Sequence[Segmenter], golden: Golden, card: ModelCard, tell: Callable[[str], None]
) -> list[EngineRow]:
    candidates = [Candidate(engine, _gate(engine)) for engine in engines]
    tell(f"comparing on {len(golden.names)} golden pictures")
    with tempfile.TemporaryDirectory() as folder:
        for example in golden.examples(card):
            picture: ImageSource = example.expected.stages.decoded
            if example.file:
                picture = Path(folder) / "picture"
                picture.write_bytes(example.file)
            for candidate in candidates:
                candidate.take(example.name, picture, example.expected)
    return [candidate.row() for candidate in candidates]


def _among_each_other(
    engines: Sequence[Segmenter], pictures: Sequence[Path], card: ModelCard, tell: Callable[[str], None]
) -> list[EngineRow]:
    reference, *others = engines
    candidates = [Candidate(engine, _gate_between(reference, engine)) for engine in others]
    tell(f"comparing on {len(pictures)} pictures")
    for picture in pictures:
        expected = _as_expected(reference(picture), reference, card)
        for candidate in candidates:
            candidate.take(str(picture), picture, expected)
    return [EngineRow(reference.info, None, None, verdict="reference"), *(candidate.row() for candidate in candidates)]


def _as_expected(result: Result, engine: Segmenter, card: ModelCard) -> Expected:
    """Take what an engine says as what the others must say; of labels alone no near tie can be told."""
    stages = engine.processing.stages(result.image)
    if result.logits is not None:
        return Expected.of(result, stages, card)
    return Expected(stages, None, result.labels, np.zeros(result.labels.shape, np.float32))


def _gate(engine: Segmenter) -> Gate | None:
    return gate_here(engine.card, engine.info)


def _gate_between(reference: Segmenter, other: Segmenter) -> Gate | None:
    gate = _gate(reference) if _gate(other) == STRICT else _gate(other)  # the looser one
    return ENGINES_AGREE if gate == STRICT and other.card.head == "labels" else gate


def _runs(engine: Segmenter) -> EngineRow:
    form = engine.card.preprocess
    size = engine.card.frame or form.size
    full = FULL_SCALE[form.depth]
    noise = np.random.default_rng(0).integers(0, full, (*size, form.channels), form.depth, endpoint=True)
    try:
        engine(noise)
    except BackendError as error:
        return EngineRow(engine.info, None, None, str(error), verdict="FAILS")
    return EngineRow(engine.info, None, None, verdict="runs")
