from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segship.runtime.card import ModelCard
from segship.runtime.images import Page, source_name
from segship.runtime.result import Result
from segship.runtime.source_item import SourceItem


@pytest.mark.parametrize(
    ("source", "tag", "name"),
    [
        ("day/photo.v2.jpg", None, "photo.v2"),
        ("array", 7, "array"),
        (source_name(Page(Path("day/scan.tif"), 2)), None, "scan/page-0003"),
        (source_name(Page(Path("day/scan.1.TIFF"), 11)), 5, "scan.1/page-0012"),
        ("v.mp4 frame 3", SourceItem(Path("unused"), "v.mp4 frame 3", Path("v/frame-000003")), "v/frame-000003"),
        ("day/a.jpg", SourceItem(Path("unused"), "day/a.jpg", Path("day/a.jpg")), "day/a"),
    ],
)
def test_what_is_given_no_name_has_that_of_its_source_so_that_frames_and_pages_do_not_meet(
    conv_card: ModelCard, tmp_path: Path, source: str, tag: Any, name: str
) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    result = Result(source, image, image[..., 0], None, conv_card, tag=tag)
    assert result.save(tmp_path, ["mask"]) == {"mask": tmp_path / f"mask/{name}.png"}
    assert (tmp_path / f"mask/{name}.png").is_file()
    assert result.save(tmp_path, ["mask"], name="other") == {"mask": tmp_path / "mask/other.png"}
