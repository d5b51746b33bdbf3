"""A short program that runs a model without segship: numpy, OpenCV, ONNX Runtime, and nothing left out."""

import json
from collections.abc import Iterable
from typing import Final

from segship.runtime.card import ModelCard, Shape
from segship.runtime.labels import labels_dtype
from segship.runtime.preprocess import FULL_SCALE, Preprocess

PICTURE: Final = "photo.png"
"""What the program reads."""

_TILES: Final = '''


def starts_and_weights(length, side):
    """Where tiles start along an axis, and how much their pixels count: 1 in all where they meet."""
    last = max(0, length - side)
    starts = [*range(0, last, {step}), last]
    window = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
    total = np.zeros(max(length, side))
    for start in starts:
        total[start : start + side] += window
    return [(start, (window / total[start : start + side]).astype(np.float32)) for start in starts]'''

_TILED_RUN: Final = """\
padding = [(0, max(0, {height} - picture.shape[0])), (0, max(0, {width} - picture.shape[1])), (0, 0)]
padded = np.pad(picture, padding, mode="edge")
blended = np.zeros(({planes}, *padded.shape[:2]), np.float32)
for top, row_weights in starts_and_weights(padded.shape[0], {height}):
    strip = np.zeros(({planes}, {height}, padded.shape[1]), np.float32)
    for left, column_weights in starts_and_weights(padded.shape[1], {width}):
        tile = padded[top : top + {height}, left : left + {width}]
        {run}
        strip[:, :, left : left + {width}] += output * column_weights
    blended[:, top : top + {height}] += strip * row_weights[:, None]
output = blended[:, : picture.shape[0], : picture.shape[1]]  # (K, H, W)"""


def example(card: ModelCard, model: str) -> str:
    """Return the program's text, which defines ``labels_of(path)``: what a ``Segmenter`` says, to the pixel.

    Args:
        card: of the model.
        model: name of its file.
    """
    form = card.preprocess
    lines = [
        *_decoding(form),
        *(_run(card, "picture") if card.tile_overlap is None else _tiled_run(card)),
        *_labels(card),
    ]
    body = "\n    ".join("\n".join(lines).splitlines())
    imports = ["numpy as np", "onnxruntime"] if "cv2." not in body else ["cv2", "numpy as np", "onnxruntime"]
    session = (
        f'onnxruntime.InferenceSession({json.dumps(model, ensure_ascii=False)}, providers=["CPUExecutionProvider"])'
    )
    tiles = "" if card.tile_overlap is None else _TILES.format(step=f"max(1, round(side * {1 - card.tile_overlap}))")
    return "\n".join(
        [
            *(f"import {module}" for module in imports),
            *(["from PIL import Image, ImageOps"] if form.depth == "uint8" else []),
            "",
            *_constants(card),
            f"session = {session}{tiles}",
            "",
            "",
            "def labels_of(path):",
            f"    {body}",
            "",
            "",
            f'labels = labels_of("{PICTURE}")  # (H, W) {labels_dtype(card.num_classes).__name__}: class ids',
            "",
        ]
    )


def input_axes(card: ModelCard) -> str:
    """Return the shape of what the graph takes, as text in which open sides have letters."""
    return _axes(card.input_shape, "NhwC" if card.input_form == "pixels" else "NChw")


def output_axes(card: ModelCard) -> str:
    """Return the shape of what the graph returns, likewise."""
    return _axes(card.output_shape, _output_letters(card))


def _axes(shape: Shape, letters: str) -> str:
    return f"({', '.join(x if side is None else str(side) for side, x in zip(shape, letters, strict=True))})"


def _output_letters(card: ModelCard) -> str:
    return "Nhw" if card.head == "labels" else "NKhw"


def _decoding(form: Preprocess) -> list[str]:
    if form.depth == "uint16":
        order = "[..., ::-1]  # OpenCV reads blue, green, red" if form.channels == 3 else "[..., None]"
        return [
            f"picture = cv2.imread(path, cv2.IMREAD_UNCHANGED){order}",
            f"assert picture.dtype == np.uint16 and picture.shape[2:] == ({form.channels},)",
        ]
    mode, axis = ("RGB", "") if form.channels == 3 else ("L", "[..., None]")
    read = f'np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("{mode}")){axis}'
    return [f"picture = {read}  # (H, W, {form.channels}) uint8"]


