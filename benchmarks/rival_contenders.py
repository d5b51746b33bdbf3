"""Whom segship is measured against, and how each is made ready: its environment, its model, what it is asked to do."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.rival_environment import Environment, make_environment, make_own_environment
from segship.benchmarks.rival_openvino import BenchmarkApp
from segship.benchmarks.rival_process import Contestant, RivalError, Worker, run_program
from segship.runtime.card import ModelCard
from segship.runtime.model_file import read_card
from segship.runtime.outputs import OutputKind

ORDINARY: Final = Path(__file__).with_name("ordinary_inference.py")
REMBG: Final = Path(__file__).with_name("rival_rembg.py")
_ULTRALYTICS: Final = Path(__file__).with_name("rival_ultralytics.py")
_SEGSHIP: Final = Path(__file__).with_name("rival_segship.py")

NETWORK_S: Final = 4
"""Seconds that a turn of bare runs takes of either, at least."""

_RUNTIME: Final = "onnxruntime==1.31.1"
_OPENVINO: Final = "openvino==2026.4.1"
"""Both of a pair have their engine in the same version."""
_REMBG_LIMIT: Final = 30
_REMBG_SIZE: Final = (320, 320)
_YOLO: Final = "yolo26n-sem"
_YOLO_STRIDE: Final = 32


@dataclass(frozen=True)
class Workshop:
    """What all contenders are given.

    Attributes:
        model: a network in real time, with a card.
        binary: a binary U²-NetP at 320×320; None: there is none, and rembg cannot be measured.
        pictures: paths, at least one.
        folder: for what they write, and for what one exports for several duels.
        environments: folder of their virtual environments.
    """

    model: Path
    binary: Path | None
    pictures: tuple[Path, ...]
    folder: Path
    environments: Path


@dataclass(frozen=True)
class Contender:
    """One of two that take turns.

    Attributes:
        name: of the program.
        writes: which files it writes, in words.
        environment: that it runs in.
        packages: whose versions are told.
        open: starts it in a process of its own.
        command: returns the command line that does one picture and writes below a folder; None: it has none.
        variables: of that command's environment.
    """

    name: str
    writes: str
    environment: Environment
    packages: tuple[str, ...]
    open: Callable[[], Contestant]
    command: Callable[[Path], list[str | Path]] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Duel:
    """segship and a rival, made ready.

    Attributes:
        ours: segship, asked for the same kinds of files.
        theirs: the rival.
        tasks: that both know, in their order: ``files``, ``network``, ``at_once``.
        count: pictures in a turn.
    """

    ours: Contender
    theirs: Contender
    tasks: tuple[str, ...]
    count: int


def ordinary_duel(workshop: Workshop) -> Duel:
    """The script that people write, in segship's environment: masks and overlays."""
    kinds: tuple[OutputKind, ...] = ("mask", "overlay")
    ours = _segship(workshop, workshop.model, kinds)
    card, out = read_card(workshop.model), workshop.folder / "them"
    settings = ordinary_settings(workshop.model, card, workshop.pictures, out, kinds)
    python = ours.environment.python

    def command(out: Path) -> list[str | Path]:
        one = settings | {"pictures": settings["pictures"][:1], "out": str(out)}
        return [python, "-P", ORDINARY, json.dumps(one)]

    theirs = Contender(
        "ordinary script",
        "masks and overlays, PNG",
        ours.environment,
        ("onnxruntime", "numpy", "pillow"),
        lambda: Worker(python, ORDINARY, settings),
        command,
    )
    return Duel(ours, theirs, ("files", "network"), len(workshop.pictures))


def rembg_duel(workshop: Workshop) -> Duel:
    """Rembg with our weights of U²-NetP: masks.

    Its command line needs packages that its library does without, and has an environment of its own.

    Raises:
        RivalError: if there are no such weights, or it cannot be installed.
    """
    if workshop.binary is None:
        raise RivalError("rembg runs U²-NetP with one class; give such a model: --binary FILE.onnx")
    card = read_card(workshop.binary)
    if card.num_logits != 1 or card.preprocess.size != _REMBG_SIZE:
        size = "×".join(map(str, card.preprocess.size))
        raise RivalError(
            f"rembg runs U²-NetP with one class at 320×320, and {workshop.binary} has {card.num_logits} at {size}"
        )
    environment = make_environment(workshop.environments / "rembg", ["rembg[cpu]==2.0.86", _RUNTIME])
    shell = make_environment(workshop.environments / "rembg-cli", ["rembg[cpu,cli]==2.0.86", _RUNTIME])
    variables = rembg_home(workshop.binary, workshop.folder / "rembg-home")
    settings = {"pictures": [str(path) for path in workshop.pictures], "out": str(workshop.folder / "them")}
    picture = workshop.pictures[0]
    theirs = Contender(
        "rembg",
        "masks of the foreground's probability, PNG",
        environment,
        ("rembg", "onnxruntime"),
        lambda: Worker(environment.python, REMBG, settings, variables),
        lambda out: [shell.program("rembg"), "i", "-m", "u2netp", "-om", picture, out / f"{picture.stem}.png"],
        variables,
    )
    ours = _segship(workshop, workshop.binary, ("mask",))
    return Duel(ours, theirs, ("files", "network"), min(_REMBG_LIMIT, len(workshop.pictures)))


def ultralytics_duel(workshop: Workshop) -> Duel:
    """Ultralytics' semantic network, exported by itself, untrained, and ours of about the same size: overlays."""
    return _ultralytics(workshop, is_same_file=False)


