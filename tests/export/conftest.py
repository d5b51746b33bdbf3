"""One small real picture, so that an export compares on little."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage


@pytest.fixture(scope="session")
def picture(photo: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo as a file, 90×120."""
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    PillowImage.fromarray(photo).save(path)
    return path
