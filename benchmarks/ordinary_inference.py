"""The inference script that people write, to measure against: one picture after the other, step by step.

Pillow opens and resizes, numpy normalises, ONNX Runtime runs with its default settings, the labels are brought to the
picture's size by the nearest pixel, colours are painted by one loop over the classes, and Pillow writes. What such a
script has written into it (size, mean, colours) it gets as ``settings``. It imports nothing of segship, and is a
contender of ``rival_worker.py``; ``python ordinary_inference.py SETTINGS`` does all pictures once.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def ordinary_script(settings: Mapping[str, Any]) -> Callable[[Sequence[Path]], float]:
    """Load a model; return what writes files of pictures and tells the seconds it took.

    Args:
        settings: ``model``, ``input_name``, ``size`` (height, width), ``mean``, ``std``, ``palette``, ``out`` and
            ``kinds``, of ``mask``, ``color`` and ``overlay``.
    """
    return _script(_session(settings), settings)


def open_contender(settings: dict[str, Any]) -> dict[str, Callable[[int], object]]:
    """Load a model for ``rival_worker.py``; ``pictures`` are part of the settings then."""
    session = _session(settings)
    script = _script(session, settings)
    batch = np.random.default_rng(0).random((1, 3, *settings["size"]), dtype=np.float32)
    pictures = [Path(picture) for picture in settings["pictures"]]

    def network(count: int) -> None:
        for _ in range(count):
            session.run(None, {settings["input_name"]: batch})

    return {"files": lambda count: script(pictures[:count]), "network": network}


def _session(settings: Mapping[str, Any]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(settings["model"], providers=["CPUExecutionProvider"])


def _script(session: onnxruntime.InferenceSession, settings: Mapping[str, Any]) -> Callable[[Sequence[Path]], float]:
    height, width = settings["size"]
    mean, std = np.array(settings["mean"]), np.array(settings["std"])
    out, kinds = Path(settings["out"]), settings["kinds"]
    for kind in kinds:
        (out / kind).mkdir(parents=True, exist_ok=True)

    def segment(paths: Sequence[Path]) -> float:
        start = time.perf_counter()
        for path in paths:
            picture = Image.open(path).convert("RGB")
            pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)) / 255.0
            pixels = (pixels - mean) / std
            batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)
            logits = session.run(None, {settings["input_name"]: batch})[0][0]
            labels = (
                (logits[0] > 0).astype(np.uint8) if len(logits) == 1 else np.argmax(logits, axis=0).astype(np.uint8)
            )
            labels = np.array(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
            if "mask" in kinds:
                Image.fromarray(labels).save(out / "mask" / f"{path.stem}.png")
            if "color" in kinds or "overlay" in kinds:
                color = np.zeros((*labels.shape, 3), np.uint8)
                for class_id, value in enumerate(settings["palette"]):
                    color[labels == class_id] = value
            if "color" in kinds:
                Image.fromarray(color).save(out / "color" / f"{path.stem}.png")
            if "overlay" in kinds:
                overlay = (np.array(picture) * 0.5 + color * 0.5).astype(np.uint8)
                Image.fromarray(overlay).save(out / "overlay" / f"{path.stem}.png")
        return time.perf_counter() - start

    return segment


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    ordinary_script(given)([Path(picture) for picture in given["pictures"]])
