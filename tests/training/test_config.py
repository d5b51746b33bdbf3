import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.runtime.card import Network
from segship.runtime.errors import OutputError, SegshipError
from segship.training.augment import PRESETS, AugmentConfig
from segship.training.config import TrainConfig, anchored, build_config, write_config
from segship.training.data import DataOptions
from segship.training.losses import LossConfig
from segship.training.optimisation import OptimizerConfig
from segship.training.settings import merged, read_config, read_text, setting

LEAST = {"data": "demo", "network": {"arch": "unet"}}

TEXTS = st.text(max_size=12)
PATHS = TEXTS.map(Path)
SHARES = st.floats(0, 1)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
COUNTS = st.integers(1, 2**63 - 1)
NUMBERS = st.integers(0, 2**63 - 1)
SIZES = st.tuples(st.integers(1, 16384), st.integers(1, 16384))
FIELDS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Network: {
        "arch": TEXTS,
        "options": st.dictionaries(TEXTS, st.integers(-(2**63), 2**63 - 1) | TEXTS, max_size=3),
    },
    DataOptions: {
        "images": st.none() | PATHS,
        "val_fraction": st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        "split_seed": NUMBERS,
        "ignore": st.lists(st.integers(-5, 300), max_size=3).map(tuple),
    },
    LossConfig: {
        "terms": st.sampled_from(["ce", "0.25*ce+dice", "bce"]),
        "class_weights": TEXTS,
        "ohem": SHARES,
        "ohem_min_share": st.floats(0, 1, exclude_min=True),
        "focal_gamma": st.floats(0, allow_infinity=False),
        "label_smoothing": BELOW_ONE,
        "output_weights": st.lists(st.floats(0.1, 1e300), max_size=3).map(tuple),
    },
    AugmentConfig: {
        **{field.name: SHARES for field in dataclasses.fields(AugmentConfig)},
        "scale": st.tuples(st.floats(0.1, 1), st.floats(1, 10)),
        "blur_sigma": st.tuples(st.floats(0.1, 1), st.floats(1, 20)),
    },
    OptimizerConfig: {
        "name": st.sampled_from(["adamw", "adam", "sgd"]),
        "learning_rate": st.floats(0, 3e38, exclude_min=True),
        "weight_decay": st.floats(0, allow_infinity=False),
        "momentum": BELOW_ONE,
        "schedule": st.sampled_from(["cosine", "poly", "step", "one-cycle"]),
        "warm_up": BELOW_ONE,
        "power": st.floats(0, allow_infinity=False),
        "drops": st.lists(BELOW_ONE, max_size=3).map(tuple),
        "gamma": BELOW_ONE,
        "clip": st.floats(0, allow_infinity=False),
        "accumulate": COUNTS,
        "ema": BELOW_ONE,
    },
}
FIELDS[TrainConfig] = {
    "data": TEXTS,
    "network": st.builds(Network, **FIELDS[Network]),
    "data_options": st.builds(DataOptions, **FIELDS[DataOptions]),
    "size": st.none() | SIZES,
    "resize": st.sampled_from(["stretch", "letterbox", "pad"]),
    "fill": st.integers(0, 65535),
    "interpolation": st.sampled_from(["linear_exact", "linear_float"]),
    "crop": st.none() | SIZES,
    "rare_crops": SHARES,
    "tile_overlap": st.floats(0, 0.9),
    "epochs": COUNTS,
    "batch_size": COUNTS,
    "loss": st.builds(LossConfig, **FIELDS[LossConfig]),
    "augment": st.builds(AugmentConfig, **FIELDS[AugmentConfig]),
    "optimizer": st.builds(OptimizerConfig, **FIELDS[OptimizerConfig]),
    "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "compile": st.booleans(),
    "validate_every": COUNTS,
    "validate_unit": st.sampled_from(["epochs", "steps"]),
    "patience": NUMBERS,
    "init": st.none() | PATHS,
    "seed": NUMBERS,
    "device": TEXTS,
    "workers": st.none() | COUNTS,
    "cache_mb": NUMBERS,
    "keep": COUNTS,
    "tensorboard": st.booleans(),
}


