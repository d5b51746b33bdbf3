import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.certificate import Certificate
from segship.runtime.compare import Expected, gap_map
from segship.runtime.errors import ModelError
from segship.runtime.golden import Example, read_golden, write_golden
from segship.runtime.labels import labels_from_logits
from segship.runtime.preprocess import Preprocess
from segship.runtime.processing import Stages

FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CARD = ModelCard(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), Preprocess((8, 12)))


def _example(card: ModelCard, seed: int = 0, picture_size: tuple[int, int] = (10, 9)) -> Example:
    rng = np.random.default_rng(seed)
    form = card.preprocess
    decoded = rng.integers(0, 255, (*(card.frame or picture_size), form.channels), form.depth)
    size = picture_size if card.tile_overlap is not None else card.frame or form.size
    logits = rng.normal(size=(card.num_logits, *size)).astype(np.float32)
    whole = card.frame is None and card.tile_overlap is None
    resized = form.geometry(decoded) if whole else None
    normalised = form.normalise(resized) if resized is not None else None
    expected = Expected(
        Stages(decoded, resized, normalised),
        None if card.head == "labels" else logits,
        labels_from_logits(logits, size, card),
        gap_map(logits, size, card),
    )
    return Example(f"picture {seed}.png", bytes([seed]) * 5 if seed else b"", expected)


def _change(card: ModelCard, **form: Any) -> ModelCard:
    return dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, **form))


CARDS = {
    "logits": CARD,
    "labels": dataclasses.replace(CARD, head="labels", output_name="labels"),
    "binary": dataclasses.replace(CARD, class_names=("x", "y"), palette=((0, 0, 0), (9, 9, 9)), task="binary"),
    "tiles": dataclasses.replace(CARD, tile_overlap=0.5),
    "frame": dataclasses.replace(CARD, input_form="pixels", frame=(20, 30)),
    "grey16": _change(CARD, channels=1, depth="uint16", color_order="grey", mean=(0.5,), std=(0.2,)),
    "float": _change(CARD, interpolation="linear_float"),
    "many": dataclasses.replace(
        CARD,
        class_names=tuple(map(str, range(300))),
        palette=((0, 0, 0),) * 300,
        ignore_index=65535,
    ),
}


@pytest.mark.parametrize("kind", CARDS)
def test_what_is_written_is_read_back(tmp_path: Path, kind: str) -> None:
    card = CARDS[kind]
    path = tmp_path / "golden.npz"
    written = [_example(card, seed) for seed in range(3)]
    write_golden(path, card, "ab" * 32, iter(written))
    golden = read_golden(path)
    assert golden.content_sha256 == "ab" * 32
    assert golden.names == tuple(example.name for example in written)
    found = list(golden.examples(card))
    assert [(example.name, example.file) for example in found] == [(each.name, each.file) for each in written]
    for one, other in zip(found, written, strict=True):
        _assert_equal(one.expected.stages.decoded, other.expected.stages.decoded)
        _assert_equal(one.expected.stages.resized, other.expected.stages.resized)
        _assert_equal(one.expected.stages.normalised, other.expected.stages.normalised)
        _assert_equal(one.expected.logits, other.expected.logits)
        _assert_equal(one.expected.labels, other.expected.labels)
        assert ((one.expected.gap <= 1) == (other.expected.gap <= 1)).all()


