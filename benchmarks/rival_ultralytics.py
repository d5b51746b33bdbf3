"""What Ultralytics does, for ``rival_worker.py``, in Ultralytics' own Python: calls of its public interface alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ultralytics import YOLO


def open_contender(settings: dict[str, Any]) -> dict[str, Callable[[int], None]]:
    """Load an ONNX file that Ultralytics exported.

    Args:
        settings: ``model``, ``size`` (height, width), ``pictures``, and ``out``, the folder for overlays.
    """
    out = Path(settings["out"])
    listed = out.with_name("pictures.txt")
    model = YOLO(settings["model"], task="semantic")
    bare: list[onnxruntime.InferenceSession] = []

    def files(count: int) -> None:
        # A list would be decoded as a whole, and be one batch; of a file each picture is opened in its turn.
        listed.write_text("\n".join(settings["pictures"][:count]), encoding="utf-8")
        results = model.predict(
            source=str(listed),
            imgsz=settings["size"],
            device="cpu",
            save=True,
            stream=True,
            verbose=False,
            project=str(out.parent),
            name=out.name,
            exist_ok=True,
        )
        for _ in results:
            pass

    def network(count: int) -> None:
        if not bare:
            bare.append(onnxruntime.InferenceSession(settings["model"], providers=["CPUExecutionProvider"]))
        graph_input = bare[0].get_inputs()[0]
        batch = np.random.default_rng(0).random(graph_input.shape, dtype=np.float32)
        for _ in range(count):
            bare[0].run(None, {graph_input.name: batch})

    return {"files": files, "network": network}