@st.composite
def _configs(draw: st.DrawFn) -> TrainConfig:
    values = draw(st.fixed_dictionaries(FIELDS[TrainConfig]))
    if values["crop"]:
        values |= {"size": None, "resize": "stretch"}
    return TrainConfig(**values | ({"fill": 0} if values["resize"] == "stretch" else {}))


def _read(path: Path) -> TrainConfig:
    return build_config(read_config(read_text(path), str(path)))


@pytest.mark.parametrize("kind", FIELDS)
def test_the_test_below_varies_every_field(kind: type) -> None:
    assert set(FIELDS[kind]) == {field.name for field in dataclasses.fields(kind)}


@given(config=_configs())
def test_what_is_written_is_read_back_exactly(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "config.toml"
    write_config(path, config)
    assert repr(_read(path)) == repr(config)  # tells 1 from 1.0, and 0.0 from -0.0, too


def test_the_defaults_are_those_of_a_file_that_says_no_more_than_it_must(tmp_path: Path) -> None:
    path = tmp_path / "least.toml"
    path.write_text('data = "demo"\n[network]\narch = "unet"\n')
    assert _read(path) == TrainConfig("demo", Network("unet"))


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b'\xef\xbb\xbfdata = "demo"\r\n[network]\r\narch = "unet"\r\n')
    assert _read(path) == TrainConfig("demo", Network("unet"))


