"""What a network consists of: its layers, the shapes that leave them, their parameters and their arithmetic."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Layer:
    """A module without modules of its own, at one of its calls.

    Attributes:
        name: its path in the network, such as ``down1.0``.
        kind: its class, such as ``Conv2d``.
        shape: of its output, (1, C, H, W).
        parameters: its own, counted at its first call.
        gflop: of this call; see ``Summary``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    gflop: float


@dataclass(frozen=True)
class Summary:
    """A network's layers for one picture, in the order in which evaluation calls them.

    Arithmetic is counted as is usual: two operations, a product and a sum, for each weight that meets a pixel in a
    convolution, a transposed convolution or a linear layer. Not counted are biases, normalisation, activations, pooling
    and resizing, which are a few per cent.

    Attributes:
        input_shape: (1, C, H, W).
        layers: those that were called.
        parameters: of the whole network, what only training calls included.
        trainable: parameters among them that have a gradient.
    """

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    trainable: int

    @property
    def evaluated(self) -> int:
        """Parameters of the layers that were called: those that an exported file has."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def gflop(self) -> float:
        """Arithmetic for the picture, in 10⁹ operations."""
        return sum(layer.gflop for layer in self.layers)

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain values, for JSON."""
        layers = [dataclasses.asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers]
        return {
            "input_shape": list(self.input_shape),
            "parameters": self.parameters,
            "trainable": self.trainable,
            "evaluated": self.evaluated,
            "gflop": self.gflop,
            "layers": layers,
        }

    def to_text(self) -> str:
        """Return a table of the layers, a line each, and the totals below."""
        header = ("layer", "kind", "output", "parameters", "GFLOP")
        rows = [
            (layer.name, layer.kind, _times(layer.shape), f"{layer.parameters:,}", f"{layer.gflop:.3f}")
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

        def line(cells: tuple[str, ...]) -> str:
            aligned = [
                cell.ljust(width) if index < 3 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(aligned).rstrip()

        rule = "  ".join("-" * width for width in widths)
        totals = (
            f"input {_times(self.input_shape)}: {self.parameters:,} parameters, {self.trainable:,} of them trainable, "
            f"{self.evaluated:,} used in evaluation, {self.gflop:.2f} GFLOP a picture"
        )
        return "\n".join([line(header), rule, *map(line, rows), rule, totals])


def summarise(network: nn.Module, in_channels: int, size: tuple[int, int]) -> Summary:
    """Summarise a network in evaluation mode; it is left as it was.

    It runs on torch's "meta" device, where tensors have shapes but no values, so that this takes neither time nor
    memory, whatever device the network is on.

    Args:
        network: maps pictures (N, C, H, W) to a tuple of logits.
        in_channels: C.
        size: (H, W).
    """
    layers: list[Layer] = []
    counted: set[nn.Module] = set()
    handles: list[RemovableHandle] = []
    for name, module in network.named_modules():
        if any(module.children()):
            continue

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            parameters = 0 if module in counted else sum(parameter.numel() for parameter in module.parameters())
            counted.add(module)
            flop = 2 * _multiply_adds(module, inputs[0], output)
            layers.append(Layer(name, type(module).__name__, tuple(output.shape), parameters, flop / 1e9))

        handles.append(module.register_forward_hook(record))
    shape = (1, in_channels, *size)
    weights = {name: tensor.detach().to("meta") for name, tensor in network.state_dict().items()}
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            functional_call(network, weights, (torch.empty(shape, device="meta"),), tie_weights=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    own = list(network.parameters())
    trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
    return Summary(shape, tuple(layers), sum(parameter.numel() for parameter in own), trainable)


def _multiply_adds(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.ConvTranspose2d):  # each input pixel meets the kernel of every output channel
        return x.numel() * module.weight[0].numel()
    if isinstance(module, nn.Conv2d | nn.Linear):  # each output value is one product of the weights with the input
        return output.numel() * module.weight[0].numel()
    return 0


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
