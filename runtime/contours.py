"""Regions as text: GeoJSON polygons, or COCO's run lengths; one entry for each connected region of a class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segship.runtime.files import write_text
from segship.runtime.polygons import trace_polygons
from segship.runtime.probability import confidence
from segship.runtime.regions import Regions, find_regions
from segship.runtime.run_lengths import run_lengths

if TYPE_CHECKING:
    from segship.runtime.result import Result

COORDINATES: Final = "pixels: x right, y down, [0, 0] is the top left corner of the picture's top left pixel"
"""What positions in our GeoJSON mean, in place of the longitude and latitude of RFC 7946."""


def write_contours(path: Path, result: "Result", *, as_coco: bool) -> None:
    """Write the regions of a result, as :func:`coco` or :func:`geojson` gives them, as one JSON document."""
    document = coco(result) if as_coco else geojson(result)
    write_text(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")


def geojson(result: "Result") -> dict[str, Any]:
    """Return a GeoJSON ``FeatureCollection`` (RFC 7946) with one feature for each connected region of a class.

    Pixels of one class that touch, at a corner too, are one region. Its geometry is a ``Polygon`` with its holes, or
    a ``MultiPolygon`` where parts touch at corners only. Lines run along the pixels' edges, so that filling them gives
    exactly the region's pixels. Properties: ``class_id``, ``class``, ``color`` [r, g, b], ``area_px``, ``score``: the
    mean probability of the class over the region, None where the graph returns labels. The members ``image`` and
    ``coordinates`` say which picture it is and what positions mean.
    """
    card, (height, width) = result.card, result.labels.shape
    regions = find_regions(result.labels, range(card.num_classes))
    parts = find_regions(result.labels, range(card.num_classes), connectivity=4)
    owners = np.zeros(len(parts) + 1, np.int64)
    owners[parts.ids] = regions.ids
    shapes: list[list[Any]] = [[] for _ in range(len(regions) + 1)]
    for part, rings in sorted(trace_polygons(parts.ids).items()):
        shapes[owners[part]].append([ring.tolist() for ring in rings])
    features = []
    for region, about in _described(regions, result):
        shape = shapes[region]
        geometry = (
            {"type": "Polygon", "coordinates": shape[0]}
            if len(shape) == 1
            else {"type": "MultiPolygon", "coordinates": shape}
        )
        properties = {"class": card.class_names[about["class_id"]], "color": list(card.palette[about["class_id"]])}
        features.append({"type": "Feature", "geometry": geometry, "properties": about | properties})
    image = {"source": result.source, "width": width, "height": height}
    return {"type": "FeatureCollection", "image": image, "coordinates": COORDINATES, "features": features}


def coco(result: "Result") -> dict[str, Any]:
    """Return a document as COCO's annotations (Lin et al., ECCV 2014), with one for each connected region of a class.

    Each has its mask as compressed run lengths, ``bbox`` [x, y, width, height], ``area`` in pixels and, as results
    have, ``score``, the mean probability of the class over the region, None where the graph returns labels. Ids of
    categories are those of the classes.
    """
    card, (height, width) = result.card, result.labels.shape
    regions = find_regions(result.labels, range(card.num_classes))
    masks, boxes = run_lengths(regions.ids, len(regions)), _boxes(regions)
    annotations = [
        {"id": region, "image_id": 1, "category_id": about["class_id"], "segmentation": masks[region - 1]}
        | {"bbox": boxes[region], "area": about["area_px"], "iscrowd": 0, "score": about["score"]}
        for region, about in _described(regions, result)
    ]
    categories = [
        {"id": class_id, "name": name, "color": list(color)}
        for class_id, (name, color) in enumerate(zip(card.class_names, card.palette, strict=True))
    ]
    image = {"id": 1, "file_name": result.source, "width": width, "height": height}
    return {"images": [image], "annotations": annotations, "categories": categories}


def _described(regions: Regions, result: "Result") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number, class, area and score of each region."""
    scores = None
    if result.logits is not None:
        sums = np.bincount(regions.ids.ravel(), weights=confidence(result).ravel(), minlength=len(regions) + 1)
        scores = (sums / np.maximum(regions.areas_px, 1)).round(6).tolist()
    for region in range(1, len(regions) + 1):
        score = None if scores is None else scores[region]
        yield (
            region,
            {"class_id": int(regions.classes[region]), "area_px": int(regions.areas_px[region]), "score": score},
        )


def _boxes(regions: Regions) -> list[list[int]]:
    """Return [x, y, width, height] of each region, by its number."""
    rows, columns = np.nonzero(regions.ids)
    own = regions.ids[rows, columns]
    left, top = np.full((2, len(regions) + 1), max(regions.ids.shape))
    right, bottom = np.zeros((2, len(regions) + 1), np.int64)
    np.minimum.at(left, own, columns)
    np.minimum.at(top, own, rows)
    np.maximum.at(right, own, columns + 1)
    np.maximum.at(bottom, own, rows + 1)
    boxes: list[list[int]] = np.stack([left, top, right - left, bottom - top], axis=1).tolist()
    return boxes
