"""What a segmenter starts with: the card of its model, how pictures are cut into tiles, who does the work."""

from pathlib import Path
from typing import Final

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError, ModelError
from segship.runtime.foreign import foreign_card
from segship.runtime.model_file import CHECKPOINT_SUFFIX, has_card, read_card
from segship.runtime.pipeline import Crew
from segship.runtime.prepare import Tiling

DEFAULT_OVERLAP: Final = 0.25
"""Of tiles, where neither the card nor the user says."""

GPU_BATCH: Final = 8
"""Pictures in a run on a GPU, which more of them fill; TensorRT builds its engines for up to so many."""


def card_of(model: Path) -> ModelCard:
    """Return the card that a model carries or, if it carries none, what its graph says of itself.

    Raises:
        ModelError: if the file is missing or damaged.
        CardError: if that is not all that must be known.
    """
    return read_card(model) if model.suffix == CHECKPOINT_SUFFIX or has_card(model) else foreign_card(model)


def only_card(model: Path, card: ModelCard) -> ModelCard:
    """Return a card that is given for a model, if the model carries none.

    Raises:
        CardError: if it carries its own.
        ModelError: if the file is missing or damaged.
    """
    if has_card(model):
        raise CardError(f"{model} carries its own card, which says how it was trained; leave out --card")
    return card


def plan_tiles(
    card: ModelCard, size: tuple[int, int] | None, tile: tuple[int, int] | None, overlap: float | None, batch: int
) -> tuple[ModelCard, Tiling | None]:
    """Return how pictures are cut into tiles, if they are, and the card that a tile is brought to size by.

    Args:
        card: of the model, at the size that whole pictures are brought to.
        size: that was asked for.
        tile: likewise, (height, width).
        overlap: likewise.
        batch: tiles that the graph gets at once.

    Raises:
        CardError: if what was asked for does not fit together, or not the model.
    """
    if tile is None and card.tile_overlap is None:
        if overlap is not None:
            raise CardError(
                "an overlap was given, but this model sees whole pictures; give the tiles' size too (--tile)"
            )
        return card, None
    if tile is not None and (card.head == "labels" or card.frame is not None):
        raise CardError("tiles can only be blended by their logits, and not of frames; export with --head logits")
    if tile is not None and "size" in card.dynamic and size is None:
        card = card.at_size(tile)
    share = card.tile_overlap if overlap is None else overlap
    return card, Tiling(tile or card.preprocess.size, DEFAULT_OVERLAP if share is None else share, batch)


def plan_batch(model: Path, card: ModelCard, engine: EngineInfo, batch: int | None) -> int:
    """Return how many pictures the graph gets at once; ``batch`` is what was asked for.

    Raises:
        ModelError: if it takes one at a time, and more were asked for.
    """
    is_open = "batch" in card.dynamic
    if batch is not None and batch > 1 and not is_open:
        raise ModelError(f"{model} takes one picture at a time; export it with --dynamic batch")
    return batch or (GPU_BATCH if is_open and engine.device.startswith("cuda") else 1)


def plan_crew(engine: EngineInfo, batch: int) -> Crew:
    """Plan a stream: where each run of the network has one thread, all workers do all; else some wait for it only."""
    cpus, is_on_cpu = available_cpus(), engine.device == "cpu"
    if is_on_cpu and engine.streams > 1:
        return Crew(max(cpus, engine.streams), engine.streams, batch, 0)
    beside = max(2, cpus // 2 if is_on_cpu else cpus)
    return Crew(engine.streams + beside, engine.streams, batch, engine.streams)
