"""What the runtime's tests share: models of several forms, pictures that Pillow cannot write, and the command."""

import dataclasses
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.model_file import read_card, write_card
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Preprocess

Run = Callable[..., tuple[int, str, str]]
WriteDeep = Callable[..., Path]


@pytest.fixture
def infer(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``seg-infer``; return exit status, stdout and stderr, with what native libraries write there."""
    from segship.runtime.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seg-infer", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def with_card(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Copy an ONNX file and give the copy another card, any text for one, or none."""
    import onnx

    def write(model: Path, card: ModelCard | str | None) -> Path:
        proto = onnx.load(model)
        del proto.metadata_props[:]
        if card is not None:
            entry = proto.metadata_props.add()
            entry.key, entry.value = CARD_KEY, card if isinstance(card, str) else card.to_json()
        path = tmp_path_factory.mktemp("carded") / "model.onnx"
        onnx.save(proto, path)
        return path

    return write


@pytest.fixture(scope="session")
def conv_card() -> ModelCard:
    """The card of a network of one convolution that takes pictures of 24×32 pixels."""
    form = Preprocess((24, 32), mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22))
    return ModelCard(DEMO.names, DEMO.palette, form, stride=8)


@pytest.fixture(scope="session")
def write_conv_model() -> Callable[..., Path]:
    """Write a network of one convolution in the form that a card describes, but for resizing, and with this card."""
    import onnx

    def write(path: Path, card: ModelCard, *, seed: int = 3) -> Path:
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(card.num_logits, card.preprocess.channels, 3, 3)).astype(np.float32)
        bias = rng.normal(size=card.num_logits).astype(np.float32)
        node, kinds = onnx.helper.make_node, onnx.TensorProto
        takes_pixels, returns_labels = card.input_form == "pixels", card.head == "labels"
        pixels = [
            node("Cast", ["image"], ["floats"], to=kinds.FLOAT),
            node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        ]
        convolution = node(
            "Conv", ["planes" if takes_pixels else "image", "weights", "bias"], ["logits"], pads=[1, 1, 1, 1]
        )
        softmax = node("Sigmoid" if card.task == "binary" else "Softmax", ["logits"], ["probabilities"])
        if card.task != "binary":
            softmax.attribute.append(onnx.helper.make_attribute("axis", 1))
        labels = [
            node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0),
            node("Cast", ["ids"], ["labels"], to=kinds.UINT8),
        ]
        heads = {"logits": [], "probabilities": [softmax], "labels": labels}
        takes, returns = (kinds.UINT8 if is_integer else kinds.FLOAT for is_integer in (takes_pixels, returns_labels))
        graph = onnx.helper.make_graph(
            [*(pixels if takes_pixels else []), convolution, *heads[card.head]],
            "conv",
            [onnx.helper.make_tensor_value_info("image", takes, card.input_shape)],
            [onnx.helper.make_tensor_value_info(card.head, returns, card.output_shape)],
            [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        entry = model.metadata_props.add()
        entry.key, entry.value = CARD_KEY, card.to_json()
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def conv_model(write_conv_model: Callable[..., Path], conv_card: ModelCard, tmp_path: Path) -> Path:
    """A network of one convolution, with its card, in a folder of its own."""
    (tmp_path / "conv").mkdir()
    return write_conv_model(tmp_path / "conv/conv.onnx", conv_card)


@pytest.fixture(scope="session")
def nan_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_model`` without certificate, one of whose last weights is no number."""
    import onnx

    proto = onnx.load(tiny_model)
    names = {initializer.name: initializer for initializer in proto.graph.initializer}
    last = [node for node in proto.graph.node if node.op_type == "Conv"][-1]
    weights = names[last.input[1]]
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    path = tmp_path_factory.mktemp("nan") / "nan.onnx"
    onnx.save(proto, path)
    write_card(path, dataclasses.replace(read_card(path), certificate=None))
    return path


@pytest.fixture(scope="session")
def write_deep_png() -> WriteDeep:
    """Write a 16-bit PNG, by hand: (H, W, 1…4) is grey, grey and alpha, RGB, RGBA."""

    def write(path: Path, pixels: NDArray[np.uint16], *, orientation: int = 1) -> Path:
        height, width, channels = pixels.shape
        header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
        chunks = [(b"IHDR", header), (b"eXIf", exif), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        text = b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + text)
        return path

    return write


@pytest.fixture(scope="session")
def write_deep_tiff() -> WriteDeep:
    """Write an uncompressed 16-bit TIFF, by hand, of (H, W, 1 or 3) values in either byte order."""

    def write(path: Path, pixels: NDArray[np.uint16], *, orientation: int = 1, order: str = "<") -> Path:
        height, width, channels = pixels.shape
        data_at = 8 + 2 + 12 * 10 + 4 + 2 * channels
        entries = [
            (256, "H", 1, width),
            (257, "H", 1, height),
            (258, "H", channels, 0),
            (259, "H", 1, 1),
            (262, "H", 1, 2 if channels == 3 else 1),
            (273, "I", 1, data_at),
            (274, "H", 1, orientation),
            (277, "H", 1, channels),
            (278, "H", 1, height),
            (279, "I", 1, 2 * pixels.size),
        ]
        text = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
        for tag, kind, count, value in entries:
            field = struct.pack(order + kind, value).ljust(4, b"\0")
            if tag == 258:  # bits of each sample: beside the table if there are several
                field = struct.pack(f"{order}HH", 16, 0) if channels == 1 else struct.pack(f"{order}I", data_at - 6)
            text += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], count) + field
        text += struct.pack(order + "I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels)
        path.write_bytes(text + pixels.astype(f"{order}u2").tobytes())
        return path

    return write
