"""From a network to an ONNX file: trace, simplify, reduce, prove, certify, and only then put it in its place."""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

import segship
from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.export.diagnose import first_divergence
from segship.export.diagnose_engine import engine_divergence
from segship.export.parity import Reference, check_parity, parity_pictures
from segship.export.report import ParityReport
from segship.export.simplify import simplify
from segship.export.trace import trace
from segship.export.wrapper import deployable
from segship.export.write import drafting
from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import DynamicAxis, Head, InputForm, ModelCard, Precision
from segship.runtime.errors import BackendError, ExportError, ModelError, ParityError
from segship.runtime.external_data import external_files
from segship.runtime.images import Conversion, ImageSource
from segship.runtime.model_file import content_sha256, write_card
from segship.training.checkpoint import load_checkpoint
from segship.training.networks import dynamic_stride

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        path: of the ONNX file.
        card: that it carries, with its certificate.
        reference: what it was compared with.
        pictures: that it was compared on.
        opset: read back from it.
        nodes_traced: nodes of the graph before simplification.
        nodes: nodes of the graph in the file.
        bytes: its size, with the weights that lie beside it.
        warnings: what the user should know: why the unsimplified graph was kept, which engine cannot run the file.
        parity: the comparison that it passed.
    """

    path: Path
    card: ModelCard
    reference: Reference
    pictures: Sequence[ImageSource]
    opset: int
    nodes_traced: int
    nodes: int
    bytes: int
    warnings: tuple[str, ...]
    parity: ParityReport


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
        head: what the graph returns; None: ``labels`` with a frame, otherwise ``logits``.
        input_form: what it takes; None: ``pixels`` with a frame, otherwise ``float``.
        frame: (height, width) of the frames that the graph resizes itself.
        dynamic: axes to leave open.
        size: (height, width) that pictures are brought to; None: the checkpoint's.
        precision: of the file.
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
    reference = source if isinstance(source, Reference) else Reference(*load_checkpoint(source))
    _refuse_bad_weights(reference.network)
    form = Form(head, input_form, frame, tuple(dynamic), size)
    card = form.card(reference.card)
    module = deployable(reference.network, card)
    tell("tracing")
    traced = trace(module, card, opset)
    tell("simplifying")
    simplified = simplify(traced)
    warnings = [f"{simplified.fault}; the graph as traced is kept"] if simplified.fault else []
    proof = _Proof(reference, module, parity_pictures(images, card, convert), tuple(backends), tuple(convert))
    with drafting(path) as draft, _said_of(path, draft.path):
        tell("comparing with PyTorch")
        model = simplified.model
        draft.write(model, card, opset)
        parity = proof.compare(draft.path, card)
        if not parity.passes and not simplified.fault:
            tell("comparing the graph as it was traced")
            draft.write(traced, card, opset)
            unsimplified = proof.compare(draft.path, card)
            if unsimplified.passes:
                warnings.append(
                    f"the simplifier changed what the graph computes ({_faults(parity)}); the graph as traced is kept"
                )
                model, parity = traced, unsimplified
        _demand(parity, path)
        card = dataclasses.replace(card, certificate=parity.certificate(content_sha256(draft.path)))
        write_card(draft.path, card)
        size_bytes = sum(file.stat().st_size for file in (draft.path, *external_files(draft.path)))
    warnings += [
        f"{name} cannot run this file, and says so when it is asked to: {why}" for name, why in parity.refused.items()
    ]
    return ExportResult(
        path,
        card,
        reference,
        proof.pictures,
        opset,
        len(traced.graph.node),
        len(model.graph.node),
        size_bytes,
        tuple(warnings),
        parity,
    )


@dataclass(frozen=True)
class Form:
    """What a graph shall take and return; see :func:`export`."""

    head: Head | None = None
    input_form: InputForm | None = None
    frame: tuple[int, int] | None = None
    dynamic: tuple[DynamicAxis, ...] = ()
    size: tuple[int, int] | None = None

    def card(self, card: ModelCard) -> ModelCard:
        """Return the card of a file of this form.

        Raises:
            CardError: if the network cannot have it.
            ExportError: if its parts contradict each other.
        """
        if self.frame is not None and self.input_form == "float":
            raise ExportError("a graph that resizes frames takes pixels; leave out --input float, or --frame")
        head = self.head or ("labels" if self.frame else "logits")
        form = dataclasses.replace(
            card.preprocess,
            size=self.size or card.preprocess.size,
            interpolation="linear_float" if self.frame else card.preprocess.interpolation,
        )
        versions = {name: importlib.metadata.version(name) for name in ("onnx", "onnxsim")}
        versions = card.provenance.versions | versions | {"segship": segship.__version__}
        return dataclasses.replace(
            card,
            preprocess=form,
            head=head,
            output_name=head,
            input_form=self.input_form or ("pixels" if self.frame else "float"),
            frame=self.frame,
            dynamic=self.dynamic,
            stride=self._stride(card, form.size),
            provenance=dataclasses.replace(card.provenance, versions=versions),
        )

    def _stride(self, card: ModelCard, size: tuple[int, int]) -> int:
        if "size" not in self.dynamic:
            return 1
        if card.network is None:
            raise ExportError("which sizes this network takes is not known; leave out --dynamic size")
        stride = dynamic_stride(card.network)
        good = tuple(-(-side // stride) * stride for side in size)
        if good != size:
            raise ExportError(
                f"with --dynamic size, sides must be multiples of {stride}, and the size is {size[0]}×{size[1]}; "
                f"the next good one: --size {good[0]}x{good[1]}"
            )
        return stride


@dataclass(frozen=True)
class _Proof:
    """What a file is compared with, on which pictures and engines."""

    reference: Reference
    module: nn.Module
    pictures: Sequence[ImageSource]
    backends: tuple[str, ...]
    convert: tuple[Conversion, ...]

    def compare(self, model: Path, card: ModelCard) -> ParityReport:
        """Compare a file with PyTorch."""

        def locate(engine: Backend, own_card: ModelCard, batch: NDArray[Any]) -> str:
            found = first_divergence(self.module, model, own_card, batch)
            if found is None:
                found = engine_divergence(
                    model,
                    own_card,
                    batch,
                    lambda cut, cut_card: load_backend(engine.info.backend, cut, cut_card, "cpu"),
                )
            return "" if found is None else str(found)

        return check_parity(
            model, card, self.reference, self.pictures, backends=self.backends, convert=self.convert, locate=locate
        )


def _refuse_bad_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ExportError(f"the weight {name} holds values that are no numbers (NaN or infinite); train it anew")


def _demand(parity: ParityReport, path: Path) -> None:
    """Refuse a file that does not compute what it must."""
    if parity.passes:
        return
    if not parity.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in parity.refused.items())
        raise ExportError(f"{path} was not written: no engine here can run it ({reasons})")
    raise ParityError(
        f"{path} was not written, since it computes something else than PyTorch: {_faults(parity)}",
        parity.to_markdown(),
    )


def _faults(parity: ParityReport) -> str:
    return "; ".join(f"{row.engine.engine} {row.fault}" for row in parity.failed)


@contextlib.contextmanager
def _said_of(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors about a file that is being made speak of the file that was asked for."""
    try:
        yield
    except (ModelError, BackendError) as error:
        raise ExportError(f"{path} was not written: {str(error).replace(str(temporary), path.name)}") from error
