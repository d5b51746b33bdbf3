"""Which of a model's classes a user means: by name or id, and which of them are the foreground."""

from collections.abc import Collection, Iterable
from typing import Final

from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError, OutputError
from segship.runtime.palettes import VOID_NAMES

BACKGROUND_NAMES: Final = VOID_NAMES | {"background", "_background_", "bg"}
"""Names, in lower case, of classes that are no object."""

_MAX_LISTED: Final = 40


def class_id(name: str, card: ModelCard) -> int:
    """Return the id of a class, given by its name, in upper or lower case, or by its id.

    A name comes before an id: where a class is called "7", that is the one which "7" means. Where two names differ in
    their case only, the one that is written so.

    Raises:
        CardError: if there is none, naming those that there are.
    """
    if name in card.class_names:
        return card.class_names.index(name)
    folded = [known.casefold() for known in card.class_names]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    if name.isascii() and name.isdigit() and len(name) <= 5 and int(name) < card.num_classes:
        return int(name)
    known = ", ".join(card.class_names[:_MAX_LISTED]) + (", …" if card.num_classes > _MAX_LISTED else "")
    raise CardError(f"this model has no class {name!r}; it has {known} (or ids 0…{card.num_classes - 1})")


def class_ids(names: str | Iterable[str], card: ModelCard) -> frozenset[int]:
    """Return the ids of the classes named, such as ``car,person`` or ``["car", "7"]``; none of them: no ids.

    A whole text that is a class's name is that class, so that a name may hold a comma where it stands alone.

    Raises:
        CardError: if one is not there, naming those that there are.
    """
    if isinstance(names, str):
        whole = names.strip()
        known = {name.casefold() for name in card.class_names}
        names = [whole] if whole.casefold() in known else [name.strip() for name in names.split(",")]
    return frozenset(class_id(name, card) for name in names if name)


def object_ids(card: ModelCard) -> frozenset[int]:
    """Return all classes but the background: class 0 of a binary network, and classes called "background" and alike."""
    if card.task == "binary":
        return frozenset({1})
    return frozenset(i for i, name in enumerate(card.class_names) if name.casefold() not in BACKGROUND_NAMES)


def foreground_ids(card: ModelCard, only: Collection[int] = ()) -> frozenset[int]:
    """Return the classes that a cut-out keeps: those of ``only``, or else all but the background.

    Raises:
        OutputError: if neither tells anything apart: nothing was named, and no class is background.
    """
    found = frozenset(only) or object_ids(card)
    if not only and len(found) in (0, card.num_classes):
        raise OutputError(
            "a cutout needs to know what to cut out, and none of this model's classes is called background; "
            "name some with --only, such as --only " + ",".join(card.class_names[:2])
        )
    return found
