"""From a checkpoint to an ONNX file: trace, simplify, describe, check, and only then put it in its place."""

import dataclasses
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxsim
import torch
from torch import Tensor, nn

import segship
from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.export.parity import Reference, check_parity, parity_pictures
from segship.export.report import ParityReport
from segship.runtime.card import CARD_KEY, Head, ModelCard
from segship.runtime.errors import ExportError, ParityError, SegshipError, one_line
from segship.runtime.files import replacing
from segship.runtime.images import Conversion
from segship.runtime.labels import labels_dtype
from segship.runtime.model_file import read_onnx_header
from segship.training.checkpoint import load_checkpoint


class LogitsHead(nn.Module):
    """A network's main output only; what it returns for training stays behind."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (N, C, H, W) to logits (N, K, H, W)."""
        logits: Tensor = self.network(image)[0]
        return logits


class LabelsHead(LogitsHead):
    """The class of the largest logit, of equal ones the lowest; uint8 up to 256 classes."""

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (N, C, H, W) to class ids (N, H, W), uint8."""
        return super().forward(image).argmax(dim=1).to(torch.uint8)


class BinaryLabelsHead(LogitsHead):
    """1 where a binary network's only logit is above the threshold, otherwise 0."""

    def __init__(self, network: nn.Module, logit_threshold: float) -> None:
        super().__init__(network)
        self.logit_threshold = logit_threshold

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (N, C, H, W) to class ids (N, H, W), uint8."""
        return (super().forward(image).squeeze(1) > self.logit_threshold).to(torch.uint8)


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        path: of the ONNX file.
        card: that it carries.
        opset: read back from it.
        nodes_traced: nodes of the graph before simplification.
        nodes: nodes of the graph in the file.
        bytes: its size.
        simplifier_fault: why the unsimplified graph was kept; empty if it was not.
        parity: the comparison that it passed.
    """

    path: Path
    card: ModelCard
    opset: int
    nodes_traced: int
    nodes: int
    bytes: int
    simplifier_fault: str
    parity: ParityReport


def export(
    checkpoint: Path,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    head: Head = "logits",
    images: Sequence[Path] = (),
    convert: Sequence[Conversion] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Export a checkpoint to an ONNX file that carries its card and computes what PyTorch computes.

    Args:
        checkpoint: of ``seg-train``.
        path: of the file to write.
        opset: version of the operator set that the file will have.
        head: what the graph returns.
        images: real pictures for the comparison with PyTorch; none: pictures of the built-in dataset.
        convert: lossy conversions of these pictures that are allowed.
        tell: called with what is being done.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        CardError: if its network cannot have this head: one that sees tiles returns logits.
        ParityError: if an engine computes something else than PyTorch; no file is left.
        ExportError: if the graph cannot be made as it was asked for; no file is left.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(f"opset {opset} was asked for; {MIN_OPSET}…{MAX_OPSET} can be written")
    network, card = load_checkpoint(checkpoint)
    reference_card = card
    if head == "labels" and labels_dtype(card.num_classes) is not labels_dtype(1):
        raise ExportError(f"{card.num_classes} classes do not fit into 8-bit labels; export with --head logits")
    versions = card.provenance.versions | {"onnx": onnx.__version__, "onnxsim": importlib.metadata.version("onnxsim")}
    card = dataclasses.replace(
        card,
        head=head,
        output_name=head,
        provenance=dataclasses.replace(card.provenance, versions=versions | {"segship": segship.__version__}),
    )
    tell("tracing")
    traced = _trace(network, card, opset)
    tell("simplifying")
    simplified, fault = _simplify(traced)
    model = _described(simplified, card)
    with replacing(path, durable=True) as temporary:
        _write_checked(model, temporary, opset)
        tell("comparing with PyTorch")
        parity = _prove(temporary, Reference(network, reference_card), card, images, convert, path)
        size = temporary.stat().st_size
    return ExportResult(path, card, opset, len(traced.graph.node), len(model.graph.node), size, fault, parity)


def _trace(network: nn.Module, card: ModelCard, opset: int) -> onnx.ModelProto:
    """Trace with the TorchScript exporter: the other one leaves another opset in the file when asked for an old one."""
    module = _with_head(network, card).eval()
    example = torch.zeros(1, card.preprocess.channels, *card.preprocess.size)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # shapes are meant to become constants
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter, which is chosen all the same
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # what it leaves, the simplifier folds
        warnings.filterwarnings(
            "ignore", "Exporting to ONNX opset version", UserWarning
        )  # above 20; checked when written
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]  # this exporter takes a buffer too
                dynamo=False,
                opset_version=opset,
                input_names=[card.input_name],
                output_names=[card.output_name],
            )
        except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(f"PyTorch cannot export this network at opset {opset} ({one_line(error)})") from error
    return onnx.load_model_from_string(buffer.getvalue())


def _with_head(network: nn.Module, card: ModelCard) -> nn.Module:
    if card.head == "logits":
        return LogitsHead(network)
    return BinaryLabelsHead(network, card.logit_threshold) if card.task == "binary" else LabelsHead(network)


def _simplify(traced: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Simplify, or keep what was traced and say why."""
    try:
        simplified, same = onnxsim.simplify(traced)
    except Exception as error:  # noqa: BLE001  # native code: what it raises has no common base
        return traced, f"the simplifier failed ({one_line(error)})"
    if not same:
        return traced, "the simplifier changed what the graph computes"
    return simplified, ""


def _described(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Put the card into the file, and take out what tools and this machine left in it."""
    described = onnx.ModelProto()
    described.CopyFrom(model)
    described.producer_name, described.producer_version = "segship", segship.__version__
    described.doc_string = ""
    described.graph.name = card.network.arch if card.network else "network"
    described.graph.doc_string = ""
    for node in described.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del described.graph.metadata_props[:]
    del described.metadata_props[:]
    entry = described.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.to_json()
    return described


def _write_checked(model: onnx.ModelProto, path: Path, opset: int) -> None:
    """Write the file, then check what was written: whole, valid, and of the opset that was asked for."""
    path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX ({one_line(error)})") from error
    written = read_onnx_header(path).opset
    if written != opset:
        raise ExportError(f"opset {opset} was asked for, but the exporter wrote opset {written}; no file is left")


def _prove(
    temporary: Path,
    reference: Reference,
    card: ModelCard,
    images: Sequence[Path],
    convert: Sequence[Conversion],
    path: Path,
) -> ParityReport:
    try:
        parity = check_parity(temporary, card, reference, parity_pictures(images, card, convert), convert=convert)
    except SegshipError as error:
        raise ExportError(f"{path} was not written: {str(error).replace(str(temporary), path.name)}") from error
    if not parity.passes:
        worst = parity.failed[0]
        raise ParityError(
            f"{path} was not written: {worst.engine.engine} computes something else than PyTorch ({worst.fault})",
            parity.to_markdown(),
        )
    return parity
