import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.contours import coco, geojson, write_contours
from segship.runtime.preprocess import Preprocess
from segship.runtime.result import Result

CARD = ModelCard(("sky", "tree", "Straße"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), Preprocess((4, 4)))
LABELS = np.array([[1, 1, 1, 0], [1, 2, 1, 0], [1, 1, 1, 2]], np.uint8)


def result_of(labels: NDArray[Any], logits: NDArray[np.float32] | None = None) -> Result:
    return Result("scan/Straße 1.png", np.zeros((*labels.shape, 3), np.uint8), labels, logits, CARD)


def filled(polygons: list[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons by the even-odd rule, at the centres of pixels."""
    inside = np.zeros(size, np.bool_)
    rings = [np.array(ring) for polygon in polygons for ring in polygon]
    for row in range(size[0]):
        for column in range(size[1]):
            crossings = 0
            for ring in rings:
                (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
                crosses = (np.minimum(y0, y1) < row + 0.5) & (row + 0.5 < np.maximum(y0, y1)) & (x0 < column + 0.5)
                crossings += int((crosses & (x0 == x1)).sum())
            inside[row, column] = crossings % 2
    return inside


@settings(max_examples=60, deadline=None)
@given(
    st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.sampled_from([0, 1, 2, 255]))
)
def test_filling_the_polygons_of_all_features_gives_the_mask_back(labels: NDArray[Any]) -> None:
    painted = np.full(labels.shape, 255, np.uint8)
    for feature in geojson(result_of(labels))["features"]:
        shape = feature["geometry"]
        inside = filled([shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"], labels.shape)
        assert (painted[inside] == 255).all()
        painted[inside] = feature["properties"]["class_id"]
        assert inside.sum() == feature["properties"]["area_px"]
    np.testing.assert_array_equal(painted, labels)


def test_a_feature_says_what_it_is() -> None:
    logits = np.zeros((3, *LABELS.shape), np.float32)
    logits[1] = np.log(3)  # so that the classes have 1/5, 3/5, 1/5
    document = geojson(result_of(LABELS, logits))
    assert document["type"] == "FeatureCollection"
    assert document["image"] == {"source": "scan/Straße 1.png", "width": 4, "height": 3}
    assert "y down" in document["coordinates"]
    features = document["features"]
    assert [(feature["properties"]["class"], feature["properties"]["area_px"]) for feature in features] == [
        ("sky", 2),
        ("tree", 8),
        ("Straße", 1),
        ("Straße", 1),
    ]
    assert features[1]["properties"] == {
        "class_id": 1,
        "class": "tree",
        "color": [4, 5, 6],
        "area_px": 8,
        "score": pytest.approx(0.6, abs=1e-6),
    }
    outer, hole = features[1]["geometry"]["coordinates"]
    assert outer == [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]
    assert len(hole) == 5


def test_parts_that_touch_at_corners_are_one_feature_of_several_polygons() -> None:
    diagonal = np.where(np.eye(3, dtype=bool), 1, 255).astype(np.uint8)
    (feature,) = geojson(result_of(diagonal))["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert len(feature["geometry"]["coordinates"]) == 3
    assert feature["properties"]["area_px"] == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools, of NumPy 2
def test_the_coco_tools_read_the_document(tmp_path: Path) -> None:
    coco_tools = pytest.importorskip("pycocotools.coco")
    logits = np.zeros((3, *LABELS.shape), np.float32)
    write_contours(tmp_path / "c.json", result_of(LABELS, logits), as_coco=True)
    read = coco_tools.COCO(str(tmp_path / "c.json"))
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == ["sky", "tree", "Straße"]
    assert read.loadImgs([1])[0] == {"id": 1, "file_name": "scan/Straße 1.png", "width": 4, "height": 3}
    painted = np.full(LABELS.shape, 255, np.uint8)
    for annotation in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(annotation).astype(bool)
        painted[mask] = annotation["category_id"]
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        assert annotation["score"] == pytest.approx(1 / 3, abs=1e-6)
    np.testing.assert_array_equal(painted, LABELS)


def test_labels_alone_have_no_scores() -> None:
    result = result_of(LABELS)
    assert {feature["properties"]["score"] for feature in geojson(result)["features"]} == {None}
    assert {annotation["score"] for annotation in coco(result)["annotations"]} == {None}


def test_what_is_of_no_class_has_no_contours(tmp_path: Path) -> None:
    empty = result_of(np.full((3, 4), 255, np.uint8))
    assert geojson(empty)["features"] == []
    assert coco(empty)["annotations"] == []
    assert len(coco(empty)["categories"]) == 3


@pytest.mark.parametrize("as_coco", [False, True])
def test_documents_are_json(tmp_path: Path, as_coco: bool) -> None:
    labels = LABELS.astype(np.uint16)
    result = dataclasses.replace(result_of(labels), logits=np.ones((3, 2, 2), np.float32))
    write_contours(tmp_path / "c.geojson", result, as_coco=as_coco)
    text = (tmp_path / "c.geojson").read_text(encoding="utf-8")
    assert json.loads(text) == (coco(result) if as_coco else geojson(result))
    assert "Straße" in text
