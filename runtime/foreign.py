"""ONNX files that segship did not make: a card from what their graph and their metadata say, and from what is given."""

import dataclasses
from pathlib import Path

from segship.runtime.card import ModelCard, Provenance
from segship.runtime.card_values import CardValues, MissingValuesError, card_from_values
from segship.runtime.errors import CardError
from segship.runtime.graph_endings import endings
from segship.runtime.model_file import CHECKPOINT_SUFFIX, check_fits, read_card, read_onnx_header
from segship.runtime.ultralytics import is_of_ultralytics, ultralytics_values


def foreign_card(model: Path) -> ModelCard:
    """Return the card of a model that carries none, if its graph and metadata say all of it.

    Raises:
        CardError: if they do not, naming all that is missing and the ways to say it; or if segship cannot run it.
        ModelError: if the file is missing or damaged.
    """
    if model.suffix == CHECKPOINT_SUFFIX:
        return read_card(model)  # which says what such a file lacks
    try:
        return card_for(model, CardValues())
    except MissingValuesError as missing:
        raise CardError(
            f"{model} carries no segship card, and its graph does not tell {', '.join(missing.options)}; give them "
            f"once to seg-check card {model} … -o FILE.onnx, which keeps them, or a whole card as JSON: --card FILE"
        ) from None


def card_for(model: Path, values: CardValues) -> ModelCard:
    """Make a card of what is said of a model and, where that is nothing, of what its graph and its metadata say.

    Raises:
        MissingValuesError: naming all values that are missing.
        CardError: if one is wrong, or segship cannot run the model.
        ModelError: if the file is missing or damaged, or the values are not this model's.
    """
    header = read_onnx_header(model)
    of_ultralytics = is_of_ultralytics(header.metadata)
    try:
        told = ultralytics_values(header.metadata) if of_ultralytics else CardValues()
        card = card_from_values(values.over(told), header, endings(model))
    except MissingValuesError:
        raise
    except CardError as error:
        raise CardError(f"{model}: {error}") from None
    if of_ultralytics and (version := header.metadata.get("version")):
        card = dataclasses.replace(card, provenance=Provenance(versions={"ultralytics": version[:40]}))
    check_fits(model, card)
    return card
