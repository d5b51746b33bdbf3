import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from segship.export.report import ParityReport
from segship.runtime.backends import EngineInfo
from segship.runtime.candidate import EngineRow, Worst
from segship.runtime.card import ModelCard
from segship.runtime.compare import LOOSE, STRICT, Comparison, Expected, Gate
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Preprocess
from segship.runtime.processing import Stages
from segship.runtime.result import Result

TORCH = EngineInfo("torch", "PyTorch 2.13.0", "cpu", "fp32", 1)
SAME = Comparison(11, 2e-6, 1e-6, 0.9999999, 0, 1000, 0, 0, (600, 400), (600, 400))
OTHER = Comparison(11, 0.5, 0.1, 0.9, 70, 1000, 250, 40, (500, 250), (700, 550))


def engine(backend: str = "ort", precision: str = "fp32") -> EngineInfo:
    return EngineInfo(backend, f"{backend.upper()} 1.2", "cpu", precision, 1)


def worst(comparison: Comparison, name: str) -> Worst:
    image = np.zeros((4, 5, 3), np.uint8)
    labels = np.zeros((4, 5), np.uint8)
    card = ModelCard(DEMO.names, DEMO.palette, Preprocess((4, 5)), head="labels", output_name="labels")
    expected = Expected(Stages(image, image, None), None, labels, np.ones((4, 5), np.float32))
    return Worst(name, expected, Result(name, image, labels, None, card), comparison)


PASSING = EngineRow(engine(), STRICT, SAME, worst=worst(SAME, "a"))
DIFFERING = EngineRow(
    engine("opencv"), STRICT, OTHER, "first differs at the stage network", worst(OTHER, "b"), "DIFFERS"
)
FAILING = EngineRow(engine("opencv"), STRICT, None, "fails on noise 0 at the stage network: no", None, "FAILS")
RECORDED = EngineRow(engine("openvino", "bf16"), None, OTHER, worst=worst(OTHER, "c"), verdict="recorded")


def report(*rows: EngineRow, **more: Any) -> ParityReport:
    return ParityReport(TORCH, rows, "3 random, 8 real", **({"refused": {}, "missing": {}} | more))


def test_what_is_only_recorded_gates_nothing() -> None:
    assert report(PASSING, RECORDED).passes
    assert report(PASSING, RECORDED).failed == []


@pytest.mark.parametrize("bad", [DIFFERING, FAILING], ids=["differs", "fails"])
def test_one_engine_that_is_wrong_is_enough_to_fail(bad: EngineRow) -> None:
    found = report(PASSING, bad, RECORDED)
    assert not found.passes
    assert found.failed == [bad]


@pytest.mark.parametrize("rows", [(), (RECORDED,)], ids=["no engine", "a recorded one"])
def test_without_an_engine_that_keeps_to_a_gate_nothing_is_proven(rows: tuple[EngineRow, ...]) -> None:
    assert not report(*rows, refused={"ort": "it cannot"}).passes


def test_the_worst_picture_is_one_that_counts() -> None:
    found = report(PASSING, DIFFERING, RECORDED).worst
    assert found is not None
    assert found.name == "b"
    only_recorded = report(dataclasses.replace(PASSING, worst=None), RECORDED)
    assert only_recorded.worst is None


def test_the_certificate_holds_every_row_that_was_compared() -> None:
    budget = Gate(False, 0.0, 0.5, "points of mIoU")
    lossy = dataclasses.replace(SAME, lost=0.25)
    rows = (PASSING, FAILING, RECORDED, EngineRow(engine("openvino", "int8"), budget, lossy))
    certificate = report(*rows).certificate("0" * 64)
    assert certificate.content_sha256 == "0" * 64
    assert certificate.reference == "PyTorch 2.13.0 on cpu"
    assert certificate.pictures == "3 random, 8 real"
    assert (certificate.absolute_tolerance, certificate.relative_tolerance) == (1e-4, 1e-3)
    assert [(row.backend, row.precision, row.gate, row.passes, row.lost) for row in certificate.rows] == [
        ("ort", "fp32", str(STRICT), True, None),
        ("openvino", "bf16", "", False, None),
        ("openvino", "int8", "≤ 0.5 points of mIoU lost", True, 0.25),
    ]
    first, recorded, _ = certificate.rows
    assert (first.max_abs, first.p99_abs, first.cosine) == (2e-6, 1e-6, 0.9999999)
    assert (recorded.label_agreement, recorded.unexplained_flips) == (0.75, 40)
    assert recorded.miou == pytest.approx((500 / 700 + 250 / 550) / 2)


def test_the_certificate_survives_its_card() -> None:
    card = ModelCard(DEMO.names, DEMO.palette, Preprocess((4, 5)))
    certified = dataclasses.replace(card, certificate=report(PASSING, RECORDED).certificate("0" * 64))
    assert ModelCard.from_json(certified.to_json(), origin="test") == certified


def test_the_table_has_a_line_an_engine_and_below_it_what_else_is_to_be_said() -> None:
    found = report(
        PASSING,
        DIFFERING,
        FAILING,
        RECORDED,
        refused={"tensorrt": "it knows no Resize"},
        missing={"abacus": 'pip install "segship[beads]"'},
    )
    lines = found.to_markdown().splitlines()
    assert lines[0] == "Reference: PyTorch 2.13.0 on cpu. Pictures: 3 random, 8 real."
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert [(row[0], row[2], row[-1]) for row in table] == [
        ("ORT 1.2", "fp32", "same"),
        ("OPENCV 1.2", "fp32", "DIFFERS"),
        ("OPENCV 1.2", "fp32", "FAILS"),
        ("OPENVINO 1.2", "bf16", "recorded"),
    ]
    assert table[0][3:-1] == ["2.0e-06", "1.0e-06", "0.9999999", "100.0000 %", "0 of 0", "1.00000"]
    assert table[1][6:8] == ["75.0000 %", "40 of 250"]
    assert table[2][3:-1] == ["n/a"] * 6
    assert f"Asked of fp32: {STRICT}." in lines
    assert "OPENCV 1.2 on cpu in fp32 first differs at the stage network" in lines
    assert "Cannot run this file: tensorrt: it knows no Resize" in lines
    assert 'Not checked: abacus is not installed (pip install "segship[beads]").' in lines


def test_labels_have_no_values_to_compare_and_the_table_says_so() -> None:
    labels = dataclasses.replace(SAME, max_abs=None, p99_abs=None, cosine=None)
    found = report(EngineRow(engine(), LOOSE, labels))
    assert "| n/a | n/a | n/a | 100.0000 % |" in found.to_markdown()
    assert found.to_plain()["rows"][0]["max_abs"] is None


def test_the_json_document_says_the_same() -> None:
    document = json.loads(report(PASSING, FAILING, missing={"abacus": "beads"}).to_json())
    assert (document["passes"], document["pictures"]) == (False, "3 random, 8 real")
    assert document["reference"]["engine"] == "PyTorch 2.13.0"
    assert document["missing"] == {"abacus": "beads"}
    first, second = document["rows"]
    assert (first["engine"]["backend"], first["verdict"], first["gate"]) == ("ort", "same", str(STRICT))
    assert (first["label_agreement"], first["miou"], first["max_abs"]) == (1.0, 1.0, 2e-6)
    assert (second["verdict"], second["fault"]) == ("FAILS", "fails on noise 0 at the stage network: no")
    assert "max_abs" not in second
