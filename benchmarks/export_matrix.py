"""Which network exports at which opset, with which head, input and open axes, and which engine then runs it rightly?

Each cell is exported as ``seg-export`` does it, so it is compared with PyTorch on each engine, or refused with a
reason. OpenCV 4, which cannot be installed beside OpenCV 5, runs in a process of its own on the golden outputs.

    python -m segship.benchmarks.export_matrix --out runs/matrix          # pairs: every two values meet in some cell
    python -m segship.benchmarks.export_matrix --out runs/matrix --all    # every combination
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click

from segship.benchmarks.processes import run_own
from segship.benchmarks.seeded import seeded_network
from segship.export.exporter import ExportResult, export
from segship.export.golden import write_golden_of
from segship.export.parity import ENGINES, Reference
from segship.runtime.card import DynamicAxis, Head, ModelCard, Network
from segship.runtime.console import run
from segship.runtime.errors import ParityError, SegshipError
from segship.runtime.files import write_text
from segship.runtime.palettes import distinct_colors
from segship.runtime.preprocess import Preprocess
from segship.training.networks import ARCHITECTURES

Input = Literal["float", "pixels", "frame"]

NETWORKS: Final = tuple(ARCHITECTURES)
OPSETS: Final = (11, 13, 17, 18, 21)
HEADS: Final[tuple[Head, ...]] = ("logits", "probabilities", "labels")
INPUTS: Final[tuple[Input, ...]] = ("float", "pixels", "frame")
SHAPES: Final[tuple[tuple[DynamicAxis, ...], ...]] = ((), ("batch",), ("size",), ("batch", "size"))
SMALL: Final[dict[str, dict[str, int | str]]] = {
    "unet": {"base_channels": 4},
    **{name: {"backbone": "vgg11"} for name in ("fcn32s", "fcn16s", "fcn8s", "fcns")},
}
"""Options that make networks smaller, and leave their form."""
LIFT: Final = 0.5
CLASSES: Final = (1, 6, 41)
"""Numbers of logits; 1 is a binary network."""

_INSTALL_LIMIT_S: Final = 3600.0
_CHECK_LIMIT_S: Final = 600.0

SIZE: Final = (72, 104)
"""No multiple of 16, so that pooling and padding are met; where the size is open, the next good one is taken."""
OPEN_SIZE: Final = (64, 96)
FRAME: Final = (60, 90)
OPENCV4: Final = "opencv-python-headless==4.14.0.94"
OPENCV4_FOLDER: Final = Path(sys.prefix) / "opencv4"
"""A folder in the environment where no other package sees it."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    network: str
    opset: int
    head: Head
    input: Input
    shapes: tuple[DynamicAxis, ...]
    classes: int


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: the combination.
        opset: read back from the file; 0 where none was written.
        nodes: of the graph.
        bytes: of the file.
        engines: what each engine did, in a word or a reason, by its name and version.
        refusal: why there is no file; empty where there is one.
    """

    cell: Cell
    opset: int
    nodes: int
    bytes: int
    engines: dict[str, str]
    refusal: str


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/matrix"), help="Folder for the table.")
@click.option("--all", "every", is_flag=True, help="Every combination, not only every pair.")
@click.option("--network", "networks", multiple=True, help="Only this one; may be given again.")
@click.option(
    "--opencv4/--no-opencv4",
    default=True,
    help="Install OpenCV 4 in a folder of the environment, and let it run the files too.",
)
@click.option("--install-opencv4", "only_install", is_flag=True, help="Do that, and nothing else.")
def matrix(*, out: Path, every: bool, networks: tuple[str, ...], opencv4: bool, only_install: bool) -> int:
    """Make the table network × opset × head × input × shapes, with what each engine does."""
    chosen = [cell for cell in (all_cells() if every else pairwise_cells()) if not networks or cell.network in networks]
    if opencv4 or only_install:
        install_opencv4()
    if only_install:
        return 0
    outcomes = []
    for number, cell in enumerate(chosen, 1):
        outcomes.append(try_cell(cell, OPENCV4_FOLDER if opencv4 else None))
        click.echo(f"{number}/{len(chosen)} {_line(outcomes[-1])}", err=True)
    write_text(out / "matrix.md", to_markdown(outcomes))
    write_text(out / "matrix.json", json.dumps([dataclasses.asdict(outcome) for outcome in outcomes]))
    silent = [outcome for outcome in outcomes if is_silent_failure(outcome)]
    refused = sum(bool(outcome.refusal) for outcome in outcomes)
    click.echo(f"{len(outcomes)} cells, {refused} refused with a reason, {len(silent)} wrong → {out}/matrix.md")
    return int(bool(silent))


def all_cells() -> list[Cell]:
    """Return every combination; the number of classes goes round."""
    combinations = itertools.product(NETWORKS, OPSETS, HEADS, INPUTS, SHAPES)
    return [Cell(*values, CLASSES[number % len(CLASSES)]) for number, values in enumerate(combinations)]


def pairwise_cells() -> list[Cell]:
    """Return cells among which every two values of two columns meet at least once; always the same ones."""
    columns: list[Sequence[Any]] = [NETWORKS, OPSETS, HEADS, INPUTS, SHAPES, CLASSES]
    missing = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(columns)), 2)
        for a in columns[i]
        for b in columns[j]
    }
    cells = []
    while missing:
        (i, a), (j, b) = min(missing, key=repr)
        values: list[Any] = [None] * len(columns)
        values[i], values[j] = a, b
        for column in range(len(columns)):
            if values[column] is None:  # the value that brings most of the missing pairs with those that are chosen
                values[column] = max(
                    columns[column],
                    key=lambda value: len(missing & _pairs([*values[:column], value, *values[column + 1 :]])),
                )
        missing -= _pairs(values)
        cells.append(Cell(*values))
    return cells


def _pairs(values: Sequence[Any]) -> set[tuple[tuple[int, Any], tuple[int, Any]]]:
    chosen = [(column, value) for column, value in enumerate(values) if value is not None]
    return set(itertools.combinations(chosen, 2))


def try_cell(cell: Cell, opencv4: Path | None = None) -> Outcome:
    """Export one combination and say what each engine does with it.

    Args:
        cell: the combination.
        opencv4: folder of an OpenCV 4 that also runs it.
    """
    card = _card(cell)
    reference = Reference(seeded_network(card, LIFT), card)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        wrong: dict[str, str] = {}
        while True:
            try:
                result = _export(cell, reference, path, [name for name in ENGINES if name not in wrong])
                break
            except ParityError as error:
                # Where one engine computes something else, the others are asked without it.
                wrong |= {name: f"WRONG, refused: {fault}" for name, fault in error.failed.items()}
                if len(wrong) == len(ENGINES):
                    return Outcome(cell, 0, 0, 0, wrong, str(error).replace(folder, ""))
            except SegshipError as error:
                return Outcome(cell, 0, 0, 0, {}, str(error).replace(folder, ""))
        engines = {row.engine.engine: "same" for row in result.parity.rows if row.gate is not None}
        engines |= {name: f"refused: {reason.replace(folder, '')}" for name, reason in result.parity.refused.items()}
        engines |= wrong
        if opencv4 is not None:
            golden = Path(folder) / "golden.npz"
            write_golden_of(result, golden)
            engines |= _run_opencv4(opencv4, path, golden)
        return Outcome(cell, result.opset, result.nodes, result.bytes, engines, "")


def _card(cell: Cell) -> ModelCard:
    names = ("rest", "object") if cell.classes == 1 else tuple(f"class {number}" for number in range(cell.classes))
    size = OPEN_SIZE if "size" in cell.shapes else SIZE
    return ModelCard(
        names,
        distinct_colors(len(names)),
        # Trained, as it were, on pictures resized as the graph does it: so frames, too, are held to the full measure.
        Preprocess(
            size,
            interpolation="linear_float" if cell.input == "frame" else "linear_exact",
            mean=(0.4, 0.45, 0.5),
            std=(0.2, 0.21, 0.22),
        ),
        task="binary" if cell.classes == 1 else "multiclass",
        network=Network(cell.network, SMALL.get(cell.network, {})),
    )


def _export(cell: Cell, reference: Reference, path: Path, backends: Sequence[str]) -> ExportResult:
    return export(
        reference,
        path,
        opset=cell.opset,
        head=cell.head,
        input_form=None if cell.input == "frame" else cell.input,
        frame=FRAME if cell.input == "frame" else None,
        dynamic=cell.shapes,
        backends=backends,
    )


def install_opencv4() -> None:
    """Install OpenCV 4 beside OpenCV 5, unless it is there.

    Raises:
        BenchError: if pip cannot, or takes longer than an hour.
    """
    if not (OPENCV4_FOLDER / "cv2").is_dir():
        pip = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(OPENCV4_FOLDER), OPENCV4]
        run_own(pip, _INSTALL_LIMIT_S, name=f"pip install {OPENCV4}")


def _run_opencv4(folder: Path, model: Path, golden: Path) -> dict[str, str]:
    """Let OpenCV 4 run a file on its golden inputs; return what it did, by its name and version."""
    command = [
        "segship.runtime.check_cli",
        "model",
        str(model),
        "--golden",
        str(golden),
        "--backend",
        "opencv",
        "--json",
        "--quiet",
    ]
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    name = f"OpenCV {OPENCV4.partition('==')[2].rpartition('.')[0]}"  # the last part counts packages
    try:
        done = subprocess.run(  # noqa: S603  # nothing in it comes from outside
            [sys.executable, "-m", *command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHECK_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return {name: f"WRONG: no end after {_CHECK_LIMIT_S:g} s"}
    if not done.stdout.startswith("{"):
        return {name: f"refused: {done.stderr.strip().removeprefix('error: ').replace(str(model.parent), '')}"}
    row = json.loads(done.stdout)["golden"][0]
    return {
        row["engine"]["engine"]: row["verdict"]
        if row["verdict"] == "same"
        else f"WRONG: {row['fault']} ({_figures(row)})"
    }


def _figures(row: dict[str, Any]) -> str:
    agreement = (
        f"{100 * row['label_agreement']:.3f} % same labels, {row['unexplained_flips']} flips that are no near tie"
    )
    return agreement if row["max_abs"] is None else f"largest difference {row['max_abs']:.1e}, {agreement}"


def is_silent_failure(outcome: Outcome) -> bool:
    """Tell whether a file was left that has another opset than was asked for, or that an engine runs wrongly unsaid."""
    if outcome.refusal:
        return False
    return outcome.opset != outcome.cell.opset or any(word.startswith("WRONG:") for word in outcome.engines.values())


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table, with the reasons below it."""
    engines = sorted({name for outcome in outcomes for name in outcome.engines})
    columns = ["network", "opset", "head", "input", "open", "logits", "opset found", "nodes", "kB", *engines]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    reasons: dict[str, int] = {}

    def word(text: str) -> str:
        if ":" not in text:
            return text
        short, _, reason = text.partition(": ")
        return f"{short} [{reasons.setdefault(reason, len(reasons) + 1)}]"

    for outcome in outcomes:
        cell = outcome.cell
        key = [cell.network, cell.opset, cell.head, cell.input, "+".join(cell.shapes) or "none", cell.classes]
        if outcome.refusal:
            found: list[Any] = ["", "", "", word(f"refused: {outcome.refusal}"), *[""] * (len(engines) - 1)]
        else:
            found = [outcome.opset, outcome.nodes, outcome.bytes // 1000]
            found += [word(outcome.engines.get(name, "")) for name in engines]
        lines.append(f"| {' | '.join(map(str, [*key, *found]))} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def _line(outcome: Outcome) -> str:
    cell = outcome.cell
    what = f"{cell.network} {cell.opset} {cell.head} {cell.input} {'+'.join(cell.shapes) or 'static'} {cell.classes}"
    return f"{what}: {outcome.refusal or ', '.join(f'{name} {word[:60]}' for name, word in outcome.engines.items())}"


if __name__ == "__main__":
    run(matrix)
