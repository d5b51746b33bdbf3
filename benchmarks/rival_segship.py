"""What segship does, for ``rival_worker.py``, in an environment that holds nothing else."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from segship.runtime.backends import Backend, load_backend
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions
from segship.runtime.images import read_image
from segship.runtime.prepare import whole_picture
from segship.runtime.segmenter import Segmenter
from segship.runtime.segmenter_plan import card_of


def open_contender(settings: dict[str, Any]) -> dict[str, Callable[[int], None]]:
    """Make ready what loads a model, for each task alone, as ``seg-infer`` does for many pictures.

    Args:
        settings: ``model``, ``backend``, ``pictures``, ``out`` and ``kinds``, which are written below it.
    """
    cv2.setNumThreads(1)  # as seg-infer does: pictures run beside each other, each in its thread
    model, backend, out = Path(settings["model"]), settings["backend"], Path(settings["out"])
    card = card_of(model)

    @functools.cache
    def segmenter() -> Segmenter:
        return Segmenter(model, backend=backend, device="cpu", options=EngineOptions(streams=available_cpus()))

    @functools.cache
    def engine(streams: int) -> Backend:
        return load_backend(backend, model, card, "cpu", EngineOptions(streams=streams))

    @functools.cache
    def pool() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(available_cpus())  # it stays, so that no turn starts threads

    @functools.cache
    def batch() -> NDArray[Any]:
        form = card.preprocess
        return whole_picture(card, read_image(settings["pictures"][0], channels=form.channels, depth=form.depth)).batch

    def files(count: int) -> None:
        pictures = settings["pictures"][:count]
        for _ in segmenter().stream(pictures, then=lambda result: result.save(out, settings["kinds"])):
            pass

    def network(count: int) -> None:
        for _ in range(count):
            engine(1).run(batch())

    def at_once(count: int) -> None:
        for _ in pool().map(engine(available_cpus()).run, [batch()] * count):
            pass

    return {"files": files, "network": network, "at_once": at_once}
