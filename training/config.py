"""Everything that decides a training run, as one validated value."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w

from segship.runtime.card import MAX_TILE_OVERLAP, Network
from segship.runtime.errors import TrainingError
from segship.runtime.files import write_text
from segship.runtime.preprocess import MAX_SIDE_PX, Interpolation, Resize
from segship.runtime.strict import parse
from segship.training.augment import PRESETS, AugmentConfig
from segship.training.data import DataOptions
from segship.training.losses import LossConfig, parse_terms
from segship.training.optimisation import OptimizerConfig

Precision = Literal["fp32", "bf16", "fp16"]
Unit = Literal["epochs", "steps"]

MAX_DEPTH: Final = 8


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
        resize: how pictures are brought to ``size``: ``stretch``, ``letterbox`` or ``pad``; see
            :class:`segship.runtime.preprocess.Preprocess`. Added pixels are ``fill``, and count in no loss or score.
        fill: value of the pixels that the latter two add, in the pictures' own depth.
        interpolation: how pictures are resized: ``linear_exact`` in their own integers, or ``linear_float`` as a graph
            that is exported with ``--frame`` does it.
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
    resize: Resize = "stretch"
    fill: int = 0
    interpolation: Interpolation = "linear_exact"
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
        for name in ("epochs", "batch_size", "validate_every", "workers", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}; expected at least 1")
        for name in ("patience", "seed", "cache_mb"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("size", "crop"):
            side = getattr(self, name)
            if side is not None and not all(1 <= length <= MAX_SIDE_PX for length in side):
                raise TrainingError(f"{name} is {side[0]}×{side[1]}; expected 1…{MAX_SIDE_PX} pixels a side")
        if self.size and self.crop:
            raise TrainingError("size and crop are both given; a run trains on whole pictures or on crops of them")
        if self.crop and self.resize != "stretch":
            raise TrainingError(
                f"crop is given and resize is {self.resize}, but crops are cut at the pictures' own resolution; leave "
                "one of them out"
            )
        if self.fill and self.resize == "stretch":
            raise TrainingError(
                f"fill is {self.fill} and resize is stretch, which adds nothing to fill; take letterbox or pad"
            )
        if not 0 <= self.rare_crops <= 1:
            raise TrainingError(f"rare_crops is {self.rare_crops}; expected 0…1")
        if not 0 <= self.tile_overlap <= MAX_TILE_OVERLAP:
            raise TrainingError(f"tile_overlap is {self.tile_overlap}; expected 0…{MAX_TILE_OVERLAP}")

    @property
    def binary(self) -> bool:
        """Whether the network has one logit, which the losses on one logit ask for."""
        return "bce" in parse_terms(self.loss.terms)


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """Check plain values and make a configuration of them.

    In the table ``augment``, ``preset`` names where the other knobs start from.

    Raises:
        TrainingError: naming the key, its value and what was expected.
    """
    _check_plain(values, "configuration")
    knobs = values.get("augment")
    if isinstance(knobs, Mapping) and "preset" in knobs:
        own = {name: value for name, value in knobs.items() if name != "preset"}
        values = {**values, "augment": dataclasses.asdict(_preset(knobs["preset"])) | own}
    return parse(TrainConfig, values, "configuration", TrainingError)


def anchored(config: TrainConfig) -> TrainConfig:
    """Return a configuration whose files are named from the root, so that a run can go on from any folder."""
    kind, _, place = config.data.partition(":")
    images, init = config.data_options.images, config.init
    is_file = place and kind != "demo" and Path(place).exists()  # of the demo it is a variant
    return dataclasses.replace(
        config,
        data=f"{kind}:{Path(place).absolute()}" if is_file else config.data,
        data_options=dataclasses.replace(config.data_options, images=images and images.absolute()),
        init=init and init.absolute(),
    )


def write_config(path: Path, config: TrainConfig) -> None:
    """Write a configuration as TOML, enough to repeat the run.

    Raises:
        TrainingError: if it names a file whose name is no Unicode, which TOML cannot hold.
        OutputError: if it cannot be written.
    """
    try:
        write_text(path, tomli_w.dumps(_plain(dataclasses.asdict(config))))
    except UnicodeEncodeError as error:
        line = error.object[: error.end].rpartition("\n")[2]
        raise TrainingError(
            f"{path} cannot be written: a name in {line!a} is no Unicode, as TOML is; rename that file or folder"
        ) from error


def _plain(value: Any) -> Any:
    """Turn a configuration's values into those that TOML knows; what is None is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _preset(name: object) -> AugmentConfig:
    if not isinstance(name, str) or name not in PRESETS:
        raise TrainingError(f"augment.preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _check_plain(value: object, where: str, depth: int = 0) -> None:
    """Refuse what no configuration has and what even a message about it would stumble over."""
    if depth > MAX_DEPTH:
        raise TrainingError(f"{where} lies {depth} tables deep; expected at most {MAX_DEPTH}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TrainingError(f"{where} is an integer of {value.bit_length()} bits; expected one that 64 bits hold")
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_plain(item, f"{where}.{key}", depth + 1)
