"""Every two of network, opset, head, input, open axes and classes meet in a cell; some are tried: right, or refused."""

import itertools
import re
from collections.abc import Iterator

import pytest

from segship.benchmarks.export_matrix import (
    CLASSES,
    HEADS,
    INPUTS,
    NETWORKS,
    OPENCV4_FOLDER,
    OPSETS,
    SHAPES,
    Cell,
    Outcome,
    all_cells,
    is_silent_failure,
    pairwise_cells,
    to_markdown,
    try_cell,
)

REFUSALS = (
    "a graph that resizes frames has one size of its own",
    "the size of fastscnn cannot be left open",
)
ENGINES = ("ONNX Runtime", "OpenCV 5", "OpenVINO")


def _name(cell: Cell) -> str:
    return f"{cell.network}-{cell.opset}-{cell.head}-{cell.input}-{'+'.join(cell.shapes) or 'static'}-{cell.classes}"


def test_every_two_values_meet() -> None:
    cells = [(c.network, c.opset, c.head, c.input, c.shapes, c.classes) for c in pairwise_cells()]
    columns = (NETWORKS, OPSETS, HEADS, INPUTS, SHAPES, CLASSES)
    for (i, left), (j, right) in itertools.combinations(enumerate(columns), 2):
        assert set(itertools.product(left, right)) <= {(cell[i], cell[j]) for cell in cells}
    assert len(cells) < 60


def test_all_combinations_are_made_once() -> None:
    cells = all_cells()
    assert len(cells) == len(set(cells)) == len(NETWORKS) * len(OPSETS) * len(HEADS) * len(INPUTS) * len(SHAPES)


TWINS = ("u2net", "u2net5p", "fcn32s", "fcn16s")
"""Networks whose graphs are like those of another: U²-NetP's with more or fewer channels, FCN-8s with fewer skips."""


def _must_be_refused(cell: Cell) -> bool:
    return "size" in cell.shapes and (cell.input == "frame" or cell.network == "fastscnn")


def _some() -> Iterator[Cell]:
    """Yield what is tried here, since a cell takes many seconds: two of each network, and what must be refused.

    ``python -m segship.benchmarks.export_matrix`` tries all.
    """
    for network in NETWORKS:
        cells = [cell for cell in pairwise_cells() if cell.network == network and network not in TWINS]
        yield from [cell for cell in cells if _must_be_refused(cell)]
        yield from [cell for cell in cells if not _must_be_refused(cell)][:2]


@pytest.mark.parametrize("cell", list(_some()), ids=_name)
def test_a_cell_is_right_on_every_engine_or_refused_with_a_reason(cell: Cell) -> None:
    outcome = try_cell(cell, OPENCV4_FOLDER if OPENCV4_FOLDER.is_dir() else None)
    if _must_be_refused(cell):
        assert outcome.refusal.startswith(REFUSALS)
        return
    assert outcome.refusal == ""
    assert outcome.opset == cell.opset
    assert not is_silent_failure(outcome), outcome
    for engine in ENGINES:
        assert [word for name, word in outcome.engines.items() if name.startswith(engine)] == ["same"]
    for name, word in outcome.engines.items():
        assert word == "same" or re.match(r"refused: .*OpenCV 4\.14\.0 cannot", word), f"{name}: {word}"


def test_the_table_has_a_line_a_cell_and_every_reason_once() -> None:
    cells = pairwise_cells()[:3]
    outcomes = [
        Outcome(cells[0], 17, 10, 2000, {"A 1": "same", "B 2": "refused: too hard"}, ""),
        Outcome(cells[1], 17, 10, 2000, {"A 1": "same", "B 2": "refused: too hard"}, ""),
        Outcome(cells[2], 0, 0, 0, {}, "not like this"),
    ]
    table = to_markdown(outcomes)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert table.count("refused [1]") == 2
    assert table.endswith("1. too hard\n2. not like this\n")


@pytest.mark.parametrize(
    ("opset", "word", "silent"), [(0, "same", False), (1, "same", True), (0, "WRONG: at a node", True)]
)
def test_another_opset_and_a_wrong_engine_are_failures(opset: int, word: str, silent: bool) -> None:
    cell = pairwise_cells()[0]
    assert is_silent_failure(Outcome(cell, cell.opset + opset, 1, 1, {"A": word}, "")) is silent
