from pathlib import Path
from typing import Any

import pytest

from segship.runtime.errors import SegshipError
from segship.training.settings import merged, read_config, read_text, setting


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'data = "caf\xe9"')
    for name in ("none.toml", ".", "latin.toml"):
        _refuses(lambda name=name: read_text(tmp_path / name), "cannot be read as a configuration")


@pytest.mark.parametrize(
    "text",
    ["epochs =", "epochs = 1\nepochs = 2", "epochs = " + "1" * 5000, "drops = " + "[" * 9000, "a = " + "{b = " * 9000],
    ids=["no value", "twice", "thousands of digits", "thousands of lists", "thousands of tables"],
)
def test_what_is_no_toml_is_an_error_that_names_its_file(text: str) -> None:
    _refuses(lambda: read_config(text, "some.toml"), r"some\.toml is no valid TOML")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("epochs=3", "epochs", 3),
        (" optimizer.ema = 0.999 ", "optimizer.ema", 0.999),
        ("size=[48, 64]", "size", [48, 64]),
        ("augment={preset = 'none'}", "augment", {"preset": "none"}),
        ("tensorboard=true", "tensorboard", True),
        ("data='demo:grey8'", "data", "demo:grey8"),
        ("data=folder:a=b", "data", "folder:a=b"),
        ("network.arch=unet", "network.arch", "unet"),
        ("init=", "init", ""),
        ("init=2024-01-01", "init", "2024-01-01"),
        ("init=07:32:00", "init", "07:32:00"),
        ("data=1\nepochs = 2", "data", "1\nepochs = 2"),
        ("loss.class_weights=1,2,0.5", "loss.class_weights", "1,2,0.5"),
        ("epochs=" + "1" * 5000, "epochs", "1" * 5000),
        ("drops=" + "[" * 9000, "drops", "[" * 9000),
    ],
)
def test_a_setting_is_toml_or_else_a_plain_string(text: str, key: str, value: object) -> None:
    found = setting(text)
    assert found == (key, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize("text", ["", "epochs", "=3", ".=3", "optimizer.=3", ".ema=3", "optimizer..ema=3"])
def test_a_setting_without_key_or_value_is_refused(text: str) -> None:
    _refuses(lambda: setting(text), "expected key=value, such as")


def test_settings_replace_values_along_their_path_and_nothing_else() -> None:
    values = {"epochs": 3, "optimizer": {"name": "sgd", "ema": 0.5}}
    table = {"terms": "ce"}
    found = merged(values, {"optimizer.ema": 0.9, "network.options.base_channels": 8, "loss": table, "loss.ohem": 0.7})
    assert found == {
        "epochs": 3,
        "optimizer": {"name": "sgd", "ema": 0.9},
        "network": {"options": {"base_channels": 8}},
        "loss": {"terms": "ce", "ohem": 0.7},
    }
    assert values == {"epochs": 3, "optimizer": {"name": "sgd", "ema": 0.5}}
    assert table == {"terms": "ce"}


def test_of_settings_for_one_key_the_last_one_counts() -> None:
    assert merged({}, {"optimizer": {"ema": 0.5, "clip": 1.0}, "optimizer.ema": 0.9})["optimizer"]["ema"] == 0.9
    assert merged({}, {"optimizer.ema": 0.9, "optimizer": {"clip": 1.0}})["optimizer"] == {"clip": 1.0}


@pytest.mark.parametrize("values", [{"optimizer": "sgd"}, {"optimizer": [1]}, {"optimizer": {"name": 5}}])
def test_a_setting_cannot_lead_through_a_value(values: dict[str, Any]) -> None:
    _refuses(
        lambda: merged(values, {"optimizer.name.first": 3}), r"optimizer\.name\.first cannot be set: \w+ is a value"
    )


def _refuses(call: Any, words: str) -> None:
    with pytest.raises(SegshipError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
