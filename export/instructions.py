"""The page that goes with a model: what it is, how it is run step by step and as a program, and what proves it."""

from pathlib import Path
from typing import Final

from segship.export.example import PICTURE, example
from segship.export.steps import input_steps, output_steps
from segship.export.triton import MAX_BATCH, one_line_name
from segship.runtime.card import ModelCard
from segship.runtime.model_file import read_onnx_header
from segship.training.checkpoint import file_sha256

MAX_CLASSES_LISTED: Final = 48
"""Of more classes than these the page says where their names are."""


def instructions(card: ModelCard, model: Path, *, triton: str) -> str:
    """Return the page as Markdown.

    Args:
        card: the model's.
        model: the file.
        triton: where in the folder the model's part of the Triton repository lies.
    """
    sections = {
        f"{model.stem}: {card.num_classes} classes, pixel by pixel": _summary(card, model, triton),
        "1. From a picture to the input": _numbered(input_steps(card)),
        "2. From the output to labels": _numbered(output_steps(card)),
        "3. The classes": _classes(card, triton),
        "4. All of it as a program": _program(card, model),
        "5. What was proven, and how to prove it here": _proof(card, model),
        "6. On Triton Inference Server": _serving(card, triton),
    }
    title, *others = sections
    parts = [f"# {title}", sections[title], *(f"## {other}\n\n{sections[other]}" for other in others)]
    return "\n\n".join(parts) + "\n"


def _summary(card: ModelCard, model: Path, triton: str) -> str:
    opset, size = read_onnx_header(model).opset, model.stat().st_size / 1e6
    return (
        f"`{model.name}` takes a picture and says of each of its pixels which class it belongs to. All on this "
        "page was written from the card that the file carries, and holds for this file: "
        f"{size:.1f} MB, ONNX opset {opset}, {card.precision}, sha-256 `{file_sha256(model)}`.\n\n"
        "| file | what it is |\n|---|---|\n"
        f"| `{model.name}` | the model |\n"
        "| `card.json` | all that is on this page, for programs; the model carries the same text |\n"
        "| `golden.npz` | pictures, and what PyTorch says of them, to check any machine with |\n"
        f"| `{triton}/` | the model for Triton Inference Server |\n\n"
        f'The short way is `pip install "segship[cpu]"` and `seg-infer {model.name} PICTURES`, which does all that '
        "follows. Without it, these are the steps; each of them changes labels if it is done in another way."
    )


def _classes(card: ModelCard, triton: str) -> str:
    if card.num_classes > MAX_CLASSES_LISTED:
        return (
            f"The ids are 0…{card.num_classes - 1}. Line 1 of `{triton}/labels.txt` is the name of the class 0, and so "
            "on; `card.json` has names (`class_names`) and colours (`palette`)."
        )
    rows = zip(card.class_names, card.palette, strict=True)
    return "| id | class | red, green, blue |\n|---|---|---|\n" + "\n".join(
        f"| {number} | {_cell(name)} | {', '.join(map(str, color))} |" for number, (name, color) in enumerate(rows)
    )


def _program(card: ModelCard, model: Path) -> str:
    packages = "numpy onnxruntime opencv-python-headless" + (" pillow" if card.preprocess.depth == "uint8" else "")
    return (
        f"Run it in this folder, beside a picture `{PICTURE}`; it needs `pip install {packages}`.\n\n"
        f"```python\n{example(card, model.name)}```"
    )


def _proof(card: ModelCard, model: Path) -> str:
    check = (
        f'```shell\npip install "segship[cpu]"\nseg-check model {model.name} --golden golden.npz\n```\n\n'
        "It runs the pictures in `golden.npz` on every engine of this machine, from file to mask, and compares with "
        "what PyTorch said of them. Its exit status is 0 if all is the same. Do it once on each kind of machine that "
        "the model goes to, and after each change of engine or driver."
    )
    if card.certificate is None:
        return f"The file carries no certificate: nobody has compared it with PyTorch.\n\n{check}"
    rows = "\n".join(
        f"| {row.engine} | {row.device} | {row.precision} | {100 * row.label_agreement:.3f} % | "
        f"{'recorded only' if not row.gate else 'passed' if row.passes else 'FAILED'} |"
        for row in card.certificate.rows
    )
    return (
        f"When it was exported, this file was compared with {card.certificate.reference}, on "
        f"{card.certificate.pictures}:\n\n"
        "| engine | device | computes in | same labels | verdict |\n|---|---|---|---|---|\n"
        f"{rows}\n\nWhat is not in this table is unproven. To compare on the machine that it will run on:\n\n{check}"
    )


def _serving(card: ModelCard, triton: str) -> str:
    batches = (
        f"The server puts up to {MAX_BATCH} waiting pictures into one run (`max_batch_size`)."
        if "batch" in card.dynamic
        else "Requests hold one picture; a model exported with `--dynamic batch` lets the server run several at once."
    )
    repository, _, name = triton.partition("/")
    return (
        f'`tritonserver --model-repository="$PWD/{repository}"` serves it as `{name}`. It takes and returns what the '
        f"graph does, so the steps of 1 and 2 are the client's. {batches}"
    )


def _numbered(steps: list[str]) -> str:
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _cell(text: str) -> str:
    return one_line_name(text).replace("|", r"\|")
