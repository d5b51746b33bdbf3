"""Finding the pages of a TIFF without decoding any of them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

TIFF_SUFFIXES: Final = frozenset({".tif", ".tiff"})

MAX_PAGES: Final = 100_000
"""Pages that a file may have; a longer list is taken for a damaged one."""

_NEW_SUBFILE_TYPE: Final = 254
_REDUCED_OR_MASK: Final = 1 | 4
_MAX_TAGS: Final = 4096


@dataclass(frozen=True)
class Pages:
    """The pages of a TIFF.

    Attributes:
        numbers: of the pages, from 0.
        damage: what is wrong with their list, where it leads out of the file, into a loop or on for ever; else empty.
    """

    numbers: list[int]
    damage: str


def full_pages(file: BinaryIO) -> Pages:
    """Number the pages of a TIFF (TIFF 6.0, or BigTIFF); the file is left at its start.

    Smaller copies of a page and masks, which pyramids and maps keep as pages of their own, are left out: those whose
    NewSubfileType says so. Where all say so, the first counts.

    Raises:
        OSError: if the file cannot be read.
    """
    is_full: list[bool] = []
    damage = ""
    try:
        is_full.extend(_walk(file))  # those before an error stay
    except (struct.error, ValueError, OverflowError) as error:
        damage = f"the list of its pages is damaged after {len(is_full)}: {error}"
    file.seek(0)
    return Pages([number for number, full in enumerate(is_full) if full] or [0][: len(is_full)], damage)


def _walk(file: BinaryIO) -> Iterator[bool]:
    """Follow the chain of directories; tell of each whether it is a page in full."""
    layout, offset = _header(file)
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) == MAX_PAGES:
            raise ValueError("it never ends")
        seen.add(offset)
        full, offset = _directory(file, offset, *layout)
        yield full


def _header(file: BinaryIO) -> tuple[tuple[str, str, str, int], int]:
    """Return how directories are laid out (byte order, their count, offsets, bytes a tag), and where the first is."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    if struct.unpack_from(f"{order}H", head, 2)[0] == 43:
        return (order, "Q", "Q", 20), int(struct.unpack_from(f"{order}Q", head, 8)[0])
    return (order, "H", "I", 12), int(struct.unpack_from(f"{order}I", head, 4)[0])


def _directory(file: BinaryIO, at: int, order: str, count: str, offset: str, tag_size: int) -> tuple[bool, int]:
    """Tell whether the directory at ``at`` is a page in full, and where the next one is."""
    file.seek(at)
    (tags,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
    if tags > _MAX_TAGS:
        raise ValueError(f"a page of {tags} tags")
    table = file.read(tags * tag_size + struct.calcsize(offset))
    (following,) = struct.unpack_from(order + offset, table, tags * tag_size)
    for place in range(0, tags * tag_size, tag_size):
        tag, kind = struct.unpack_from(f"{order}HH", table, place)
        if tag == _NEW_SUBFILE_TYPE and kind == 4:
            (value,) = struct.unpack_from(f"{order}I", table, place + (8 if tag_size == 12 else 12))
            return not value & _REDUCED_OR_MASK, int(following)
        if tag > _NEW_SUBFILE_TYPE:  # tags are sorted
            break
    return True, int(following)