def _constants(card: ModelCard) -> list[str]:
    if card.input_form == "pixels":
        return []
    form = card.preprocess
    gain, bias = form.gain_and_bias(FULL_SCALE[form.depth])
    first = _array("STD", form.std) if form.scale == "image_max" else _array("GAIN", gain)
    return [first, _array("BIAS", bias)]


def _array(name: str, values: Iterable[float]) -> str:
    return f"{name} = np.array([{', '.join(map(str, values))}], np.float32)  # a number a channel"


def _run(card: ModelCard, pixels: str) -> list[str]:
    """Lines that take ``pixels`` of a picture or tile to the ``output`` of the graph."""
    form, lines = card.preprocess, []
    if card.tile_overlap is None and card.frame is None:
        lines += _resizing(form, pixels)
        pixels = "resized"
    if card.input_form == "pixels":
        lines.append(f"image = {pixels}[None]  # {input_axes(card)} {form.depth}")
    else:
        gain = "GAIN"
        if form.scale == "image_max":
            gain = "gain"
            lines.append(f"gain = 1 / (np.float32({pixels}.max() or 1) * STD)")
        in_order = f"{pixels}[..., ::-1]" if form.color_order == "BGR" else pixels
        lines.append(f"image = ({in_order} * {gain} + BIAS).transpose(2, 0, 1)[None]  # {input_axes(card)} float32")
    run = f'session.run(["{card.output_name}"], {{"{card.input_name}": image}})'
    return [*lines, f"output = {run}[0][0]  # {_axes(card.output_shape[1:], _output_letters(card)[1:])}"]


def _resizing(form: Preprocess, pixels: str) -> list[str]:
    """Lines that bring ``pixels`` to ``resized``, of the network's size; in it, the picture lies at ``content``."""
    (height, width), is_exact = form.size, form.interpolation == "linear_exact"
    values, rule = (pixels, "INTER_LINEAR_EXACT") if is_exact else (f"np.float32({pixels})", "INTER_LINEAR")
    axis = "[..., None]" if form.channels == 1 else ""
    scaled = f"cv2.resize({values}, ({{}}), interpolation=cv2.{rule}){axis}"
    if form.resize == "stretch":
        return [f"resized = {scaled.format(f'{width}, {height}')}"]
    dtype = form.depth if is_exact or form.resize == "pad" else "float32"
    filled = f"resized = np.full(({height}, {width}, {form.channels}), {form.fill}, np.{dtype})"
    if form.resize == "pad":
        return [
            f"assert {pixels}.shape[0] <= {height} and {pixels}.shape[1] <= {width}",
            f"content = np.s_[: {pixels}.shape[0], : {pixels}.shape[1]]",
            filled,
            f"resized[content] = {pixels}",
        ]
    return [
        f"scale = min({height} / {pixels}.shape[0], {width} / {pixels}.shape[1])",
        f"rows, columns = (max(1, round(scale * side)) for side in {pixels}.shape[:2])",
        f"top, left = ({height} - rows) // 2, ({width} - columns) // 2",
        "content = np.s_[top : top + rows, left : left + columns]",
        filled,
        f"scaled = {scaled.format('columns, rows')}",
        "resized[content] = scaled",
    ]


def _tiled_run(card: ModelCard) -> list[str]:
    height, width = card.preprocess.size
    run = "\n        ".join(_run(card, "tile"))
    return _TILED_RUN.format(height=height, width=width, planes=card.num_logits, run=run).splitlines()


def _labels(card: ModelCard) -> list[str]:
    """Lines that return the labels that follow from the ``output`` of the graph."""
    is_binary, is_sized = card.task == "binary", card.frame is not None or card.tile_overlap is not None
    lines = [] if is_sized else ["size = (picture.shape[1], picture.shape[0])"]
    if card.preprocess.resize != "stretch":
        lines.append(f"output = output[{'content' if card.head == 'labels' else '(slice(None), *content)'}]")
    if card.head == "labels":
        resized = "cv2.resize(output, size, interpolation=cv2.INTER_NEAREST_EXACT)"
        return [*lines, f"return {'output' if is_sized else resized}"]
    if card.head == "probabilities":
        odds = " - np.log(np.maximum(1 - output, tiny))" if is_binary else ""
        lines += ["tiny = np.finfo(np.float32).tiny", f"output = np.log(np.maximum(output, tiny)){odds}"]
    if not is_sized:
        lines.append("output = [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in output]")
    if is_binary:
        return [*lines, f"return (output[0] > {card.logit_threshold}).astype(np.uint8)"]
    return [*lines, f"return np.argmax(output, axis=0).astype(np.{labels_dtype(card.num_classes).__name__})"]
