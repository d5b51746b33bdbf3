import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.errors import CheckpointError, OutputError
from segship.runtime.model_file import read_card
from segship.training.optimisation import OptimizerConfig, OptimizerName, WeightAverage, build_optimizer
from segship.training.state import (
    DIGEST_KEY,
    OPTIMIZER_KEY,
    PROGRESS_KEY,
    SavedState,
    _digest,
    deployable_tensors,
    save_state,
    state_path,
    states,
)

PROGRESS = {"position": {"step": 3, "loss": 0.1, "best": None}, "rarity": [1.0, 0.1 + 0.2]}
PARTS = (CARD_KEY, PROGRESS_KEY, OPTIMIZER_KEY, DIGEST_KEY)


@dataclasses.dataclass
class Training:
    """What a state is of: a small network that trains on noise."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    @classmethod
    def begin(cls, name: OptimizerName = "adamw", *, momentum: float = 0.9, ema: bool = True, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from the stubs
        optimizer = build_optimizer(OptimizerConfig(name=name, momentum=momentum), network)
        return cls(network, optimizer, WeightAverage(network, 0.9) if ema else None)

    def step(self, number: int) -> None:
        torch.manual_seed(number)
        self.optimizer.zero_grad()
        self.network(torch.randn(2, 3, 6, 6)).square().mean().backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network, number)

    def save(self, path: Path, card: ModelCard) -> Path:
        save_state(path, self.network, self.optimizer, self.average, card, PROGRESS)
        return path

    def restore(self, path: Path) -> None:
        SavedState(path).restore(self.network, self.optimizer, self.average)

    def tensors(self) -> dict[str, Tensor]:
        every = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average is not None:
            every |= {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
        return {name: tensor.clone() for name, tensor in every.items()}


@pytest.fixture
def card(tiny_checkpoint: Path) -> ModelCard:
    return read_card(tiny_checkpoint)


@pytest.fixture
def saved(card: ModelCard, tmp_path: Path) -> Path:
    """A state after three steps."""
    training = Training.begin()
    for step in range(1, 4):
        training.step(step)
    return training.save(tmp_path / "step_000000003.safetensors", card)


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # it is no dict


def _forge(path: Path, changes: dict[str, str], tensors: dict[str, Tensor] | None = None, *, without: str = "") -> None:
    """Change a state's metadata, or its tensors, and give it the checksum of what it then holds."""
    old, metadata = _contents(path)
    tensors = tensors or old
    metadata = {key: value for key, value in (metadata | changes).items() if key not in (DIGEST_KEY, without)}
    digest = {} if without == DIGEST_KEY else {DIGEST_KEY: _digest(tensors, metadata)}
    save_file(tensors, path, metadata | digest)


@pytest.mark.parametrize(
    ("name", "momentum", "ema"),
    [("adamw", 0.9, True), ("adam", 0.9, False), ("sgd", 0.9, True), ("sgd", 0.0, False)],
)
def test_training_goes_on_from_a_state_as_if_never_interrupted(
    card: ModelCard, tmp_path: Path, name: OptimizerName, momentum: float, ema: bool
) -> None:
    whole, first = (Training.begin(name, momentum=momentum, ema=ema) for _ in range(2))
    second = Training.begin(name, momentum=momentum, ema=ema, seed=99)
    for step in range(1, 4):
        whole.step(step)
        first.step(step)
    second.restore(first.save(tmp_path / "state.safetensors", card))
    for step in range(4, 7):
        whole.step(step)
        second.step(step)
    found = second.tensors()
    for tensor_name, tensor in whole.tensors().items():
        assert torch.equal(found[tensor_name], tensor), tensor_name


def test_moments_come_back_in_the_order_in_memory_of_their_weights(saved: Path) -> None:
    training = Training.begin(seed=1)
    training.restore(saved)
    moments = [(w, m) for w in training.network.parameters() for m in training.optimizer.state[w].values() if m.ndim]
    assert not all(moment.is_contiguous() for _, moment in moments)
    assert all(moment.stride() == weight.stride() for weight, moment in moments)


def test_card_and_progress_come_back_exactly(saved: Path, card: ModelCard) -> None:
    state = SavedState(saved)
    assert state.path == saved
    assert state.card == card
    assert state.progress == PROGRESS


def test_a_state_before_the_first_step_is_one_too(card: ModelCard, tmp_path: Path) -> None:
    fresh, other = Training.begin(), Training.begin(seed=5)
    other.restore(fresh.save(tmp_path / "state.safetensors", card))
    for training in (fresh, other):
        training.step(1)
    expected = fresh.tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.tensors().items())


def test_states_are_listed_the_newest_first_and_nothing_else_is(tmp_path: Path) -> None:
    assert states(tmp_path) == []
    paths = [state_path(tmp_path, step) for step in (9, 1200, 100)]
    for path in [*paths, *(paths[0].with_name(name) for name in ("step_1.safetensors", "x", ".step_000000001.tmp"))]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert states(tmp_path) == [paths[1], paths[2], paths[0]]
    assert paths[1] == tmp_path / "last/step_000001200.safetensors"


def test_a_state_can_be_read_by_whoever_can_read_the_other_files(saved: Path) -> None:
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


