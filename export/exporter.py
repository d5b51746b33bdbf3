"""From a network to an ONNX file: trace, simplify, reduce, prove, certify, and only then put it in its place."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from torch import nn

from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.export.budget import Quantised, quantise
from segship.export.calibration import open_calibration
from segship.export.diagnose import first_divergence
from segship.export.diagnose_engine import engine_divergence
from segship.export.form import Form
from segship.export.fp16 import to_fp16
from segship.export.int8 import MIN_OPSET as INT8_MIN_OPSET
from segship.export.int8 import Target
from segship.export.parity import Reference, check_parity
from segship.export.pictures import Picture, parity_pictures
from segship.export.report import ParityReport
from segship.export.simplify import simplify
from segship.export.trace import trace
from segship.export.trial import speed_ratio
from segship.export.wrapper import deployable
from segship.export.write import Draft, drafting
from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import DynamicAxis, Head, InputForm, ModelCard, Precision
from segship.runtime.compare import Gate
from segship.runtime.compare_image import comparison_image
from segship.runtime.errors import BackendError, ExportError, ModelError, ParityError, SegshipError
from segship.runtime.external_data import external_files
from segship.runtime.images import Conversion
from segship.runtime.model_file import content_sha256, write_card
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint

Tell = Callable[[str], None]
Measure = Callable[[Segmenter], float]


@dataclass(frozen=True)
class Quantisation:
    """How a graph is brought into 8 bits.

    Attributes:
        data: a folder of pictures, or KIND:DIR; see :func:`segship.export.calibration.open_calibration`.
        images: number of pictures that ranges are taken from.
        target: the engine that it is meant for.
        budget: points of mIoU that may be lost, or percent of the labels that may change where there are no masks.
    """

    data: str
    images: int = 64
    target: Target = "cpu"
    budget: float = 0.5


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        path: of the ONNX file.
        card: that it carries, with its certificate.
        reference: what it was compared with.
        pictures: that it was compared on.
        convert: lossy conversions of them that were allowed.
        opset: read back from it.
        nodes_traced: nodes of the graph before simplification.
        nodes: nodes of the graph in the file.
        bytes: its size, with the weights that lie beside it.
        warnings: what the user should know: why the unsimplified graph was kept, which engine cannot run the file.
        parity: the comparison that it passed.
        sheet: of a graph in 8 bits: each layer, what it does to the labels, and what it computes in.
        speed_ratio: how many times as fast as in float32 it is in ONNX Runtime here; None for float32.
    """

    path: Path
    card: ModelCard
    reference: Reference
    pictures: Sequence[Picture]
    convert: tuple[Conversion, ...]
    opset: int
    nodes_traced: int
    nodes: int
    bytes: int
    warnings: tuple[str, ...]
    parity: ParityReport
    sheet: Quantised | None = None
    speed_ratio: float | None = None


