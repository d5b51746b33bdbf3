"""What files are called in tables: by as much of their paths as tells them apart."""

from collections.abc import Iterable
from pathlib import Path, PurePath


def distinct_names(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return for each path its shortest end that no other one has: the file's name, and folders where they are needed.

    ``a/model.onnx`` beside ``b/model.onnx`` keeps its folder, ``a/model.onnx`` beside ``a/other.onnx`` does not.
    """
    parts = {str(path): PurePath(path).parts for path in paths}
    return {path: _end(own, [other for other in parts.values() if other != own]) for path, own in parts.items()}


def _end(own: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    for count in range(1, len(own)):
        if all(other[-count:] != own[-count:] for other in others):
            return PurePath(*own[-count:]).as_posix()
    return PurePath(*own).as_posix()