def test_a_state_that_was_cut_short_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    lengths = {0, 1, 7, 8, 9, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 200)}
    for length in lengths:
        saved.write_bytes(whole[:length])
        _refuses(saved, "is cut short or no state of a run")
    saved.write_bytes(whole)
    SavedState(saved)


def test_a_state_with_one_changed_bit_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    bits = random.Random(0)
    places = [*range(16), *bits.sample(range(header), 400), *bits.sample(range(header, len(whole)), 100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bits.randrange(8)
        saved.write_bytes(damaged)
        _refuses(saved, "is damaged|is cut short or no state|is no state of a run")


def test_a_state_with_bytes_after_its_end_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"x")
    _refuses(saved, "is cut short or no state of a run")


def test_a_missing_file_a_folder_and_a_file_of_another_kind_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("These are my weights.\n" * 100)
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "notes.safetensors"):
        _refuses(path, "is cut short or no state of a run")
    _refuses(tiny_checkpoint, f"is no state of a run: its metadata lacks {PROGRESS_KEY}, {OPTIMIZER_KEY}, {DIGEST_KEY}")


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"network.weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    _refuses(tmp_path / "bare.safetensors", f"its metadata lacks {', '.join(PARTS)}")


@pytest.mark.parametrize("key", PARTS)
def test_each_part_of_the_metadata_must_be_there(saved: Path, key: str) -> None:
    _forge(saved, {}, without=key)
    _refuses(saved, f"is no state of a run: its metadata lacks {key}")


@pytest.mark.parametrize("key", [CARD_KEY, PROGRESS_KEY, OPTIMIZER_KEY])
def test_metadata_that_was_changed_is_recognised(saved: Path, key: str) -> None:
    tensors, metadata = _contents(saved)
    changed = metadata[key].replace("3", "4") if "3" in metadata[key] else metadata[key] + " "
    assert changed != metadata[key]
    save_file(tensors, saved, metadata | {key: changed})
    _refuses(saved, "is damaged: its contents do not have the checksum that it names")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({CARD_KEY: "{"}, "the card is no valid JSON"),
        ({CARD_KEY: "[]"}, "the card is a JSON list"),
        ({CARD_KEY: '{"class_names": 3}'}, "card"),
        ({PROGRESS_KEY: "{"}, r"is no state of a run \("),
        ({PROGRESS_KEY: "[" * 100_000}, r"is no state of a run \("),
        ({PROGRESS_KEY: '{"step": 1' + "1" * 5000 + "}"}, r"is no state of a run \("),
        *(({PROGRESS_KEY: text}, "its progress is a JSON") for text in ("[]", "null", "3", '"text"', "NaN")),
    ],
)
def test_metadata_of_another_form_is_refused(saved: Path, changes: dict[str, str], words: str) -> None:
    _forge(saved, changes)
    _refuses(saved, words)


@pytest.mark.parametrize("odd", ["optimizer.0", "optimizer.x.exp_avg", "optimizer.0.exp_avg.more", "network.more"])
def test_tensors_with_names_that_are_not_the_runs_are_refused(saved: Path, odd: str) -> None:
    tensors, _ = _contents(saved)
    _forge(saved, {}, tensors | {odd: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="does not fit this run"):
        Training.begin().restore(saved)


def test_a_state_of_another_network_is_refused(saved: Path) -> None:
    training = Training.begin()
    training.network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    with pytest.raises(CheckpointError, match=r"step_000000003\.safetensors does not fit this run") as caught:
        training.restore(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam")])
def test_a_state_of_another_optimiser_is_refused(saved: Path, name: OptimizerName, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"its optimiser is AdamW, that of the run is {kind}"):
        Training.begin(name).restore(saved)


@pytest.mark.parametrize("ema", [True, False])
def test_a_state_with_an_average_where_there_is_none_or_without_one_is_refused(
    card: ModelCard, tmp_path: Path, ema: bool
) -> None:
    path = Training.begin(ema=ema).save(tmp_path / "state.safetensors", card)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        Training.begin(ema=not ema).restore(path)


def test_on_a_full_disk_the_old_state_stays_and_nothing_else_is_left(saved: Path, card: ModelCard) -> None:
    before = saved.read_bytes()
    with _files_of_at_most(len(before) // 2), pytest.raises(OutputError, match=rf"cannot write {saved}: .*too large"):
        Training.begin(seed=1).save(saved, card)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    SavedState(saved)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path, card: ModelCard) -> None:
    (tmp_path / "last").touch()
    with pytest.raises(OutputError, match="cannot write"):
        Training.begin().save(state_path(tmp_path, 1), card)


@pytest.mark.parametrize("ema", [True, False])
def test_deployed_are_the_average_or_else_the_weights(card: ModelCard, tmp_path: Path, ema: bool) -> None:
    training = Training.begin(ema=ema)
    for step in (1, 2):
        training.step(step)
    tensors, _ = _contents(training.save(tmp_path / "state.safetensors", card))
    found = deployable_tensors(tensors)
    expected = (training.network if training.average is None else training.average.network).state_dict()
    assert found is not None
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_of_what_is_no_state_nothing_is_deployable() -> None:
    assert deployable_tensors({"0.weight": torch.zeros(2)}) is None


@contextlib.contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Let every write beyond so many bytes fail, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _refuses(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        SavedState(path)
    assert "\n" not in str(caught.value)
