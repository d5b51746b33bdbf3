import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.compare import Expected
from segship.runtime.compare_image import comparison_image
from segship.runtime.segmenter import Segmenter

RED = (255, 0, 0)


@pytest.mark.parametrize("height", [24, 90, 1200])
def test_a_single_pixel_that_differs_is_seen(
    conv_model: Path, conv_card: ModelCard, photo: NDArray[np.uint8], height: int
) -> None:
    picture = np.resize(photo, (height, 120, 3))
    with Segmenter(conv_model, backend="ort") as segmenter:
        result = segmenter(picture)
        expected = Expected.of(result, segmenter.processing.stages(picture), conv_card)
    assert not _reds(comparison_image(expected, result))
    labels = result.labels.copy()
    labels[height // 2, 60] ^= 1
    drawn = comparison_image(expected, dataclasses.replace(result, labels=labels))
    assert drawn.dtype == np.uint8
    assert _reds(drawn)
    assert drawn.shape[0] < 600
    assert _reds(comparison_image(dataclasses.replace(expected, logits=None), dataclasses.replace(result, logits=None)))


def _reds(image: NDArray[np.uint8]) -> bool:
    """Tell whether the last of the four pictures has a reddish spot: where it was scaled down, red is mixed."""
    last = image[24:, -image.shape[1] // 5 :].astype(int)
    return bool(((last[..., 0] > 200) & (last[..., 1] < 100) & (last[..., 2] < 100)).any())