def _assert_equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> None:
    if one is None or other is None:
        assert one is other
    else:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_reference_and_its_versions_are_kept(tmp_path: Path) -> None:
    certificate = Certificate("ab", "PyTorch 2.13.0 on cpu", "3 random", 1e-4, 1e-3, ())
    source = dataclasses.replace(CARD.provenance, versions={"torch": "2.13.0"})
    write_golden(tmp_path / "g.npz", dataclasses.replace(CARD, certificate=certificate, provenance=source), "", [])
    golden = read_golden(tmp_path / "g.npz")
    assert (golden.reference, golden.versions) == ("PyTorch 2.13.0 on cpu", {"torch": "2.13.0"})


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    example = _example(CARD, 1)
    write_golden(tmp_path / "g.npz", CARD, "ab", [example])
    with np.load(tmp_path / "g.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["000/logits"], example.expected.logits)
        assert arrays["000/file"].tobytes() == example.file
        assert json.loads(str(arrays["about"]))["names"] == [example.name]


def test_the_same_content_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one.npz", "other.npz"):
        write_golden(tmp_path / name, CARD, "ab", [_example(CARD)])
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


@FEW
@given(
    hnp.arrays(
        np.float32,
        CARD.preprocess.size,
        elements=st.floats(0, 3, width=32) | st.floats(np.float32(0.999), np.float32(1.001), width=32),
    )
)
def test_a_near_tie_stays_one_and_nothing_else_becomes_one(tmp_path: Path, gap: NDArray[np.float32]) -> None:
    example = _example(CARD)
    example = dataclasses.replace(example, expected=dataclasses.replace(example.expected, gap=gap))
    write_golden(tmp_path / "g.npz", CARD, "ab", [example])
    (found,) = read_golden(tmp_path / "g.npz").examples(CARD)
    assert ((found.expected.gap <= 1) == (gap <= 1)).all()
    np.testing.assert_allclose(found.expected.gap, gap, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gap", [np.inf, 1e30, 65505.0])
def test_a_large_gap_is_capped(tmp_path: Path, gap: float) -> None:
    example = _example(CARD)
    expected = dataclasses.replace(example.expected, gap=np.full(CARD.preprocess.size, gap, np.float32))
    write_golden(tmp_path / "g.npz", CARD, "ab", [dataclasses.replace(example, expected=expected)])
    (found,) = read_golden(tmp_path / "g.npz").examples(CARD)
    assert (found.expected.gap == 16).all()


def test_a_missing_file_and_one_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the golden file .*g\.npz: No such file"):
        read_golden(tmp_path / "g.npz")
    (tmp_path / "g.npz").write_bytes(b"text" * 99)
    with pytest.raises(ModelError, match=r"g\.npz is no golden file of seg-export"):
        read_golden(tmp_path / "g.npz")
    np.savez(tmp_path / "g.npz", other=np.zeros(3))
    with pytest.raises(ModelError, match=r"no golden file of seg-export.*about"):
        read_golden(tmp_path / "g.npz")


def _with(path: Path, **changes: Any) -> Path:
    """Write a golden file some of whose arrays are others, or bytes of any kind; None: left out."""
    write_golden(path, CARD, "ab", [_example(CARD)])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            key = name.removesuffix(".npy").removeprefix("000/")
            if key not in changes:
                archive.writestr(name, content)
            elif isinstance(changes[key], bytes):
                archive.writestr(name, changes[key])
            elif changes[key] is not None:
                with archive.open(name, "w") as member:
                    np.lib.format.write_array(member, np.asarray(changes[key]), allow_pickle=True)
    return path


ABOUT = {"format_version": 1, "content_sha256": "ab", "reference": "", "versions": {}, "names": ["a"]}


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (ABOUT | {"format_version": 2}, "has format version 2; this segship reads up to 1; upgrade"),
        (ABOUT | {"more": 1}, "unknown key 'more'"),
        (ABOUT | {"names": "a"}, "names is 'a'"),
        (ABOUT | {"names": ["a\x1b[2J"]}, "its names are no plain text"),
        ({}, "lacks content_sha256"),
        ([], "expected an object"),
        ("x", "expected an object"),
    ],
)
def test_a_header_that_says_something_else_is_refused(tmp_path: Path, about: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_golden(_with(tmp_path / "g.npz", about=np.array(json.dumps(about))))


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for about in (np.array("{"), np.array("[" * 100_000), np.array(3.0), np.zeros(0), np.array("")):
        with pytest.raises(ModelError, match=r"no golden file|expected an object"):
            read_golden(_with(tmp_path / "g.npz", about=about))


def _header(shape: str, dtype: str = "<f4", *, fortran: bool = False) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoded": None}, "decoded"),
        ({"labels": None}, "labels"),
        ({"logits": None}, "logits"),
        ({"logits": np.zeros((3, 8, 12))}, r"logits is .* float64; expected \(3, 8, 12\) float32"),
        ({"logits": np.zeros((3, 8, 11), np.float32)}, r"logits is \(3, 8, 11\)"),
        ({"labels": np.full((8, 12), 3, np.uint8)}, "the label 3 is none of 3 classes"),
        ({"labels": np.zeros((12, 8), np.uint8)}, r"labels is \(12, 8\)"),
        ({"decoded": np.zeros((10, 9, 3), np.uint16)}, r"decoded is \(10, 9, 3\) uint16; expected .* uint8"),
        ({"decoded": np.zeros((0, 9, 3), np.uint8)}, "decoded is"),
        ({"decoded": np.zeros((10, 9), np.uint8)}, r"decoded is \(10, 9\)"),
        ({"normalised": np.zeros((1, 3, 8, 13), np.float32)}, "normalised is"),
        ({"gap": np.zeros((8, 12), np.float32)}, "gap is"),
        ({"file": np.zeros((2, 2), np.uint8)}, "file is"),
        ({"labels": np.array([{"an": "object"}], object)}, "does not hold the numbers"),
        ({"logits": np.zeros((3, 8, 12), ">f4")}, "does not hold the numbers"),
        ({"logits": np.zeros((3, 8, 12), np.float32, order="F").transpose(0, 2, 1)}, "logits"),
        ({"logits": _header("(3, 8, 12)", fortran=True) + bytes(4 * 288)}, "does not hold the numbers"),
        ({"logits": _header("(3, 8, 12)") + bytes(7)}, "does not hold the numbers"),
        ({"logits": _header("(1000000, 1000000, 1000000)")}, "does not hold the numbers"),
        ({"logits": _header("(-3, -8, 12)") + bytes(4 * 288)}, "no golden file"),
        ({"logits": _header("(3, 8, 12)", "|O") + bytes(8 * 288)}, "does not hold the numbers"),
        ({"logits": _header("(" * 900 + ")" * 900)}, "no golden file"),
        ({"logits": _header("__import__('os')")}, "no golden file"),
        ({"logits": b"\x93NUMPY\x03\x00" + bytes(100)}, "unknown header"),
        ({"logits": b""}, "no golden file"),
        ({"logits": bytes(1 << 20)}, r"logits has 1048576 bytes; at most 3328 are read"),
    ],
)
def test_arrays_that_are_not_the_cards_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = _with(tmp_path / "g.npz", **changes)
    with pytest.raises(ModelError, match=words) as caught:
        list(read_golden(path).examples(CARD))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.runtime.golden._MAX_ARRAY_BYTES", 1 << 16)
    path = _with(tmp_path / "g.npz", file=np.zeros(1 << 20, np.uint8))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ModelError, match=r"file has 1048704 bytes; at most 65536 are read"):
        list(read_golden(path).examples(CARD))