def test_a_file_that_is_too_long_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text("#" * (3 << 20))
    _refuses(lambda: _read(path), r"long\.toml has 1048577 characters; expected a configuration of at most 1 MiB")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 0", "epochs is 0; expected at least 1"),
        ("batch_size = -1", "batch_size is -1; expected at least 1"),
        ("validate_every = 0", "validate_every is 0; expected at least 1"),
        ("keep = 0", "keep is 0; expected at least 1"),
        ("workers = 0", "workers is 0; expected at least 1"),
        ("seed = -1", "seed is -1; expected 0 or more"),
        ("patience = -1", "patience is -1; expected 0 or more"),
        ("cache_mb = -1", "cache_mb is -1; expected 0 or more"),
        ("size = [0, 5]", "size is 0×5; expected 1…16384 pixels a side"),
        ("crop = [5, 20000]", "crop is 5×20000; expected 1…16384 pixels a side"),
        ("size = [5, 5]\ncrop = [5, 5]", "size and crop are both given"),
        ('crop = [5, 5]\nresize = "pad"', "crop is given and resize is pad, but crops are cut at the pictures' own"),
        ("fill = 114", "fill is 114 and resize is stretch, which adds nothing to fill"),
        ('resize = "crop"', "resize is 'crop'; expected one of stretch, letterbox, pad"),
        ("rare_crops = 1.5", "rare_crops is 1.5; expected 0…1"),
        ("tile_overlap = 0.95", "tile_overlap is 0.95; expected 0…0.9"),
        ("epochs = 2.0", r"configuration\.epochs is '2.0'; expected int"),
        ("epochs = true", r"configuration\.epochs is 'True'; expected int"),
        ("epochs = 2024-01-01", r"configuration\.epochs is '2024-01-01'; expected int"),
        ("rare_crops = nan", r"configuration\.rare_crops is 'nan'; expected float"),
        ("optimizer.learning_rate = inf", r"configuration\.optimizer\.learning_rate is 'inf'; expected float"),
        ("loss.output_weights = [1, nan]", r"configuration\.loss\.output_weights\[1\] is 'nan'; expected float"),
        ("tensorboard = 1", r"configuration\.tensorboard is '1'; expected bool"),
        ("data = 5", r"configuration\.data is '5'; expected str"),
        ("init = 5", r"configuration\.init is '5'; expected Path"),
        ("size = [1, 2, 3]", r"configuration\.size has 3 values; expected 2"),
        ("size = '48x64'", r"configuration\.size is '48x64'; expected a list of int, int"),
        ("precision = 'fp8'", r"configuration\.precision is 'fp8'; expected one of fp32, bf16, fp16"),
        ("precision = [1]", r"configuration\.precision is \[1\]; expected one of fp32, bf16, fp16"),
        ("interpolation = 'cubic'", r"interpolation is 'cubic'; expected one of linear_exact, linear_float"),
        ("optimizer = 'sgd'", r"configuration\.optimizer is 'sgd'; expected an object"),
        ("optimiser.name = 'sgd'", "configuration has the unknown key 'optimiser'; known are data, network"),
        ("optimizer.lr = 0.1", r"configuration\.optimizer has the unknown key 'lr'; known are name, learning_rate"),
        ("network = {arch = 'unet', options = {x = 0.5}}", r"network\.options\.x is '0.5'; expected int or str"),
        ("augment.preset = 'heavy'", r"augment\.preset is 'heavy'; expected one of none, light, strong"),
        ("augment.preset = ['light']", r"augment\.preset is \['light'\]; expected one of none, light, strong"),
        ("augment.preset = 'light'\naugment.flop = 1", r"configuration\.augment has the unknown key 'flop'"),
        ("augment.flip = 2", "flip is 2.0; expected a number in 0…1"),
        ("loss.terms = 'mse'", "the loss 'mse' has no known term"),
        ("data_options.val_fraction = 1.0", "--val-fraction is 1.0; expected a number between 0 and 1"),
        ("seed = 0x" + "f" * 9000, r"configuration\.seed is an integer of 36000 bits; expected one that 64 bits hold"),
        ("epochs.x = [[9223372036854775808]]", r"configuration\.epochs\.x\.0\.0 is an integer of 64 bits"),
        ("epochs" + ".a" * 2000 + " = 1", "tables deep; expected at most 8"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_names_key_value_and_what_was_expected(text: str, words: str) -> None:
    _refuses(lambda: build_config(LEAST | read_config(text, "some.toml")), words)


@pytest.mark.parametrize("missing", LEAST)
def test_data_and_network_have_no_default(missing: str) -> None:
    values = {key: value for key, value in LEAST.items() if key != missing}
    _refuses(lambda: build_config(values), f"configuration lacks {missing}")


def test_a_binary_network_is_what_a_loss_on_one_logit_asks_for() -> None:
    assert build_config(LEAST | {"loss": {"terms": "0.5*bce+dice"}}).binary
    assert not build_config(LEAST | {"loss": {"terms": "ce+dice"}}).binary


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_where_the_other_knobs_start_from(name: str) -> None:
    values = LEAST | {"augment": {"preset": name, "noise": 0.3}}
    assert build_config(values).augment == dataclasses.replace(PRESETS[name], noise=0.3)
    assert values["augment"] == {"preset": name, "noise": 0.3}


def test_without_a_preset_knobs_start_from_their_defaults() -> None:
    assert build_config(LEAST | {"augment": {"noise": 0.3}}).augment == AugmentConfig(noise=0.3)
    assert build_config(LEAST).augment == PRESETS["light"]


def test_a_setting_of_thousands_of_tables_is_refused() -> None:
    key, value = setting("epochs" + ".a" * 2000 + "=1")
    _refuses(lambda: build_config(merged(LEAST, {key: value})), "tables deep; expected at most 8")


def test_anchored_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    options = DataOptions(images=Path("photos"))
    config = TrainConfig("folder:pictures", Network("unet"), options, init=Path("start.pth"))
    found = anchored(config)
    assert found.data == f"folder:{tmp_path / 'pictures'}"
    assert (found.data_options.images, found.init) == (tmp_path / "photos", tmp_path / "start.pth")
    assert dataclasses.replace(found, data=config.data, data_options=options, init=config.init) == config
    assert anchored(found) == found


@pytest.mark.parametrize("data", ["demo", "demo:grey8", "folder:none", "folder:"])
def test_what_names_no_file_is_not_anchored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grey8").mkdir()  # by chance called like one of the demo's variants
    config = TrainConfig(data, Network("unet"))
    assert anchored(config) == config


def test_a_name_that_is_no_unicode_cannot_be_written_and_leaves_nothing(tmp_path: Path) -> None:
    config = TrainConfig("folder:/data/stra\udcdfe", Network("unet"))
    _refuses(
        lambda: write_config(tmp_path / "config.toml", config),
        r"config\.toml cannot be written: a name in 'data = .*stra\\udcdf' is no Unicode.*rename",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_config(tmp_path / "file/config.toml", TrainConfig("demo", Network("unet")))


def _refuses(call: Any, words: str) -> None:
    with pytest.raises(SegshipError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
