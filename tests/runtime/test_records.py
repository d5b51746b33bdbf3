import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Preprocess
from segship.runtime.records import plain_timings, record
from segship.runtime.result import Result

CARD = ModelCard(("sky", "tree", "Straße"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), Preprocess((4, 4)))
LABELS = np.array([[0, 0, 0, 2], [0, 0, 255, 2]], np.uint8)


def result_of(tag: Any = None) -> Result:
    image = np.zeros((2, 4, 3), np.uint8)
    return Result("scan/a.jpg", image, LABELS, None, CARD, {"network_ms": 1.23456, "labels_ms": 2.0}, tag)


def test_a_record_is_all_that_is_known_of_a_result() -> None:
    found = record(result_of("part 7"), {"mask": Path("out/a.png")}, time_s=0.12, captured=1.5e9)
    assert json.loads(json.dumps(found)) == {
        "source": "scan/a.jpg",
        "tag": "part 7",
        "time_s": 0.12,
        "captured": 1.5e9,
        "height": 2,
        "width": 4,
        "areas": {
            "sky": {"pixels": 5, "share": 0.625},
            "tree": {"pixels": 0, "share": 0.0},
            "Straße": {"pixels": 2, "share": 0.25},
        },
        "outputs": {"mask": str(Path("out/a.png"))},
    }


def test_timings_are_told_in_milliseconds_by_stage() -> None:
    assert plain_timings({"network_ms": 1.23456, "labels_ms": 2.0}) == {"network": 1.235, "labels": 2.0}


def test_what_is_not_known_is_null() -> None:
    found = record(result_of(), {})
    assert (found["tag"], found["time_s"], found["captured"], found["outputs"]) == (None, None, None, {})


def test_areas_of_the_classes_asked_for_alone_are_told() -> None:
    assert list(record(result_of(), {}, only=[2, 0])["areas"]) == ["sky", "Straße"]


@pytest.mark.parametrize(
    ("tag", "plain"),
    [
        (7, 7),
        ("x", "x"),
        (True, True),
        (0.5, 0.5),
        (float("nan"), "nan"),
        (Path("a/b"), str(Path("a/b"))),
        ((1, 2), "(1, 2)"),
    ],
)
def test_a_tag_of_any_type_is_told(tag: object, plain: object) -> None:
    found = record(result_of(tag), {})["tag"]
    assert found == plain
    json.dumps(found, allow_nan=False)
