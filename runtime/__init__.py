"""The ground floor: runs exported models, with numpy, OpenCV, Pillow and one engine; never with torch.

Names are imported when they are first used, so that a command's ``--help`` does not wait for numpy and OpenCV.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segship.runtime.card import ModelCard
    from segship.runtime.errors import SegshipError
    from segship.runtime.preprocess import Preprocess
    from segship.runtime.result import Result
    from segship.runtime.segmenter import Segmenter

__all__ = ["ModelCard", "Preprocess", "Result", "Segmenter", "SegshipError"]

_HOMES = {
    "ModelCard": "card",
    "Preprocess": "preprocess",
    "Result": "result",
    "Segmenter": "segmenter",
    "SegshipError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
