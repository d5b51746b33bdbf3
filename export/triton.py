"""A model repository for Triton Inference Server: what the server must know of a model, and its classes' names."""

import json
import re
from pathlib import Path
from typing import Final

from segship.runtime.backends.common import input_dtype
from segship.runtime.card import ModelCard, Shape
from segship.runtime.files import write_text
from segship.runtime.labels import labels_dtype

MAX_BATCH: Final = 8
"""Pictures that the server may put into one run, where the graph takes any number."""

LABELS_FILE: Final = "labels.txt"

_TYPES: Final = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16"}


def triton_name(model: Path) -> str:
    """Return what the server calls a model: the file's name, of which other characters than these are underscores."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", model.stem)


def write_repository(repository: Path, name: str, card: ModelCard) -> Path:
    """Write a model's folder in a model repository, but not the model.

    Args:
        repository: its folder, which is made.
        name: of the model in it; see :func:`triton_name`.
        card: the model's.

    Returns:
        Where the server looks for the model; files with weights of it belong beside it.

    Raises:
        OutputError: if it cannot be written.
    """
    write_text(repository / name / "config.pbtxt", triton_config(name, card))
    write_text(repository / name / LABELS_FILE, "".join(f"{one_line_name(label)}\n" for label in card.class_names))
    return repository / name / "1" / "model.onnx"


def triton_config(name: str, card: ModelCard) -> str:
    """Return a model's configuration, a ``ModelConfig`` of Triton's model_config.proto in protobuf's text format."""
    is_batched = "batch" in card.dynamic
    batching = (
        f"# Waiting requests are run together. Larger batches take more memory.\nmax_batch_size: {MAX_BATCH}\n"
        "dynamic_batching { }\n"
        if is_batched
        else "# The graph takes one picture at a time; after seg-export --dynamic batch the server runs several.\n"
        "max_batch_size: 0\n"
    )
    returned = labels_dtype(card.num_classes).__name__ if card.head == "labels" else "float32"
    # A binary network's only plane stands for its second class, and no line of the labels file for a plane.
    labels = "" if card.task == "binary" and card.head != "labels" else f'  label_filename: "{LABELS_FILE}"\n'
    return (
        f"name: {json.dumps(name)}\n"
        'platform: "onnxruntime_onnx"\n'
        f"{batching}"
        f"input {{\n{_tensor(card.input_name, str(input_dtype(card)), card.input_shape, is_batched)}}}\n"
        f"output {{\n{_tensor(card.output_name, returned, card.output_shape, is_batched)}{labels}}}\n"
    )


def one_line_name(name: str) -> str:
    """Return a class's name on one line."""
    return " ".join(name.split())


def _tensor(name: str, dtype: str, shape: Shape, is_batched: bool) -> str:
    """Describe a tensor; where the server puts batches together, their axis is not counted among its own."""
    sides = ", ".join("-1" if side is None else str(side) for side in (shape[1:] if is_batched else shape))
    return f"  name: {json.dumps(name)}\n  data_type: {_TYPES[dtype]}\n  dims: [ {sides} ]\n"
