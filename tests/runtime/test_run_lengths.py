from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.regions import find_regions
from segship.runtime.run_lengths import compress, run_lengths

pycocotools_mask = pytest.importorskip("pycocotools.mask")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools, of NumPy 2
@settings(max_examples=150, deadline=None)
@given(st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)))
def test_masks_are_written_as_the_coco_tools_write_them(labels: NDArray[Any]) -> None:
    regions = find_regions(labels, [1, 2])
    found = run_lengths(regions.ids, len(regions))
    assert len(found) == len(regions)
    for region, lengths in enumerate(found, 1):
        mask = np.asfortranarray(regions.ids == region, np.uint8)
        theirs = pycocotools_mask.encode(mask)
        assert lengths == {"size": list(theirs["size"]), "counts": theirs["counts"].decode()}
        np.testing.assert_array_equal(pycocotools_mask.decode(lengths), mask)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50_000_000), min_size=1, max_size=12))
def test_lengths_of_any_size_are_read_back_by_the_coco_tools(counts: list[int]) -> None:
    height = max(1, sum(counts))
    lengths = {"size": [height, 1], "counts": compress(np.array(counts, np.int64))}
    assert pycocotools_mask.area(lengths) == sum(counts[1::2])


def test_a_whole_picture_of_one_region_is_one_run() -> None:
    assert run_lengths(np.ones((4, 5), np.int32), 1) == [{"size": [4, 5], "counts": compress(np.array([0, 20]))}]


def test_a_picture_without_regions_has_no_runs() -> None:
    assert run_lengths(np.zeros((4, 5), np.int32), 0) == []
