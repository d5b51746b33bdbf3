"""What a graph shall take and return, and the card of such a file."""

import dataclasses
import importlib.metadata
from dataclasses import dataclass

import segship
from segship.runtime.card import DynamicAxis, Head, InputForm, ModelCard
from segship.runtime.errors import ExportError
from segship.training.networks import dynamic_stride


@dataclass(frozen=True)
class Form:
    """What a graph shall take and return.

    Attributes:
        head: what it returns; None: ``labels`` with a frame, otherwise ``logits``.
        input_form: what it takes; None: ``pixels`` with a frame, otherwise ``float``.
        frame: (height, width) of the frames that the graph resizes itself.
        dynamic: axes to leave open.
        size: (height, width) that pictures are brought to; None: the checkpoint's.
    """

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
        self._check(card)
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

    def _check(self, card: ModelCard) -> None:
        """Refuse what contradicts itself, or how the network was trained."""
        if self.frame is not None and "size" in self.dynamic:
            raise ExportError(
                "a graph that resizes frames has one size of its own; leave out --dynamic size, or --frame"
            )
        if self.frame is not None and card.preprocess.resize != "stretch":
            raise ExportError(
                f"this network was trained with --set resize={card.preprocess.resize}, and a graph that resizes frames "
                "stretches them, which would show it something else: leave out --frame"
            )
        if self.frame is not None and self.input_form == "float":
            raise ExportError("a graph that resizes frames takes pixels; leave out --input float, or --frame")
        if self.frame is None and self.input_form == "pixels" and card.preprocess.interpolation == "linear_float":
            raise ExportError(
                "this network was trained on pictures that are resized without rounding, which --input pixels cannot "
                "hold; add --frame HxW, which resizes in the graph, or leave out --input pixels"
            )
        if card.tile_overlap is not None and self.frame is not None:
            raise ExportError(
                "this network was trained on parts of pictures and is run tile by tile; a graph that resizes whole "
                "frames would show it something else: leave out --frame"
            )
        if card.tile_overlap is not None and "batch" in self.dynamic:
            raise ExportError("this network is run tile by tile, one at a time; leave out --dynamic batch")

    def _stride(self, card: ModelCard, size: tuple[int, int]) -> int:
        if "size" not in self.dynamic:
            return 1
        stride = card.stride if card.network is None else dynamic_stride(card.network)
        good = tuple(-(-side // stride) * stride for side in size)
        if good != size:
            raise ExportError(
                f"with --dynamic size, sides must be multiples of {stride}, and the size is {size[0]}×{size[1]}; "
                f"the next good one: --size {good[0]}x{good[1]}"
            )
        return stride
