import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from segship.runtime.tiff_pages import MAX_PAGES, full_pages


def tiff(pages: int, **options: object) -> bytes:
    images = [PillowImage.fromarray(np.full((6, 8), page, np.uint8)) for page in range(pages)]
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:], **options)
    return file.getvalue()


def directories(kinds: list[int | None], *, big: bool, order: str) -> bytes:
    """A TIFF of directories of one tag: NewSubfileType, or of None another one."""
    mark = b"II" if order == "<" else b"MM"
    word, at = ("Q", 16) if big else ("I", 8)
    head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else mark + struct.pack(f"{order}HI", 42, at)
    size = 8 + 20 + 8 if big else 2 + 12 + 4
    content = bytearray(head)
    for number, kind in enumerate(kinds, 1):
        following = at + number * size if number < len(kinds) else 0
        content += struct.pack(f"{order}{'Q' if big else 'H'}HH{word}", 1, 256 if kind is None else 254, 4, 1)
        content += struct.pack(f"{order}I", kind or 0) + bytes(4 if big else 0) + struct.pack(order + word, following)
    return bytes(content)


@pytest.mark.parametrize("pages", [1, 2, 17])
@pytest.mark.parametrize("big", [False, True])
def test_pages_that_pillow_wrote_are_counted(pages: int, big: bool) -> None:
    found = full_pages(io.BytesIO(tiff(pages, big_tiff=big)))
    assert (found.numbers, found.damage) == (list(range(pages)), "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_thumbnails_overviews_and_masks_are_no_pages(big: bool, order: str) -> None:
    content = directories([None, 1, 4, 2, 5, 0], big=big, order=order)
    assert full_pages(io.BytesIO(content)).numbers == [0, 3, 5]
    assert full_pages(io.BytesIO(directories([1, 1], big=big, order=order))).numbers == [0]


def test_the_file_is_left_at_its_start() -> None:
    file = io.BytesIO(tiff(2))
    file.seek(5)
    full_pages(file)
    assert file.tell() == 0


def test_a_list_that_leads_back_or_out_is_damaged_behind_the_pages_before() -> None:
    content = bytearray(directories([0, 0, 0], big=False, order="<"))
    content[-4:] = struct.pack("<I", 8)
    assert full_pages(io.BytesIO(content)).numbers == [0, 1, 2]
    assert "damaged after 3: it never ends" in full_pages(io.BytesIO(content)).damage
    content[-4:] = struct.pack("<I", 5000)
    assert "damaged after 3" in full_pages(io.BytesIO(content)).damage


def test_a_list_without_end_ends() -> None:
    found = full_pages(io.BytesIO(directories([0] * (MAX_PAGES + 5), big=False, order="<")))
    assert len(found.numbers) == MAX_PAGES
    assert "never ends" in found.damage


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_have_pages_or_damage(data: st.DataObject) -> None:
    content = bytearray(tiff(3, big_tiff=data.draw(st.booleans())))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[at] = value
    found = full_pages(io.BytesIO(bytes(content[: data.draw(st.integers(0, len(content)))])))
    assert found.numbers or found.damage


def test_a_folder_of_files_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(directories([0, 0], big=False, order="<"))  # without any pixels
    with path.open("rb") as file:
        assert full_pages(file).numbers == [0, 1]
