"""What a run trains, and what it leaves; how it survives is in test_run.py."""

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file

from segship.runtime.card import Network
from segship.runtime.errors import DatasetError, TrainingError
from segship.runtime.model_file import read_card
from segship.runtime.palettes import CAMVID
from segship.runtime.segmenter import Segmenter
from segship.training.augment import PRESETS
from segship.training.config import TrainConfig, build_config
from segship.training.data import DataOptions
from segship.training.distributed import World
from segship.training.evaluate import evaluate
from segship.training.gain_bias import GainBias
from segship.training.loader import Batch, Loader
from segship.training.losses import LossConfig, SegmentationLoss
from segship.training.metrics import ConfusionMatrix
from segship.training.optimisation import OptimizerConfig, learning_rate
from segship.training.progress import Progress
from segship.training.run import Run, TrainResult
from segship.training.settings import read_config
from segship.training.setup import make_network, set_up
from segship.training.state import deployable_tensors, states
from segship.training.trainer import earlier_run, train

SIZE = (32, 32)
TINY = Network("unet", {"base_channels": 4})
CPU = World(0, 1, torch.device("cpu"))

Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def tree(write_camvid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 40×56, so that validation has something to upscale."""
    return write_camvid(tmp_path_factory.mktemp("trainer") / "camvid", size=(40, 56))


@pytest.fixture(scope="module")
def configure(tree: Path) -> Configure:
    """Make the configuration of a tiny run."""
    config = TrainConfig(
        f"camvid:{tree}",
        TINY,
        size=SIZE,
        epochs=2,
        batch_size=2,
        optimizer=OptimizerConfig(learning_rate=0.01),
        device="cpu",
        workers=2,
    )
    return functools.partial(dataclasses.replace, config)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves: they take most of a short run's time."""
    for drawing in ("run.draw_curves", "scores_report.draw_confusion"):
        monkeypatch.setattr(f"segship.training.{drawing}", lambda *_: None)


class Listener(Progress):
    """Writes down what a run tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.losses: list[float] = []
        self.notes: list[str] = []

    def begin(self, what: str, steps: int) -> None:
        self.heard.append((what, steps))

    def advance(self, loss: float | None = None) -> None:
        self.heard.append(("advance", loss is not None))
        if loss is not None:
            self.losses.append(loss)

    def record(self, record: Any, *, is_best: bool) -> None:
        self.heard.append(("record", record.epoch, is_best))

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is over."""

    out: Path
    result: TrainResult
    listener: Listener

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny run with seed 0."""
    out, listener = tmp_path_factory.mktemp("run"), Listener()
    return Finished(out, train(configure(), out, listener), listener)


def _last_weights(out: Path) -> dict[str, torch.Tensor]:
    weights = deployable_tensors(load_file(states(out)[0]))
    assert weights is not None
    return weights


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_leaves_what_it_should_and_nothing_else(finished: Finished) -> None:
    files = sorted(str(path.relative_to(finished.out)) for path in finished.out.rglob("*") if path.is_file())
    assert files == [
        "best.safetensors",
        "config.toml",
        "confusion.png",
        "curves.png",
        "last/step_000000003.safetensors",
        "last/step_000000006.safetensors",
        "metrics.csv",
        "report.json",
        "samples/step_000000003.png",
        "samples/step_000000006.png",
    ]
    for name in (name for name in files if name.endswith(".png")):
        with PillowImage.open(finished.out / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert finished.result.checkpoint == finished.out / "best.safetensors"
    modes = {path.stat().st_mode for path in finished.out.rglob("*.*")}
    assert len(modes) == 1  # whoever may read one may read them all


def test_the_card_says_what_the_network_is_and_where_its_weights_come_from(finished: Finished) -> None:
    card = read_card(states(finished.out)[0])
    assert (card.class_names, card.palette, card.ignore_index) == (CAMVID.names, CAMVID.palette, 255)
    assert (card.network, card.head, card.preprocess.size) == (TINY, "logits", SIZE)
    origin = card.provenance
    assert (origin.dataset, origin.epoch) == ("camvid", 2)
    scores = finished.result.records[1].scores
    assert scores is not None
    assert origin.metrics == scores.summary()
    assert origin.versions["torch"] == torch.__version__
    assert str(finished.out) not in (finished.out / "best.safetensors").read_bytes().decode("latin-1")


@pytest.mark.usefixtures("undrawn")
def test_pictures_may_be_resized_without_rounding_and_the_card_says_so(
    configure: Configure, finished: Finished, tmp_path: Path
) -> None:
    config = configure(interpolation="linear_float")
    result = train(config, tmp_path, Progress())
    card = read_card(result.checkpoint)
    assert card.preprocess.interpolation == "linear_float"
    assert read_card(finished.result.checkpoint).preprocess.interpolation == "linear_exact"
    resized = card.preprocess.geometry(set_up(config, Progress()).split.val[0].image)
    assert resized.dtype == np.float32
    assert (resized % 1 != 0).any()
    assert not _same(_last_weights(tmp_path), _last_weights(finished.out))  # all else is the same, and so is the seed
    measured = evaluate(result.checkpoint, config.data, DataOptions(), "cpu", None, Progress())
    assert measured.matrix.scores().to_dict() == result.scores.to_dict()


def test_the_best_checkpoint_is_of_the_epoch_with_the_highest_miou(finished: Finished) -> None:
    mious = [float(row["miou"]) for row in finished.rows()]
    assert mious[0] != mious[1]
    best = 1 + int(np.argmax(mious))
    assert finished.result.best.epoch == best
    assert read_card(finished.out / "best.safetensors").provenance.epoch == best
    report = json.loads((finished.out / "report.json").read_text(encoding="utf-8"))
    assert report["facts"]["epoch"] == best
    assert report["totals"]["miou"] == finished.result.scores.miou


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Let validations hit so many of 40 pixels; no training would get better and worse on demand."""

    def prescribe(numbers: list[int]) -> None:
        remaining = iter(numbers)

        def measure(*_arguments: object) -> ConfusionMatrix:
            matrix = ConfusionMatrix(len(CAMVID), 255)
            matrix.add(np.zeros(40, np.uint8), np.arange(40) >= next(remaining))
            return matrix

        monkeypatch.setattr("segship.training.run.measure", measure)

    return prescribe


@pytest.mark.usefixtures("undrawn")
def test_the_best_epoch_is_the_first_of_the_highest_and_not_the_last(
    configure: Configure, tmp_path: Path, hits: Callable[[list[int]], None]
) -> None:
    hits([10, 30, 30, 20])
    listener = Listener()
    result = train(configure(epochs=4), tmp_path, listener)
    records = [heard for heard in listener.heard if heard[0] == "record"]
    assert records == [("record", 1, True), ("record", 2, True), ("record", 3, False), ("record", 4, False)]
    assert result.best.epoch == 2
    assert read_card(tmp_path / "best.safetensors").provenance.epoch == 2
    assert read_card(states(tmp_path)[0]).provenance.epoch == 4
    assert not _same(load_file(tmp_path / "best.safetensors"), _last_weights(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_a_run_ends_early_when_patience_does(
    configure: Configure, tmp_path: Path, hits: Callable[[list[int]], None]
) -> None:
    hits([10, 5, 20, 20, 19, 30])
    listener = Listener()
    result = train(configure(epochs=6, patience=2), tmp_path, listener)
    assert [record.epoch for record in result.records] == [1, 2, 3, 4, 5]
    assert result.best.epoch == 3
    assert listener.notes == ["ended early: 2 validations brought no better mIoU"]


@pytest.fixture
def plain_tree(tmp_path: Path) -> Path:
    """Pictures of dark and bright patches, a little noisy; bright is class 1, dark class 0."""
    rng = np.random.default_rng(2)
    for part, count in (("train", 20), ("val", 3)):
        for folder in (part, f"{part}annot"):
            (tmp_path / "plain" / folder).mkdir(parents=True)
        for number in range(count):
            ids = np.kron(rng.integers(0, 2, (4, 4), np.uint8), np.ones((8, 8), np.uint8))
            picture = 70 + 110 * ids[..., None].astype(int) + rng.integers(-40, 41, (32, 32, 3))
            PillowImage.fromarray(picture.astype(np.uint8)).save(tmp_path / f"plain/{part}/{number}.png")
            PillowImage.fromarray(ids).save(tmp_path / f"plain/{part}annot/{number}.png")
    return tmp_path / "plain"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_learns(configure: Configure, plain_tree: Path, tmp_path: Path, precision: str) -> None:
    settings = OptimizerConfig(learning_rate=0.02)
    config = configure(data=f"camvid:{plain_tree}", epochs=4, optimizer=settings, precision=precision)
    assert train(config, tmp_path / "run", Progress()).scores.pixel_accuracy > 0.95


@pytest.mark.usefixtures("undrawn")
def test_what_the_network_sees_and_what_it_is_told_are_varied_alike(
    configure: Configure, plain_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalise, loss = GainBias.forward, SegmentationLoss.__call__
    seen: list[torch.Tensor] = []
    agreement: list[float] = []

    def see(self: GainBias, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.mean(dim=1) > 125)
        return normalise(self, pixels)

    def told(self: SegmentationLoss, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        valid = labels != 255
        agreement.append(float(((labels == 1) == seen[-1])[valid].float().mean()))
        return loss(self, outputs, labels)

    monkeypatch.setattr(GainBias, "forward", see)
    monkeypatch.setattr(SegmentationLoss, "__call__", told)
    augment = dataclasses.replace(PRESETS["strong"], brightness=0, contrast=0, hue=0, blur=0, noise=0)
    train(configure(data=f"camvid:{plain_tree}", epochs=1, augment=augment), tmp_path / "run", Progress())
    assert min(agreement) > 0.9  # all but the edges of patches
    stored = {(np.asarray(PillowImage.open(path)) == 1).tobytes() for path in (plain_tree / "trainannot").iterdir()}
    pictures = [picture.numpy().tobytes() for batch in seen for picture in batch]
    assert len(set(pictures)) == 20
    assert not stored & set(pictures)


def test_the_scores_are_those_that_a_deployment_of_the_checkpoint_reaches(finished: Finished, tree: Path) -> None:
    matrix = ConfusionMatrix(len(CAMVID), 255)
    with Segmenter(finished.out / "best.safetensors", backend="torch", device="cpu") as segmenter:
        for path in sorted((tree / "val").iterdir()):
            with PillowImage.open(tree / "valannot" / path.name) as mask:
                truth = np.array(mask)
            truth[truth == 11] = 255
            matrix.add(truth, segmenter(path).labels)
        metrics = segmenter.card.provenance.metrics
    scores = matrix.scores()
    assert scores.summary() == metrics
    row = finished.rows()[finished.result.best.epoch - 1]
    for name, value in scores.summary().items():
        assert row[name] == f"{value:.6f}", name
    for name, value in zip(CAMVID.names, scores.iou, strict=True):
        assert row[f"IoU {name}"] == f"{value:.6f}", name


def test_progress_hears_of_every_step_picture_and_epoch(finished: Finished) -> None:
    def stretch(what: str, *, training: bool) -> list[tuple[Any, ...]]:
        return [(what, 3), *[("advance", training)] * 3]

    expected = stretch("reading the validation pictures", training=False)
    for epoch in (1, 2):
        expected += stretch(f"epoch {epoch}/2 training", training=True)
        expected += stretch(f"epoch {epoch}/2 validation", training=False)
        expected.append(("record", epoch, epoch == 1 or finished.result.best.epoch == 2))
    assert finished.listener.heard == expected


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_steps(finished: Finished) -> None:
    losses = finished.listener.losses
    means = [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    assert [record.train_loss for record in finished.result.records] == pytest.approx(means)


def test_a_bad_validation_mask_ends_the_run_before_it_trains_or_removes_an_earlier_one(
    write_camvid: Callable[..., Path], configure: Configure, tmp_path: Path
) -> None:
    root, earlier = write_camvid(tmp_path / "camvid"), tmp_path / "run/metrics.csv"
    earlier.parent.mkdir()
    earlier.touch()
    mask = max((root / "valannot").iterdir())
    PillowImage.new("L", (40, 32), 77).save(mask)
    listener = Listener()
    with pytest.raises(DatasetError, match=f"{mask.name}: label id 77 is outside the classes"):
        train(configure(data=f"camvid:{root}"), tmp_path / "run", listener)
    assert listener.losses == []
    assert earlier_run(tmp_path / "run") == [earlier]


@pytest.mark.usefixtures("undrawn")
def test_the_configuration_that_a_run_leaves_repeats_it_bit_for_bit(finished: Finished, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # whatever was drawn before
    config = build_config(read_config((finished.out / "config.toml").read_text(encoding="utf-8"), "config.toml"))
    result = train(config, tmp_path, Progress())
    assert _same(_last_weights(tmp_path), _last_weights(finished.out))
    assert read_card(tmp_path / "best.safetensors") == read_card(finished.out / "best.safetensors")
    assert [r.train_loss for r in result.records] == [r.train_loss for r in finished.result.records]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"augment": PRESETS["none"]},
        {"precision": "bf16"},
        {"loss": LossConfig("ce+dice")},
        {"loss": LossConfig(class_weights="auto")},
        {"optimizer": OptimizerConfig(learning_rate=0.01, weight_decay=0.5)},
        {"optimizer": OptimizerConfig(learning_rate=0.01, schedule="poly")},
        {"optimizer": OptimizerConfig(learning_rate=0.01, clip=0.01)},
        {"optimizer": OptimizerConfig(learning_rate=0.01, accumulate=3)},
        {"optimizer": OptimizerConfig(learning_rate=0.01, ema=0.5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_of_these_options_gives_other_weights(
    finished: Finished, configure: Configure, tmp_path: Path, change: dict[str, Any]
) -> None:
    result = train(configure(**change), tmp_path, Progress())
    assert not _same(_last_weights(tmp_path), _last_weights(finished.out))
    assert {tensor.dtype for tensor in _last_weights(tmp_path).values()} == {torch.float32, torch.int64}
    assert all(math.isfinite(record.train_loss) for record in result.records)


@pytest.mark.usefixtures("undrawn")
def test_a_network_with_several_outputs_trains_too(configure: Configure, tmp_path: Path) -> None:
    result = train(configure(network=Network("u2netp"), epochs=1, batch_size=3), tmp_path, Progress())
    assert read_card(result.checkpoint).network == Network("u2netp")
    assert result.best.train_loss > 7  # the sum over seven outputs


@pytest.fixture
def batches_and_run(configure: Configure, tmp_path: Path) -> Callable[..., tuple[list[Batch], Run]]:
    """Return two batches of three pictures, and a run that is about to take its first step."""

    def make(**changes: Any) -> tuple[list[Batch], Run]:
        settings = OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0)
        config = configure(optimizer=settings, augment=PRESETS["none"], batch_size=3, **changes)
        setup = set_up(config, Progress())
        with Loader(setup.split.train, setup.card.preprocess, None, workers=1, cache_mb=0) as loader:
            batches = list(loader.batches([[(0, 1, index) for index in part] for part in ((0, 1, 2), (3, 4, 5))]))
        return batches, Run(config, tmp_path, setup, make_network(config, setup.card, Progress()), CPU, Progress())

    return make


def _moved_by(run: Run, micro_batches: list[Batch]) -> torch.Tensor:
    """Return how far a step at a rate of 1 moves the weights, which is the gradient."""

    def weights() -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()])

    before = weights()
    run.step(micro_batches, 1.0)
    return before - weights()


def test_gradients_that_are_accumulated_are_the_mean_of_those_of_the_batches(
    batches_and_run: Callable[..., tuple[list[Batch], Run]],
) -> None:
    (first, second), run = batches_and_run()
    together = _moved_by(run, [first, second])
    _, run = batches_and_run()
    one = _moved_by(run, [first])
    _, run = batches_and_run()
    other = _moved_by(run, [second])
    assert not torch.allclose(one, other, atol=1e-3)
    torch.testing.assert_close(together, (one + other) / 2, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_a_step_takes_as_many_batches_as_are_accumulated(configure: Configure, tmp_path: Path) -> None:
    settings = OptimizerConfig(learning_rate=0.01, accumulate=2)
    listener = Listener()
    result = train(configure(batch_size=1, size=(40, 56), optimizer=settings), tmp_path, listener)
    assert [record.step for record in result.records] == [3, 6]
    assert len(listener.losses) == 6


@pytest.mark.usefixtures("undrawn")
def test_the_average_of_the_weights_is_what_is_validated_and_kept(
    configure: Configure, tree: Path, tmp_path: Path
) -> None:
    settings = OptimizerConfig(learning_rate=0.01, ema=0.5)
    result = train(configure(epochs=1, optimizer=settings), tmp_path, Progress())
    state, best = load_file(states(tmp_path)[0]), load_file(result.checkpoint)
    averages, weights = (
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in ("average.", "network.")
    )
    assert _same(best, averages)
    assert not _same(best, weights)
    measured = evaluate(result.checkpoint, f"camvid:{tree}", DataOptions(), "cpu", None, Progress())
    assert measured.matrix.scores().to_dict() == result.scores.to_dict()


@pytest.mark.usefixtures("undrawn")
def test_fp16_scales_its_gradients_and_keeps_the_scale_in_the_state(configure: Configure, tmp_path: Path) -> None:
    from safetensors import safe_open

    listener = Listener()
    train(configure(epochs=1, precision="fp16"), tmp_path, listener)
    assert all(math.isfinite(loss) for loss in listener.losses)
    with safe_open(states(tmp_path)[0], "pt") as file:
        scaler = json.loads(file.metadata()["progress"])["position"]["scaler"]
    assert scaler["scale"] > 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what its compiler imports
def test_a_compiled_network_trains_to_the_same_weights_under_the_same_names(
    finished: Finished, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PyTorch's tracer and without its code generator, which takes a C++ compiler and a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    result = train(configure(compile=True), tmp_path, Progress())
    ours, theirs = _last_weights(tmp_path), _last_weights(finished.out)
    assert ours.keys() == theirs.keys()
    losses = [record.train_loss for record in finished.result.records]
    assert [record.train_loss for record in result.records] == pytest.approx(losses, abs=1e-3)


@pytest.mark.usefixtures("undrawn")
def test_validation_comes_as_often_as_it_was_asked_for_and_last(configure: Configure, tmp_path: Path) -> None:
    result = train(configure(epochs=3, validate_every=2), tmp_path, Progress())
    assert [record.scores is not None for record in result.records] == [False, True, True]
    assert [record.step for record in result.records] == [3, 6, 9]


@pytest.mark.usefixtures("undrawn")
def test_validation_in_the_middle_of_epochs_leaves_training_as_it_is(
    finished: Finished, configure: Configure, tmp_path: Path
) -> None:
    result = train(configure(validate_every=2, validate_unit="steps"), tmp_path, Progress())
    assert [(record.epoch, record.step) for record in result.records] == [(1, 2), (1, 3), (2, 4), (2, 6)]
    assert _same(_last_weights(tmp_path), _last_weights(finished.out))


@pytest.mark.usefixtures("undrawn")
def test_a_run_on_crops_is_validated_in_tiles_as_it_is_deployed(
    configure: Configure, tree: Path, tmp_path: Path
) -> None:
    result = train(configure(size=None, crop=(32, 32), epochs=1), tmp_path, Progress())
    card = read_card(result.checkpoint)
    assert (card.preprocess.size, card.tile_overlap) == ((32, 32), 0.25)
    matrix = ConfusionMatrix(len(CAMVID), 255)
    with Segmenter(result.checkpoint, backend="torch", device="cpu") as segmenter:
        for path in sorted((tree / "val").iterdir()):
            with PillowImage.open(tree / "valannot" / path.name) as mask:
                truth = np.where(np.asarray(mask) == 11, np.uint8(255), np.asarray(mask))
            matrix.add(truth, segmenter(path).labels)
    assert matrix.scores().to_dict() == result.scores.to_dict()


@pytest.mark.usefixtures("undrawn")
def test_without_a_size_the_network_has_that_of_the_first_picture(configure: Configure, tmp_path: Path) -> None:
    result = train(configure(size=None, epochs=1), tmp_path, Progress())
    assert read_card(result.checkpoint).preprocess.size == (40, 56)


@pytest.mark.usefixtures("undrawn")
def test_a_run_can_start_from_the_weights_of_another(finished: Finished, configure: Configure, tmp_path: Path) -> None:
    listener = Listener()
    rest = OptimizerConfig(learning_rate=1e-12, weight_decay=0.0)
    train(configure(epochs=1, init=finished.result.checkpoint, optimizer=rest), tmp_path, listener)
    start, end = load_file(finished.result.checkpoint), _last_weights(tmp_path)
    for name, tensor in start.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(end[name], tensor, atol=1e-6, rtol=0)
    assert len(listener.notes) == 1


@pytest.mark.usefixtures("undrawn")
def test_tensorboard_gets_every_step_with_the_rate_it_was_taken_at(configure: Configure, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, listener = configure(tensorboard=True), Listener()
    train(config, tmp_path, listener)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx(listener.losses)
    rates = [(event.step, event.value) for event in events.Scalars("step/learning_rate")]
    assert rates == [(step + 1, pytest.approx(learning_rate(config.optimizer, step, 6))) for step in range(6)]


@pytest.mark.usefixtures("undrawn")
def test_a_run_over_an_earlier_one_leaves_nothing_of_it(
    finished: Finished, configure: Configure, tmp_path: Path
) -> None:
    train(configure(epochs=3, tensorboard=True), tmp_path, Progress())
    half = [tmp_path / name for name in (".best.0123abcd.safetensors", "last/.step_000000003.0123abcd.safetensors")]
    for path in half:
        path.touch()
    train(configure(epochs=1), tmp_path, Progress())
    assert [path.name for path in states(tmp_path)] == ["step_000000003.safetensors"]
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert list((tmp_path / "tensorboard").iterdir()) == []
    assert not any(path.exists() for path in half)


def test_a_run_whose_states_do_not_fit_on_the_disk_is_refused_before_it_begins(
    configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"needs \d+ MB for its checkpoints, and .* has \d+ MB free; .*--keep"):
        train(configure(keep=10**9), tmp_path / "run", Progress())
    assert not (tmp_path / "run").exists()
