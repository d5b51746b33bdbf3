import click
import pytest

from segship.runtime.backends.options import EngineOptions
from segship.runtime.knobs import Knobs, describe_knobs, read_knobs
from segship.runtime.outputs import OutputOptions
from segship.runtime.postprocess import PostProcess


def test_nothing_said_is_the_defaults() -> None:
    assert read_knobs([]) == Knobs(EngineOptions(), PostProcess(), OutputOptions())
    assert read_knobs([], threads=None, alpha=None) == Knobs()


def test_a_key_goes_to_what_it_is_a_field_of() -> None:
    knobs = read_knobs(["threads=3", " open_px = 2 ", "contours=coco", "cache=/tmp/a=b"])
    assert knobs.engine == EngineOptions(threads=3, cache="/tmp/a=b")
    assert knobs.post == PostProcess(open_px=2)
    assert knobs.outputs == OutputOptions(contours="coco")


@pytest.mark.parametrize("word", ["true", "ON", "Yes"])
def test_a_switch_is_turned_on_by_words(word: str) -> None:
    assert read_knobs([f"tf32={word}"]).engine.tf32
    assert not read_knobs([f"tf32={word}", "tf32=off"]).engine.tf32


def test_a_number_may_be_whole_where_a_fraction_may_stand() -> None:
    assert read_knobs(["alpha=1"]).outputs.alpha == 1
    assert read_knobs(["alpha=.25"]).outputs.alpha == 0.25


def test_of_one_key_the_last_counts_and_an_option_of_its_own_before_all() -> None:
    assert read_knobs(["threads=3", "threads=4"]).engine.threads == 4
    assert read_knobs(["threads=3", "alpha=0.1"], threads=5, alpha=None).engine.threads == 5
    assert read_knobs(["alpha=0.1"], alpha=None).outputs.alpha == 0.1
    assert read_knobs(["min_area_px=9"], min_area_px=0).post.min_area_px == 0


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("alpha", "'alpha': expected KEY=VALUE, with one of the keys threads, "),
        ("", "'': expected KEY=VALUE"),
        ("colour=red", "'colour=red': expected KEY=VALUE"),
        ("foreground=1", "'foreground=1': expected KEY=VALUE"),
        ("alpha=much", "alpha is 'much'; expected float"),
        ("alpha=nan", "alpha is 'nan'; expected float"),
        ("alpha=7", "alpha is 7.0; expected 0…1"),
        ("threads=2.5", "threads is '2.5'; expected int"),
        ("threads=0", "threads is 0; expected 1 or more"),
        ("min_area_px=-1", "min_area_px is -1; expected 0 or more"),
        ("legend=maybe", "legend is 'maybe'; expected bool"),
        ("precision=fp16", "precision is 'fp16'; expected one of file, engine"),
        ("cache=", "cache is empty; expected the path of a folder"),
    ],
)
def test_what_does_not_fit_says_what_would(pair: str, words: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read_knobs([pair])
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_the_list_names_every_key_with_what_it_may_be_and_its_default() -> None:
    lines = describe_knobs().splitlines()
    assert "threads=int  [default: by the engine]" in lines
    assert "precision=file | engine  [default: file]" in lines
    assert "graph_optimization=none | basic | extended | all  [default: by the engine]" in lines
    assert "alpha=float  [default: 0.5]" in lines
    for line in lines:  # what is listed is taken
        key, what = line.split("  ")[0].split("=")
        value = {"int": "3", "float": "0.5", "bool": "yes", "str": "text"}.get(what, what.split(" | ")[0])
        assert read_knobs([f"{key}={value}"]) is not None
