import dataclasses
import json

from segship.runtime.backends import EngineInfo
from segship.runtime.candidate import EngineRow
from segship.runtime.certificate import Proof
from segship.runtime.compare import LOOSE, STRICT, Comparison
from segship.runtime.engine_table import engine_name, engine_table, plain_row, proof_table

ORT = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2)
COMPARISON = Comparison(8, 3.2e-5, 1e-5, 0.99999987, 0, 10_000, 3, 1, (50, 40), (51, 41))
SAME = EngineRow(ORT, STRICT, COMPARISON)
PROOF = Proof("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", "a gate", True, 3.2e-5, 1e-5, 1.0, 0.9997, 1, 0.978)


def test_a_row_shows_the_figures_and_below_it_stands_what_was_asked() -> None:
    header, rule, row, blank, asked = engine_table([SAME])
    assert row == (
        "| ONNX Runtime 1.31.1 | cpu | fp32 | 3.2e-05 | 1.0e-05 | 0.9999999 | 99.9700 % | 1 of 3 | 0.97800 | same |"
    )
    assert header.count("|") == rule.count("|") == row.count("|")
    assert (blank, asked) == ("", f"Asked of fp32: {STRICT}.")


def test_what_was_asked_is_said_once_for_each_precision() -> None:
    half = EngineRow(dataclasses.replace(ORT, precision="fp16"), LOOSE, COMPARISON)
    free = EngineRow(dataclasses.replace(ORT, precision="bf16"), None, COMPARISON, verdict="recorded")
    assert [line for line in engine_table([SAME, half, SAME, free]) if line.startswith("Asked")] == [
        f"Asked of fp32: {STRICT}.",
        f"Asked of fp16: {LOOSE}.",
    ]
    assert len(engine_table([free])) == 3


def test_what_was_not_compared_has_no_figures() -> None:
    failed = EngineRow(ORT, STRICT, None, "fails on a.png", verdict="FAILS")
    assert engine_table([failed])[2].endswith("| n/a | n/a | n/a | n/a | n/a | n/a | FAILS |")
    labels = EngineRow(ORT, STRICT, dataclasses.replace(COMPARISON, max_abs=None, p99_abs=None, cosine=None))
    assert "| fp32 | n/a | n/a | n/a | 99.9700 % | 1 of 3 |" in engine_table([labels])[2]


def test_the_rows_of_a_certificate_have_the_columns_of_a_comparison() -> None:
    lines = proof_table(
        [PROOF, dataclasses.replace(PROOF, passes=False), dataclasses.replace(PROOF, gate="", passes=False)]
    )
    assert lines[:2] == engine_table([SAME])[:2]
    assert lines[2].endswith("| 3.2e-05 | 1.0e-05 | 1.0000000 | 99.9700 % | 1 | 0.97800 | same |")
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["same", "DIFFERS", "recorded"]


def test_a_stranger_steers_no_terminal() -> None:
    assert "\x1b" not in "".join(proof_table([dataclasses.replace(PROOF, engine="\x1b[2J")]))


def test_plain_values_are_json_and_hold_the_figures_if_there_are_some() -> None:
    plain = plain_row(SAME)
    assert json.loads(json.dumps(plain)) == plain | {"engine": plain["engine"] | {"providers": []}}
    assert plain["engine"] == dataclasses.asdict(ORT)
    assert (plain["gate"], plain["verdict"], plain["fault"]) == (str(STRICT), "same", "")
    assert (plain["max_abs"], plain["label_agreement"], plain["pictures"]) == (3.2e-5, 0.9997, 8)
    failed = plain_row(EngineRow(ORT, None, None, "no", verdict="FAILS"))
    assert failed == {"engine": plain["engine"], "gate": None, "verdict": "FAILS", "fault": "no"}


def test_an_engine_has_a_name_for_sentences() -> None:
    assert engine_name(ORT) == "ONNX Runtime 1.31.1 on cpu in fp32"