@pytest.fixture(scope="module")
def golden_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("golden") / "g.npz"
    write_golden(path, CARD, "ab", [_example(CARD, 1)])
    return path.read_bytes()


@FEW
@given(st.data())
def test_a_golden_file_with_changed_bytes_is_a_model_error_or_read(
    tmp_path: Path, golden_bytes: bytes, data: st.DataObject
) -> None:
    places = st.integers(0, len(golden_bytes) - 1) | st.integers(len(golden_bytes) - 700, len(golden_bytes) - 1)
    changed = bytearray(golden_bytes)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        changed[place] = value
    path = tmp_path / "changed.npz"
    path.write_bytes(changed[: data.draw(st.sampled_from([len(changed), len(changed) // 2]))])
    outcome = _read(path)
    if isinstance(outcome, ModelError):
        assert str(path) in str(outcome)
        assert len(str(outcome).splitlines()) == 1
    else:
        assert len(outcome) <= 1


def _read(path: Path) -> list[Example] | ModelError:
    try:
        return list(read_golden(path).examples(CARD))
    except ModelError as error:
        return error


def test_a_golden_file_that_could_not_be_finished_is_not_left(tmp_path: Path) -> None:
    def examples() -> Iterator[Example]:
        yield _example(CARD)
        raise ModelError("the second one failed")

    with pytest.raises(ModelError, match="the second one failed"):
        write_golden(tmp_path / "g.npz", CARD, "ab", examples())
    assert list(tmp_path.iterdir()) == []
