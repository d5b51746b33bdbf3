"""What fuzzing starts from: small pictures of every format, small models and their cards, all made by code."""

import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx
import tifffile
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image as PillowImage

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Preprocess

SIDE = 32
_OPSET, _IR = 17, 8


def picture_seeds() -> dict[str, bytes]:
    """Return encoded pictures by a name whose suffix tells the format."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (4, 5, 4), np.uint8), (40, 24), interpolation=cv2.INTER_CUBIC)
    rgb, rgba, grey = smooth[..., :3], smooth, smooth[..., 0]
    deep = smooth.astype(np.uint16) * 257
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    pages = [PillowImage.fromarray(np.roll(rgb, 5 * i, 1)) for i in range(3)]
    return {
        "rgb.jpg": _by_pillow(rgb, "JPEG", exif=exif),
        "progressive.jpg": _by_pillow(rgb, "JPEG", progressive=True, quality=60),
        "cmyk.jpg": _encoded(PillowImage.fromarray(rgb).convert("CMYK"), "JPEG"),
        "grey.jpg": _by_pillow(grey, "JPEG"),
        "rgb.png": _by_pillow(rgb, "PNG", exif=exif),
        "rgba.png": _by_pillow(rgba, "PNG"),
        "palette.png": _encoded(PillowImage.fromarray(rgb).quantize(17), "PNG", transparency=3),
        "grey16.png": _by_pillow(deep[..., 0], "PNG"),
        "rgb16.png": _by_opencv(deep[..., :3], ".png"),
        "rgba16.png": _by_opencv(deep, ".png"),
        "lossy.webp": _by_pillow(rgb, "WEBP"),
        "lossless.webp": _by_pillow(rgba, "WEBP", lossless=True, exif=exif),
        "rgb.bmp": _by_pillow(rgb, "BMP"),
        "palette.bmp": _encoded(PillowImage.fromarray(rgb).quantize(16), "BMP"),
        "strips.tif": _by_tifffile(rgb, rowsperstrip=5),
        "tiles.tif": _by_tifffile(rgb, tile=(16, 16), compression="zlib"),
        "grey16.tif": _by_tifffile(deep[..., 0], byteorder=">", rowsperstrip=7),
        "rgb16.tif": _by_tifffile(deep[..., :3], tile=(16, 32)),
        "planes.tif": _by_tifffile(np.ascontiguousarray(rgb.transpose(2, 0, 1)), planarconfig="separate"),
        "big.tif": _by_tifffile(rgb, bigtiff=True, compression="zlib"),
        "lzw.tif": _by_pillow(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        "jpeg.tif": _by_pillow(rgb, "TIFF", compression="jpeg"),
        "fax.tif": _encoded(PillowImage.fromarray(grey).convert("1"), "TIFF", compression="group4"),
        "pages.tif": _encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
    }


def model_seeds() -> dict[str, bytes]:
    """Return ONNX files with their cards, by name."""
    base = ModelCard(DEMO.names, DEMO.palette, Preprocess((SIDE, SIDE), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)))
    form: dict[str, Callable[[], ModelCard]] = {
        "fixed": lambda: base,
        "open": lambda: _changed(base, dynamic=("batch", "size"), stride=8),
        "labels": lambda: _changed(base, head="labels", output_name="labels"),
        "pixels": lambda: _changed(base, input_form="pixels"),
    }
    return {name: model_bytes(make()) for name, make in form.items()}


def model_bytes(card: ModelCard, card_text: str | None = None) -> bytes:
    """Return a small network of the form that a card describes: convolutions, pooling, a resize and a skip."""
    kinds, node, classes = onnx.TensorProto, helper.make_node, card.num_logits
    pixels = card.input_form == "pixels"
    first = [
        node("Cast", ["image"], ["floats"], to=kinds.FLOAT),
        node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    body = [
        node("Conv", ["planes" if pixels else "image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=2),
        node("BatchNormalization", ["c2", "g", "b1", "b1", "g"], ["n2"]),
        node("Resize", ["n2", "", "scales"], ["u2"], mode="linear"),
        node("Concat", ["u2", "r1"], ["both"], axis=1),
        node("Conv", ["both", "w3"], ["logits"]),
    ]
    last = [
        node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0),
        node("Cast", ["ids"], ["labels"], to=kinds.UINT8),
    ]
    labels = card.head == "labels"
    graph = helper.make_graph(
        [*(first if pixels else []), *body, *(last if labels else [])],
        "seed",
        [helper.make_tensor_value_info("image", kinds.UINT8 if pixels else kinds.FLOAT, card.input_shape)],
        [helper.make_tensor_value_info(card.output_name, kinds.UINT8 if labels else kinds.FLOAT, card.output_shape)],
        [numpy_helper.from_array(value, name) for name, value in _weights(classes).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.to_json() if card_text is None else card_text
    return bytes(model.SerializeToString())


def _weights(classes: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 2, 3, 3), "g": (4,), "w3": (classes, 8, 1, 1)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["g"] = np.abs(weights["g"]) + 1
    return weights | {"scales": np.array([1, 1, 2, 2], np.float32)}


def _changed(card: ModelCard, **changes: Any) -> ModelCard:
    return dataclasses.replace(card, **changes)


def _by_pillow(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:
    return _encoded(PillowImage.fromarray(pixels), kind, **options)


def _encoded(image: PillowImage.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _by_opencv(pixels: NDArray[Any], suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _by_tifffile(
    pixels: NDArray[Any], *, bigtiff: bool = False, byteorder: Literal["<", ">"] = "<", **options: Any
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.tif"
        with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
            writer.write(pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb", metadata=None, **options)
        return path.read_bytes()
