"""From a PyTorch module to an ONNX graph, by tracing.

PyTorch has two exporters, and the older one, which traces TorchScript, makes the better file here at every opset. It
writes exactly the opset that it is asked for, while the newer one builds opset 18 and leaves that in the file when an
older one is asked for and cannot be converted to; after simplification both have the same nodes (U²-NetP: 365); and
its nodes carry the path of the module that they come from, by which a difference is traced to its stage. Its tables of
operators end at opset 20; what networks for pictures use has changed since only in the types that it admits, and the
checker looks at every file.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError, one_line
from segship.training.networks.sizes import symbolic_sizes

_SIDES = {"batch": ("batch",), "size": ("height", "width")}


def trace(module: nn.Module, card: ModelCard, opset: int) -> onnx.ModelProto:
    """Trace a module that takes and returns what a card says.

    Args:
        module: see :func:`segship.export.wrapper.deployable`.
        card: names input and output, and says which axes are open.
        opset: of the graph.

    Returns:
        The graph, as it was traced, with all its weights in memory.

    Raises:
        ExportError: if PyTorch cannot export the module at this opset.
    """
    open_sizes = symbolic_sizes() if "size" in card.dynamic else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, _without_warnings(), open_sizes:
        path = Path(folder) / "traced.onnx"  # a file, since weights above 2 GB do not fit into a buffer
        try:
            torch.onnx.export(
                module,
                (_example(card),),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[card.input_name],
                output_names=[card.output_name],
                dynamic_axes=_open_axes(card),
            )
        except Exception as error:  # a module's own code runs here, too, and may raise anything
            raise ExportError(f"PyTorch cannot export this network at opset {opset} ({one_line(error)})") from error
        return onnx.load(path)


def _example(card: ModelCard) -> Tensor:
    """Return noise of the card's form; where the size is open, its sides are multiples of the stride."""
    shape = [1 if side is None else side for side in card.input_shape]
    if "size" in card.dynamic:
        first = 1 if card.input_form == "pixels" else 2
        shape[first : first + 2] = card.preprocess.size
    generator = np.random.default_rng(0)
    if card.input_form == "pixels":
        return torch.from_numpy(generator.integers(0, 256, shape).astype(card.preprocess.depth))
    return torch.from_numpy(generator.standard_normal(shape, np.float32))


def _open_axes(card: ModelCard) -> dict[str, dict[int, str]]:
    """Name the open axes of input and output."""
    names = [name for axis in ("batch", "size") if axis in card.dynamic for name in _SIDES[axis]]
    shapes = {card.input_name: card.input_shape, card.output_name: card.output_shape}
    return {
        value: dict(zip((i for i, side in enumerate(shape) if side is None), names, strict=True))
        for value, shape in shapes.items()
        if names
    }


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # sizes may become constants
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter, which is chosen all the same
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # what it leaves, the simplifier folds
        warnings.filterwarnings("ignore", "Exporting to ONNX opset version", UserWarning)  # above 20; see above
        yield