def same_file_duel(workshop: Workshop) -> Duel:
    """Ultralytics and segship, both with the file that Ultralytics exported: overlays."""
    return _ultralytics(workshop, is_same_file=True)


def openvino_duel(workshop: Workshop) -> Duel:
    """OpenVINO's ``benchmark_app`` and segship on OpenVINO, the bare network in float32."""
    environment = make_environment(workshop.environments / "openvino", [_OPENVINO])
    app = environment.program("benchmark_app")
    theirs = Contender(
        "OpenVINO benchmark_app",
        "nothing",
        environment,
        ("openvino",),
        lambda: BenchmarkApp(app, workshop.model, NETWORK_S),
    )
    ours = _segship(workshop, workshop.model, (), backend="openvino")
    return Duel(ours, theirs, ("network", "at_once"), len(workshop.pictures))


DUELS: Final[Mapping[str, Callable[[Workshop], Duel]]] = {
    "ordinary": ordinary_duel,
    "rembg": rembg_duel,
    "ultralytics": ultralytics_duel,
    "ultralytics-same-file": same_file_duel,
    "openvino": openvino_duel,
}


def ordinary_settings(
    model: Path, card: ModelCard, pictures: Sequence[Path], out: Path, kinds: Sequence[OutputKind]
) -> dict[str, Any]:
    """Return what the ordinary script has written into it."""
    return {
        "model": str(model),
        "input_name": card.input_name,
        "size": card.preprocess.size,
        "mean": card.preprocess.mean,
        "std": card.preprocess.std,
        "palette": card.palette,
        "kinds": kinds,
        "pictures": [str(path) for path in pictures],
        "out": str(out),
    }


def rembg_home(model: Path, folder: Path) -> dict[str, str]:
    """Put a U²-NetP into ``folder`` as rembg looks for it; return the variables that send it there."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, folder / "u2netp.onnx")
    return {"U2NET_HOME": str(folder), "MODEL_CHECKSUM_DISABLED": "1"}


def _segship(workshop: Workshop, model: Path, kinds: tuple[OutputKind, ...], backend: str = "ort") -> Contender:
    """Segship in an environment with nothing but itself and one engine."""
    extra, pin = {"ort": ("cpu", _RUNTIME), "openvino": ("openvino", _OPENVINO)}[backend]
    environment = make_own_environment(workshop.environments / f"segship-{extra}", extra, [pin])
    settings = {
        "model": str(model),
        "backend": backend,
        "kinds": kinds,
        "pictures": [str(path) for path in workshop.pictures],
        "out": str(workshop.folder / "us"),
    }
    asked = ["--backend", backend, "--device", "cpu", "--save", ",".join(kinds), "--overwrite", "--quiet"]
    return Contender(
        f"segship on {backend}",
        f"{' and '.join(f'{kind}s' for kind in kinds)}, PNG" if kinds else "nothing",
        environment,
        ("segship", "onnxruntime", "openvino", "numpy", "opencv-python-headless", "pillow"),
        lambda: Worker(environment.python, _SEGSHIP, settings),
        lambda out: [environment.program("seg-infer"), model, workshop.pictures[0], *asked, "--out", out],
    )


def _ultralytics(workshop: Workshop, *, is_same_file: bool) -> Duel:
    requirements = ["ultralytics==8.4.190", "onnx==1.23.2", "onnxslim==0.1.98", _RUNTIME]
    # Builds of the two that fit each other: beside another torch, torchvision does not import.
    requirements += ["torch==2.12.0", "torchvision==0.27.0"]
    environment = make_environment(workshop.environments / "ultralytics", requirements)
    folder = workshop.folder / "ultralytics"
    folder.mkdir(exist_ok=True)
    # It keeps settings for its user, and installs packages by itself.
    variables = {"YOLO_CONFIG_DIR": str(folder), "YOLO_AUTOINSTALL": "false"}
    height, width = (side // _YOLO_STRIDE * _YOLO_STRIDE for side in read_card(workshop.model).preprocess.size)
    yolo, size = environment.program("yolo"), f"imgsz={height},{width}"
    exported = folder / f"{_YOLO}.onnx"
    if not exported.exists():  # of the same file both duels are, and it is whole only once it is here
        export: list[str | Path] = [yolo, "export", f"model={_YOLO}.yaml", "format=onnx", size]
        with tempfile.TemporaryDirectory(dir=folder) as workplace:
            run_program(export, variables=variables, folder=Path(workplace))
            (Path(workplace) / exported.name).replace(exported)
    settings = {
        "model": str(exported),
        "size": (height, width),
        "pictures": [str(path) for path in workshop.pictures],
        "out": str(workshop.folder / "them"),
    }
    once = [f"model={exported}", f"source={workshop.pictures[0]}", size, "device=cpu", "save=True"]
    theirs = Contender(
        f"Ultralytics {_YOLO}",
        "overlays, JPEG",
        environment,
        ("ultralytics", "torch", "torchvision", "onnxruntime"),
        lambda: Worker(environment.python, _ULTRALYTICS, settings, variables),
        lambda out: [yolo, "predict", "task=semantic", *once, f"project={out}", "name=run"],
        variables,
    )
    ours = _segship(workshop, exported if is_same_file else workshop.model, ("overlay",))
    return Duel(ours, theirs, ("files", "network"), len(workshop.pictures))
