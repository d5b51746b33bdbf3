"""The inference script that people write, to measure against: one picture after the other, step by step.

Pillow opens and resizes, numpy normalises, ONNX Runtime runs with its default settings, the labels are brought to the
picture's size by the nearest pixel, colours are painted by one loop over the classes, and Pillow writes.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from segship.runtime.card import ModelCard


def ordinary_script(model: Path, card: ModelCard, out: Path) -> Callable[[Sequence[Path]], float]:
    """Load ``model``; return what writes masks and overlays of pictures below ``out`` and tells the seconds it took."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    height, width = card.preprocess.size
    mean, std = np.array(card.preprocess.mean), np.array(card.preprocess.std)
    for kind in ("mask", "overlay"):
        (out / kind).mkdir(parents=True, exist_ok=True)

    def segment(paths: Sequence[Path]) -> float:
        start = time.perf_counter()
        for path in paths:
            picture = Image.open(path).convert("RGB")
            pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)) / 255.0
            pixels = (pixels - mean) / std
            batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)
            logits = session.run(None, {card.input_name: batch})[0][0]
            labels = (
                (logits[0] > 0).astype(np.uint8) if len(logits) == 1 else np.argmax(logits, axis=0).astype(np.uint8)
            )
            labels = np.array(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
            color = np.zeros((*labels.shape, 3), np.uint8)
            for class_id, value in enumerate(card.palette):
                color[labels == class_id] = value
            overlay = (np.array(picture) * 0.5 + color * 0.5).astype(np.uint8)
            Image.fromarray(labels).save(out / "mask" / f"{path.stem}.png")
            Image.fromarray(overlay).save(out / "overlay" / f"{path.stem}.png")
        return time.perf_counter() - start

    return segment
