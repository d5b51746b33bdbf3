"""From a PyTorch module to an ONNX graph, by tracing.

PyTorch has two exporters, and the older one, which traces TorchScript, makes the better file here at every opset:

- It writes the opset that it is asked for. The newer one builds opset 18 and converts it down, and where that fails (to
  17 with U-Net and BiSeNet V2, to 11 and 13 with U²-Net, too), it leaves 18 in the file.
- After simplification both have the same nodes (U-Net 51, U²-NetP 364, Fast-SCNN 92; at opsets 17, 18, 21
  and 23 alike), both pass the checker, and ONNX Runtime and OpenCV compute the same from them.
- Its nodes carry the path of the module that they come from, by which a difference is traced to its stage.
- It needs a tenth of the time, and no further package.

Its tables of operators end at opset 20. What it writes has changed since only in the types that it admits; the checker
and the comparison with PyTorch look at every file all the same.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError, one_line
from segship.runtime.labels import labels_dtype
from segship.runtime.preprocess import FULL_SCALE
from segship.training.networks import dynamic_stride
from segship.training.networks.sizes import symbolic_sizes


def trace(module: nn.Module, card: ModelCard, opset: int) -> onnx.ModelProto:
    """Trace a module that takes and returns what a card says.

    Args:
        module: see :func:`segship.export.wrapper.deployable`.
        card: names input and output, and says which axes are open. Open axes are called batch, height and width.
        opset: of the graph, 11…23.

    Returns:
        The graph, as it was traced, with all its weights in memory.

    Raises:
        ExportError: if PyTorch cannot export the module at this opset, its size cannot be left open, or it returns
            something of another shape than the card's ``output_shape``.
    """
    sizes: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if "size" in card.dynamic:
        if card.network is not None:
            dynamic_stride(card.network)  # refuses the networks that hold their size
        sizes = symbolic_sizes()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/traced.onnx"  # a file's name, as a string: else PyTorch refuses weights of more than 2 GB
        try:
            with _quiet(), sizes:
                torch.onnx.export(
                    module,
                    (_example(card),),
                    path,
                    dynamo=False,
                    opset_version=opset,
                    input_names=[card.input_name],
                    output_names=[card.output_name],
                    dynamic_axes={
                        card.input_name: _open_axes(card.input_shape, card),
                        card.output_name: _open_axes(card.output_shape, card),
                    },
                )
        except Exception as error:  # a module may be anybody's, and raise anything
            raise ExportError(f"PyTorch cannot export this network at opset {opset} ({one_line(error)})") from error
        model = onnx.load(path)
    _narrow_to_16_bit(model, card)
    _tell_sizes(model.graph.output[0], card)
    return model


def example_shape(card: ModelCard) -> tuple[int, ...]:
    """Return a shape that the graph of a card takes: two pictures where the batch is open, of the card's size."""
    height, width = card.preprocess.size
    sides = iter((2, height, width) if "batch" in card.dynamic else (height, width))
    return tuple(next(sides) if side is None else side for side in card.input_shape)


def _example(card: ModelCard) -> Tensor:
    """Return noise: of zeros, the tracer may fold away what follows."""
    noise = np.random.default_rng(0)
    if card.input_form == "float":
        return torch.from_numpy(noise.standard_normal(example_shape(card), np.float32))
    full = FULL_SCALE[card.preprocess.depth]
    dtype = np.uint8 if card.preprocess.depth == "uint8" else np.int32  # see _narrow_to_16_bit
    return torch.from_numpy(noise.integers(0, full, example_shape(card), dtype, endpoint=True))


def _open_axes(shape: tuple[int | None, ...], card: ModelCard) -> dict[int, str]:
    names = (["batch"] if "batch" in card.dynamic else []) + (["height", "width"] if "size" in card.dynamic else [])
    return dict(zip((axis for axis, side in enumerate(shape) if side is None), names, strict=True))


def _narrow_to_16_bit(model: onnx.ModelProto, card: ModelCard) -> None:
    """Let the graph take 16-bit pixels and return 16-bit labels, in place of the 32-bit ones that it was traced with.

    The tracer knows no 16-bit integers without a sign. A transposition and a cast are all that ever touches them.
    """
    if card.input_form == "pixels" and card.preprocess.depth == "uint16":
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT16
    if card.head == "labels" and labels_dtype(card.num_classes) is np.uint16:
        (cast,) = (node for node in model.graph.node if card.output_name in node.output)
        cast.attribute[0].i = TensorProto.UINT16
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT16


def _tell_sizes(output: onnx.ValueInfoProto, card: ModelCard) -> None:
    """Write down the fixed sizes of the output that the tracer has lost sight of, where another axis is open."""
    dimensions = output.type.tensor_type.shape.dim
    traced = [dimension.dim_value or None for dimension in dimensions]
    expected = card.output_shape
    if len(traced) != len(expected) or any(a not in (b, None) for a, b in zip(traced, expected, strict=True) if b):
        raise ExportError(f"the network's {card.head} have the shape {tuple(traced)}; by its card it is {expected}")
    for dimension, side in zip(dimensions, expected, strict=True):
        if side is not None:
            dimension.dim_value = side


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what tracing says of matters that are meant to be so, and leave standard output to results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), _no_native_stdout():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # sizes become constants
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter, which is chosen all the same
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # what it leaves, the simplifier folds
        warnings.filterwarnings("ignore", "Exporting to ONNX opset version", UserWarning)  # above 20; see above
        yield


@contextlib.contextmanager
def _no_native_stdout() -> Iterator[None]:
    """Close the process's standard output, where PyTorch writes the whole graph, from C++, when it cannot export it."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
