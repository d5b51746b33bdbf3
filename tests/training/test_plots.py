from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.training.plots import class_label, new_figure, save_figure


def _legend(path: Path, label: str) -> NDArray[np.uint8]:
    """Draw a figure whose legend has that label, and read it back."""
    figure = new_figure(3, 0.6)
    axes = figure.add_subplot()
    axes.plot([0, 1], label=label)
    axes.legend()
    save_figure(path, figure)
    with PillowImage.open(path) as image:
        assert image.size == (330, 66)
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize("name", ["$\\x$", "$", "a$b$", "_hidden", "two\nlines", "道路", "x" * 500])
def test_any_class_name_is_drawn_as_the_text_it_is(tmp_path: Path, name: str) -> None:
    nothing = _legend(tmp_path / "nothing.png", " ")
    drawn = _legend(tmp_path / "drawn.png", class_label(3, name))
    assert (drawn < 100).sum() > (nothing < 100).sum() + 30, "ink"


def test_a_label_has_the_id_and_up_to_24_characters() -> None:
    assert class_label(7, "tree, or bush") == "7 tree, or bush"
    assert class_label(12, "a very long name of a class") == "12 a very long name of …"
    assert class_label(0, " two\n lines ") == "0 two lines"


def test_a_failed_figure_leaves_no_file(tmp_path: Path) -> None:
    figure = new_figure(1, 1)
    figure.text(0, 0, "$\\nothing$")  # no label: a formula that does not parse
    with pytest.raises(ValueError, match="nothing"):
        save_figure(tmp_path / "figure.png", figure)
    assert list(tmp_path.iterdir()) == []
