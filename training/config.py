"""Everything that decides a training run, as one validated value and as TOML."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w

from segship.runtime.card import MAX_TILE_OVERLAP, Network
from segship.runtime.errors import TrainingError
from segship.runtime.files import write_text
from segship.runtime.strict import parse
from segship.training.augment import PRESETS, AugmentConfig
from segship.training.data import DataOptions
from segship.training.losses import LossConfig, parse_terms
from segship.training.optimisation import OptimizerConfig

Precision = Literal["fp32", "bf16", "fp16"]
Unit = Literal["epochs", "steps"]

MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        data: as ``--data`` takes it.
        network: architecture and its options.
        data_options: what the kind of dataset leaves to the user.
        size: (height, width) that whole pictures are brought to, in pixels; None: that of the first training picture.
        crop: (height, width) of the parts that are trained on at the pictures' own resolution, in place of ``size``.
            Validation and deployment then run tiled.
        rare_crops: share of the crops that are laid around a pixel of a class drawn by its rarity, in 0…1.
        tile_overlap: share by which the tiles overlap that a network trained on crops is used with.
        epochs: passes over the training part.
        batch_size: pictures a batch, over all devices together.
        loss: what is minimised.
        augment: how pictures vary.
        optimizer: how weights follow.
        precision: of the forward pass in training; validation is always float32.
        compile: let ``torch.compile`` make the training's forward pass faster.
        validate_every: epochs or steps between validations; the last step is validated in any case.
        validate_unit: ``epochs`` or ``steps``.
        patience: validations without a better mIoU after which the run ends; 0: it never ends early.
        init: file whose weights the network starts from.
        seed: of weights, order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        workers: threads that read pictures; None: by the number of cores.
        cache_mb: memory for pictures that are kept decoded, in MiB.
        keep: number of the last states that are kept in ``last/``, to resume from.
        tensorboard: write events for TensorBoard.
    """

    data: str
    network: Network
    data_options: DataOptions = field(default_factory=DataOptions)
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    rare_crops: float = 0.5
    tile_overlap: float = 0.25
    epochs: int = 20
    batch_size: int = 8
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = PRESETS["light"]
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = "fp32"
    compile: bool = False
    validate_every: int = 1
    validate_unit: Unit = "epochs"
    patience: int = 0
    init: Path | None = None
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    cache_mb: int = 2048
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            TrainingError: naming the value and what was expected.
        """
        for name in ("epochs", "batch_size", "validate_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("patience", "seed", "cache_mb"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("size", "crop"):
            side = getattr(self, name)
            if side is not None and min(side) < 1:
                raise TrainingError(f"{name} is {side[0]}×{side[1]}; expected at least one pixel")
        if self.size and self.crop:
            raise TrainingError("size and crop are both given; a run trains on whole pictures or on crops of them")
        if not 0 <= self.rare_crops <= 1:
            raise TrainingError(f"rare_crops is {self.rare_crops}; expected 0…1")
        if not 0 <= self.tile_overlap <= MAX_TILE_OVERLAP:
            raise TrainingError(f"tile_overlap is {self.tile_overlap}; expected 0…{MAX_TILE_OVERLAP}")

    @property
    def binary(self) -> bool:
        """Whether the network has one logit, which the losses on one logit ask for."""
        return "bce" in parse_terms(self.loss.terms)


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        TrainingError: if it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as a configuration ({error})") from error


def read_config(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML into plain values, not yet checked.

    Raises:
        TrainingError: if it is no TOML.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise TrainingError(f"{origin} has {len(text)} characters; expected a configuration of at most 1 MiB")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TrainingError(f"{origin} is no valid TOML ({error})") from error


def setting(text: str) -> tuple[str, Any]:
    """Parse ``key=value`` as ``--set`` takes it; the value is TOML, or else a plain string.

    Raises:
        TrainingError: if there is no ``=``.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        raise TrainingError(f"--set {text}: expected key=value, such as optimizer.ema=0.999")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with some replaced; keys lead into tables by dots (``optimizer.ema``).

    Raises:
        TrainingError: if a key leads through something that is no table.
    """
    result = _copy(values)
    for key, value in settings.items():
        table = result
        *path, name = key.split(".")
        for step in path:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise TrainingError(f"{key} cannot be set: {step} is a value, not a table")
        table[name] = value
    return result


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """Check plain values and make a configuration of them.

    In the table ``augment``, ``preset`` names where the other knobs start from.

    Raises:
        TrainingError: naming the key, its value and what was expected.
    """
    values = _copy(values)
    knobs = values.get("augment")
    if isinstance(knobs, dict) and "preset" in knobs:
        preset = knobs.pop("preset")
        if preset not in PRESETS:
            raise TrainingError(f"augment.preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        values["augment"] = dataclasses.asdict(PRESETS[preset]) | knobs
    return parse(TrainConfig, values, "configuration", TrainingError)


def write_config(path: Path, config: TrainConfig) -> None:
    """Write a configuration as TOML, enough to repeat the run."""
    write_text(path, tomli_w.dumps(_plain(dataclasses.asdict(config))))


def _plain(value: Any) -> Any:
    """Turn a configuration's values into those that TOML knows; what is None is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"the configuration holds {value}; expected finite numbers")
    return str(value) if isinstance(value, Path) else value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(item) if isinstance(item, Mapping) else item for key, item in values.items()}
