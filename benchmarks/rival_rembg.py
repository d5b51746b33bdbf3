"""What rembg does, for ``rival_worker.py``, in rembg's own Python: U²-NetP on one picture after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rembg import new_session, remove


def open_contender(settings: dict[str, Any]) -> dict[str, Callable[[int], None]]:
    """Load U²-NetP from where rembg looks for it.

    Args:
        settings: ``pictures``, and ``out``, the folder for masks.
    """
    session = new_session("u2netp", providers=["CPUExecutionProvider"])
    engine = session.inner_session
    graph_input = engine.get_inputs()[0]
    batch = np.random.default_rng(0).random(graph_input.shape, dtype=np.float32)
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)

    def files(count: int) -> None:
        for path in map(Path, settings["pictures"][:count]):
            remove(Image.open(path), session=session, only_mask=True).save(out / f"{path.stem}.png")

    def network(count: int) -> None:
        for _ in range(count):
            engine.run(None, {graph_input.name: batch})

    return {"files": files, "network": network}
