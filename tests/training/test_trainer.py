import csv
import dataclasses
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
from segship.runtime.errors import DatasetError, DeviceError, TrainingError
from segship.runtime.model_file import read_card
from segship.runtime.palettes import CAMVID
from segship.runtime.segmenter import Segmenter
from segship.training import losses
from segship.training.data.camvid import open_camvid
from segship.training.gain_bias import GainBias
from segship.training.loader import channel_statistics
from segship.training.metrics import ConfusionMatrix, Scores
from segship.training.trainer import Progress, TrainConfig, TrainResult, learning_rate_factor, pick_device, train

SIZE = (32, 32)
TINY = Network("unet", {"base_channels": 4})


@pytest.fixture(scope="module")
def tree(write_camvid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 40×56, so that validation has something to upscale."""
    return write_camvid(tmp_path_factory.mktemp("trainer") / "camvid", size=(40, 56))


@pytest.fixture(scope="module")
def configure(tree: Path) -> Callable[..., TrainConfig]:
    """Make the configuration of a tiny run."""

    def make(out: Path, **changes: Any) -> TrainConfig:
        config = TrainConfig(
            f"camvid:{tree}", out, TINY, SIZE, epochs=2, batch_size=2, learning_rate=0.01, device="cpu"
        )
        return dataclasses.replace(config, **changes)

    return make


class Listener(Progress):
    """Writes down what a run tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def begin(self, what: str, steps: int) -> None:
        self.heard.append((what, steps))

    def advance(self) -> None:
        self.heard.append(("advance",))

    def epoch_done(self, record: Any, *, is_best: bool) -> None:
        self.heard.append(("done", record.epoch, is_best))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    out: Path
    result: TrainResult
    heard: list[tuple[Any, ...]]

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(configure: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with seed 0."""
    out = tmp_path_factory.mktemp("run")
    listener = Listener()
    return Run(out, train(configure(out), listener), listener.heard)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last/weights.safetensors")


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_leaves_checkpoints_metrics_and_pictures_and_nothing_else(finished: Run) -> None:
    files = sorted(str(path.relative_to(finished.out)) for path in finished.out.rglob("*") if path.is_file())
    assert files == [
        "best.safetensors",
        "curves.png",
        "last/weights.safetensors",
        "metrics.csv",
        "samples/epoch_001.png",
        "samples/epoch_002.png",
    ]
    for name in ("curves.png", "samples/epoch_001.png", "samples/epoch_002.png"):
        with PillowImage.open(finished.out / name) as image:
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert finished.result.checkpoint == finished.out / "best.safetensors"


def test_the_card_says_what_the_network_is_and_takes(finished: Run, tree: Path) -> None:
    card = read_card(finished.out / "last/weights.safetensors")
    assert (card.class_names, card.palette, card.ignore_index) == (CAMVID.names, CAMVID.palette, 255)
    assert (card.network, card.head) == (TINY, "logits")
    form = card.preprocess
    assert (form.size, form.channels, form.depth, form.color_order) == (SIZE, 3, "uint8", "RGB")
    pictures = open_camvid(str(tree)).train
    every = np.concatenate([form.geometry(pictures[i].image).reshape(-1, 3) for i in range(len(pictures))]) / 255
    np.testing.assert_allclose(form.mean, every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(form.std, every.std(axis=0), atol=1e-6)
    assert (form.mean, form.std) == channel_statistics(pictures, form)


def test_the_card_says_where_the_weights_come_from(finished: Run) -> None:
    origin = read_card(finished.out / "last/weights.safetensors").provenance
    assert (origin.dataset, origin.epoch) == ("camvid", 2)
    assert origin.metrics == finished.result.records[1].scores.summary()
    assert origin.versions["torch"] == torch.__version__
    assert origin.versions.keys() == {"segship", "torch", "numpy", "opencv-python-headless", "pillow"}
    assert str(finished.out) not in (finished.out / "best.safetensors").read_bytes().decode("latin-1")


def test_the_best_checkpoint_is_of_the_epoch_with_the_highest_miou(finished: Run) -> None:
    mious = [record.scores.miou for record in finished.result.records]
    assert mious[0] != mious[1]
    best = 1 + int(np.argmax(mious))
    assert finished.result.best.epoch == best
    assert read_card(finished.out / "best.safetensors").provenance.epoch == best
    assert [float(row["miou"]) for row in finished.rows()] == pytest.approx(mious, abs=1e-6)


def test_the_best_epoch_is_the_first_of_the_highest_and_not_the_last(
    configure: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = iter([10, 30, 30, 20])  # what no training would give for certain: a network that gets worse again

    def validate(*_arguments: object) -> Scores:
        matrix = ConfusionMatrix(len(CAMVID), 255)
        matrix.add(np.zeros(40, np.uint8), np.arange(40) >= next(hits))
        return matrix.scores()

    monkeypatch.setattr("segship.training.trainer.validate", validate)
    listener = Listener()
    result = train(configure(tmp_path, epochs=4), listener)
    assert [heard for heard in listener.heard if heard[0] == "done"] == [
        ("done", 1, True),
        ("done", 2, True),
        ("done", 3, False),
        ("done", 4, False),
    ]
    assert result.best.epoch == 2
    assert read_card(tmp_path / "best.safetensors").provenance.epoch == 2
    assert read_card(tmp_path / "last/weights.safetensors").provenance.epoch == 4
    assert not _same(load_file(tmp_path / "best.safetensors"), _weights(tmp_path))


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


def test_it_learns(configure: Callable[..., TrainConfig], plain_tree: Path, tmp_path: Path) -> None:
    config = configure(tmp_path / "run", data=f"camvid:{plain_tree}", epochs=4, learning_rate=0.02)
    assert train(config, Progress()).best.scores.pixel_accuracy > 0.95


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_pictures_are_mirrored_and_their_labels_with_them(
    configure: Callable[..., TrainConfig], plain_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    seen: list[torch.Tensor] = []
    normalise, cross_entropy = GainBias.forward, losses.cross_entropy

    def see_pixels(self: GainBias, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels[:, 0] > 125)
        return normalise(self, pixels)

    def see_labels(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        assert torch.equal(seen[-1], labels == 1)
        return cross_entropy(outputs, labels, ignore_index)

    monkeypatch.setattr(GainBias, "forward", see_pixels)
    monkeypatch.setattr("segship.training.trainer.cross_entropy", see_labels)
    train(configure(tmp_path / "run", data=f"camvid:{plain_tree}", epochs=1, flip=flip), Progress())
    stored = set()
    for path in (plain_tree / "trainannot").iterdir():
        with PillowImage.open(path) as mask:
            stored.add((np.asarray(mask) == 1).tobytes())
    pictures = [picture for batch in seen for picture in batch]
    assert len(pictures) == 20
    mirrored = [picture.numpy().tobytes() not in stored for picture in pictures]
    assert {picture.flip(1).numpy().tobytes() for picture, was in zip(pictures, mirrored, strict=True) if was} <= stored
    assert 4 <= sum(mirrored) <= 16 if flip else sum(mirrored) == 0


def test_the_scores_are_those_that_a_deployment_of_the_checkpoint_reaches(finished: Run, tree: Path) -> None:
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


def test_progress_hears_of_every_step_picture_and_epoch(finished: Run) -> None:
    steps = [("advance",)] * 3
    reading = [("reading the validation pictures", 3), *steps]
    first = [("epoch 1/2 training", 3), *steps, ("epoch 1/2 validation", 3), *steps, ("done", 1, True)]
    second = [("epoch 2/2 training", 3), *steps, ("epoch 2/2 validation", 3), *steps]
    second.append(("done", 2, finished.result.best.epoch == 2))
    assert finished.heard == reading + first + second


def test_a_bad_validation_mask_ends_the_run_before_it_trains(
    write_camvid: Callable[..., Path], configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    root = write_camvid(tmp_path / "camvid")
    mask = max((root / "valannot").iterdir())
    PillowImage.new("L", (40, 32), 77).save(mask)
    listener = Listener()
    with pytest.raises(DatasetError, match=f"{mask.name}: label id 77 is outside the classes"):
        train(configure(tmp_path / "run", data=f"camvid:{root}"), listener)
    assert not any("training" in str(what) for what, *_ in listener.heard)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    finished: Run, configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    torch.manual_seed(12345)  # whatever was drawn before
    result = train(configure(tmp_path), Progress())
    assert _same(_weights(tmp_path), _weights(finished.out))
    assert read_card(tmp_path / "best.safetensors") == read_card(finished.out / "best.safetensors")
    assert [r.train_loss for r in result.records] == [r.train_loss for r in finished.result.records]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"flip": False}, {"weight_decay": 0.5}, {"precision": "bf16"}],
    ids=["seed", "flip", "weight decay", "precision"],
)
def test_each_of_these_options_gives_other_weights(
    finished: Run, configure: Callable[..., TrainConfig], tmp_path: Path, change: dict[str, Any]
) -> None:
    result = train(configure(tmp_path, **change), Progress())
    assert not _same(_weights(tmp_path), _weights(finished.out))
    assert {tensor.dtype for tensor in _weights(tmp_path).values()} == {torch.float32, torch.int64}
    assert all(math.isfinite(record.train_loss) for record in result.records)


def test_u2netp_trains_too(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    result = train(configure(tmp_path, network=Network("u2netp"), epochs=1, batch_size=3), Progress())
    assert read_card(result.checkpoint).network == Network("u2netp")
    assert math.isfinite(result.best.train_loss)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_earlier_checkpoints(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    train(configure(tmp_path, epochs=1), Progress())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) in epoch 1; lower --lr \(it is 1e\+30\)"):
        train(configure(tmp_path, learning_rate=1e30), Progress())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_network_that_diverged_in_the_last_step_of_an_epoch_leaves_no_checkpoint(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="lower --lr"):
        train(configure(tmp_path, learning_rate=1e30, batch_size=6, epochs=1), Progress())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"learning_rate": 0.0}, r"learning rate is 0\.0; expected a number above 0"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"learning_rate": math.inf}, "learning rate is inf"),
    ],
)
def test_a_configuration_that_cannot_train_is_refused(
    configure: Callable[..., TrainConfig], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        configure(tmp_path, **change)


@pytest.mark.parametrize(("batch_size", "pictures"), [(1, 6), (8, 1)])
def test_a_batch_of_one_small_picture_is_refused_before_it_fails_in_the_network(
    configure: Callable[..., TrainConfig],
    write_camvid: Callable[..., Path],
    tmp_path: Path,
    batch_size: int,
    pictures: int,
) -> None:
    tree = write_camvid(tmp_path / "camvid", train=pictures)
    config = configure(tmp_path / "run", data=f"camvid:{tree}", network=Network("u2netp"), batch_size=batch_size)
    with pytest.raises(TrainingError, match=r"one picture of 32×32 pixels.*take a larger --size or --batch-size"):
        train(config, Progress())


def test_the_networks_size_is_that_of_the_first_picture_unless_it_is_given(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = train(configure(tmp_path, size=None, epochs=1), Progress())
    assert read_card(result.checkpoint).preprocess.size == (40, 56)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta", "", "cuda:-1"])
def test_a_device_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"'{name}'; expected auto, cpu or cuda\[:N\]"):
        pick_device(name)


def test_a_cuda_device_that_is_not_there_is_refused_not_replaced() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=rf"cuda:{count} was asked for.*finds {count} CUDA devices.*--device cpu"):
        pick_device(f"cuda:{count}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_it_is_refused_by_name_and_auto_is_the_cpu() -> None:
    with pytest.raises(DeviceError, match=r"cuda was asked for.*finds 0 CUDA devices"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("total_steps", [1, 2, 7, 20, 100, 3000])
def test_the_learning_rate_rises_straight_to_its_highest_then_falls_to_zero(total_steps: int) -> None:
    factor = learning_rate_factor(total_steps)
    warm_up = max(1, round(0.05 * total_steps))
    shares = [factor(step) for step in range(total_steps + 1)]
    assert shares[:warm_up] == pytest.approx([(step + 1) / warm_up for step in range(warm_up)])
    assert max(shares) == shares[warm_up - 1] == 1
    falling = shares[warm_up:]
    assert falling == sorted(falling, reverse=True)
    if total_steps > 1:
        assert shares[-1] == pytest.approx(0, abs=1e-12)
        middle = (warm_up + total_steps) / 2
        assert factor(math.floor(middle)) + factor(math.ceil(middle)) == pytest.approx(1)  # a cosine's half
    assert factor(total_steps + 100) == pytest.approx(0, abs=1e-12)


def test_a_run_over_an_earlier_one_leaves_nothing_of_it(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(configure(tmp_path, epochs=3), Progress())
    train(configure(tmp_path, epochs=1), Progress())
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["epoch_001.png"]
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