def export(
    source: Path | Reference,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    head: Head | None = None,
    input_form: InputForm | None = None,
    frame: tuple[int, int] | None = None,
    dynamic: Sequence[DynamicAxis] = (),
    size: tuple[int, int] | None = None,
    precision: Precision = "fp32",
    quantisation: Quantisation | None = None,
    backends: Sequence[str] = (),
    images: Sequence[Path] = (),
    convert: Sequence[Conversion] = (),
    tell: Tell = lambda _: None,
) -> ExportResult:
    """Export a network to an ONNX file that carries its card and is proven to compute what PyTorch computes.

    Args:
        source: a checkpoint of ``seg-train``, or a network with its card.
        path: of the file to write.
        opset: version of the operator set that the file will have.
        head: see :class:`segship.export.form.Form`; so are ``input_form``, ``frame``, ``dynamic`` and ``size``.
        input_form: likewise.
        frame: likewise.
        dynamic: likewise.
        size: likewise.
        precision: of the file.
        quantisation: how it is brought into 8 bits; for ``int8`` only, and needed there.
        backends: engines to compare; none: each that is installed.
        images: real pictures for the comparison; where there are fewer than eight, the built-in dataset's fill up.
        convert: lossy conversions of these pictures that are allowed.
        tell: called with what is being done.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        CardError: if its network cannot have this form: one that sees tiles returns logits.
        ParityError: if an engine computes something else than PyTorch; no file is left.
        ExportError: if the graph cannot be made as it was asked for; no file is left.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(f"opset {opset} was asked for; {MIN_OPSET}…{MAX_OPSET} can be written")
    if precision == "int8" and opset < INT8_MIN_OPSET:
        raise ExportError(
            f"int8 has a scale for each channel, which opset {opset} cannot hold; take {INT8_MIN_OPSET} or above"
        )
    if (precision == "int8") != (quantisation is not None):
        raise ExportError("int8 takes its ranges from real pictures: give them with --calibrate, and only for int8")
    reference = source if isinstance(source, Reference) else Reference(*load_checkpoint(source))
    _refuse_bad_weights(reference.network)
    card = Form(head, input_form, frame, tuple(dynamic), size).card(reference.card)
    calibration = (
        None
        if quantisation is None
        else open_calibration(quantisation.data, card, images=quantisation.images, convert=convert)
    )
    module = deployable(reference.network, card)
    proof = _Proof(path, reference, module, parity_pictures(images, card, convert), tuple(backends), tuple(convert))
    with drafting(path) as draft, _said_of(path, draft.path):
        graph = _float32_graph(module, card, opset, draft, proof, tell)
        _demand(graph.parity, path)  # what is reduced next is measured against this graph
        model, parity, warnings = graph.model, graph.parity, list(graph.warnings)
        sheet, ratio = None, None
        if precision != "fp32":
            card = dataclasses.replace(card, precision=precision)
            if quantisation is None or calibration is None:
                model, gate, measure = to_fp16(graph.model, warnings.append), None, None
            else:
                sheet = quantise(
                    graph.model, card, calibration, target=quantisation.target, budget=quantisation.budget, tell=tell
                )
                gate = Gate(False, 0.0, quantisation.budget, sheet.meter.unit)
                model, measure = sheet.model, sheet.meter.lost_by
            draft.write(model, card, opset)
            tell(f"comparing {precision} with PyTorch")
            parity = proof.compare(draft.path, card, gate, measure)
            _demand(parity, path)
            ratio = speed_ratio(graph.model, model, card)
            if ratio <= 1:
                warnings.append(f"{precision} is not faster than fp32 here: {ratio:.2f} times as fast in ONNX Runtime")
        card = dataclasses.replace(card, certificate=parity.certificate(content_sha256(draft.path)))
        write_card(draft.path, card)
        size_bytes = sum(file.stat().st_size for file in (draft.path, *external_files(draft.path)))
    warnings += [f"{name} cannot run this file, and says so: {why}" for name, why in parity.refused.items()]
    return ExportResult(
        path=path,
        card=card,
        reference=reference,
        pictures=proof.pictures,
        convert=proof.convert,
        opset=opset,
        nodes_traced=graph.nodes_traced,
        nodes=len(model.graph.node),
        bytes=size_bytes,
        warnings=tuple(warnings),
        parity=parity,
        sheet=sheet,
        speed_ratio=ratio,
    )


@dataclass(frozen=True)
class _Float32Graph:
    """A graph that was found to compute what PyTorch computes; simplified, if that changed nothing."""

    model: onnx.ModelProto
    nodes_traced: int
    parity: ParityReport
    warnings: tuple[str, ...]


def _float32_graph(
    module: nn.Module, card: ModelCard, opset: int, draft: Draft, proof: "_Proof", tell: Tell
) -> _Float32Graph:
    tell("tracing")
    traced = trace(module, card, opset)
    nodes = len(traced.graph.node)
    tell("simplifying")
    simplified = simplify(traced)
    fault = simplified.fault
    if not fault:
        try:
            draft.write(simplified.model, card, opset)
        except ExportError as error:
            fault = f"the simplifier broke the graph: {error}"
    if not fault:
        tell("comparing with PyTorch")
        parity = proof.compare(draft.path, card)
        if parity.passes:
            return _Float32Graph(simplified.model, nodes, parity, ())
        fault = f"the simplifier changed what the graph computes ({_faults(parity)})"
    draft.write(traced, card, opset)
    tell("comparing the graph as it was traced with PyTorch")
    return _Float32Graph(traced, nodes, proof.compare(draft.path, card), (f"{fault}; the graph as traced is kept",))


@dataclass(frozen=True)
class _Proof:
    """What a file is compared with, on which pictures and engines; ``path`` is what it will be called."""

    path: Path
    reference: Reference
    module: nn.Module
    pictures: Sequence[Picture]
    backends: tuple[str, ...]
    convert: tuple[Conversion, ...]

    def compare(
        self, model: Path, card: ModelCard, gate: Gate | None = None, measure: Measure | None = None
    ) -> ParityReport:
        """Compare a file with PyTorch; without a gate, with what its precision and form ask for."""

        def locate(engine: Segmenter, batch: NDArray[Any]) -> str:
            def load(cut: Path, cut_card: ModelCard) -> Backend:
                return load_backend(engine.info.backend, cut, cut_card, "cpu")

            try:
                found = first_divergence(self.module, model, engine.card, batch)
                found = found or engine_divergence(model, engine.card, batch, load)
                return "network: no single node differs on one picture alone" if found is None else str(found)
            except SegshipError as error:  # a graph cut in two may be refused where the whole one is not
                return f"network: at which node could not be found out ({error})"

        report = check_parity(
            model,
            card,
            self.reference,
            self.pictures,
            backends=self.backends,
            convert=self.convert,
            gate=gate,
            locate=locate,
            measure=measure,
        )
        refused = {name: why.replace(str(model), self.path.name) for name, why in report.refused.items()}
        return dataclasses.replace(report, refused=refused)


def _refuse_bad_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ExportError(f"the weight {name} holds values that are no numbers (NaN or infinite); train it anew")


def _demand(parity: ParityReport, path: Path) -> None:
    """Refuse a file that does not compute what it must."""
    if parity.passes:
        return
    if not parity.failed and parity.resize_agreement is not None and not parity.resizes_alike:
        raise ParityError(
            f"{path} was not written: resize: a graph resizes frames in float32, and that changes "
            f"{100 * (1 - parity.resize_agreement):.3f} % of the real pictures' labels from what the trainer's rounded "
            "pictures give (at most 0.1 % are asked); train the network with --set interpolation=linear_float, or give "
            "frames of the camera as --images",
            parity.to_markdown(),
            {},
            None,
        )
    if not parity.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in parity.refused.items())
        raise ExportError(f"{path} was not written: no engine here can run it ({reasons})")
    failed = {row.engine.backend: f"{row.engine.engine} {row.fault}" for row in parity.failed}
    others = [row.engine.backend for row in parity.rows if row.verdict == "same" and row.engine.backend not in failed]
    hint = f"; for other engines only: {' '.join(f'--backend {name}' for name in others)}" if others else ""
    raise ParityError(
        f"{path} was not written, since it computes something else than PyTorch: {'; '.join(failed.values())}{hint}",
        parity.to_markdown(),
        failed,
        None if parity.worst is None else comparison_image(parity.worst.expected, parity.worst.result),
    )


def _faults(parity: ParityReport) -> str:
    reasons = [f"{row.engine.engine} {row.fault}" for row in parity.failed]
    return "; ".join(reasons or [f"{name}: {why}" for name, why in parity.refused.items()])


@contextlib.contextmanager
def _said_of(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors about a file that is being made speak of the file that was asked for."""
    try:
        yield
    except (ModelError, BackendError) as error:
        raise ExportError(f"{path} was not written: {str(error).replace(str(temporary), path.name)}") from error
