"""Everything segship raises on purpose.

::

    SegshipError
    ├── CardError            a model card is missing, malformed or contradicts itself
    ├── ImageError           a picture cannot be read
    │   └── LossyConversionError  it can, but not without losing something
    ├── ModelError           a model file is no ONNX file, is damaged, or does not match its card
    ├── BackendError         an engine is missing or refuses the model
    │   ├── DeviceError      the device asked for is not there, or not what would run
    │   ├── StreamsError     an engine runs fewer at once than were asked for
    │   └── EngineCrashError an isolated engine died of a batch; the next one gets a new engine
    ├── DatasetError         a dataset is incomplete or its labels are wrong
    ├── CheckpointError      a checkpoint is missing, damaged or of another network
    ├── TrainingError        a training run cannot go on
    ├── OutputError          a file cannot be written where it was asked for
    ├── MissingExtraError    an optional part of segship is not installed
    └── ExportError          no file was exported
        └── ParityError      the exported file computes something else than PyTorch

    UnprovenWarning          a model runs in a way that was not compared with PyTorch, or is not the file that was

A message says what was got, what was expected, and what to do about it, in one line. Libraries raise;
only the commands turn an error into a line on stderr and an exit status:

======  ================================================================================
status  meaning
======  ================================================================================
0       everything that was asked for is done
1       an error ended the command, nothing half-written is left; or what a check or a
        comparison asks for does not hold (``seg-check``, ``seg-bench --compare``,
        ``--tolerance``, ``--recommend``)
2       the command was used wrongly (unknown option, missing argument)
3       done, except for what was reported and skipped: pictures, or rows of ``seg-bench``
130     interrupted from the keyboard
======  ================================================================================
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_SKIPPED: Final = 3
EXIT_INTERRUPTED: Final = 130


class SegshipError(Exception):
    """Base of every error that segship raises on purpose."""


class UnprovenWarning(UserWarning):
    """A model runs in a way that was not compared with PyTorch, or is not the file that was."""


class CardError(SegshipError):
    """A model card is missing, malformed or contradicts itself."""


class ImageError(SegshipError):
    """A picture cannot be read."""


class LossyConversionError(ImageError):
    """A picture fits only with a conversion that loses something and was not asked for.

    Attributes:
        finding: what the picture is and what was expected, without the advice.
    """

    def __init__(self, finding: str, conversion: str, loss: str) -> None:
        super().__init__(f"{finding}; to {loss}, ask for it: --convert {conversion}")
        self.finding = finding


class ModelError(SegshipError):
    """A model file is missing, damaged, no ONNX file, or does not match its card."""


class BackendError(SegshipError):
    """An engine is missing or refuses the model."""


class DeviceError(BackendError):
    """The device asked for is not there, or is not the one that would run."""


class StreamsError(BackendError):
    """An engine runs fewer at once than were asked for."""


class EngineCrashError(BackendError):
    """An isolated engine died of one batch, or was ended since it did not answer; the next one gets a new engine."""


class DatasetError(SegshipError):
    """A dataset is incomplete, or its labels are wrong."""


class CheckpointError(SegshipError):
    """A checkpoint is missing, damaged or belongs to another network."""


class TrainingError(SegshipError):
    """A training run cannot start or cannot go on."""


class OutputError(SegshipError):
    """A file cannot be written where it was asked for."""


class MissingExtraError(SegshipError):
    """An optional part of segship is not installed."""


class ExportError(SegshipError):
    """No file was exported."""


class ParityError(ExportError):
    """The exported file computes something else than PyTorch.

    Attributes:
        table: the whole comparison, as a Markdown table.
        failed: what each engine that does so does, by its name.
        picture: the picture that differs most, drawn, (H, W, 3) uint8 RGB; None if no engine came so far.
    """

    def __init__(self, message: str, table: str, failed: dict[str, str], picture: "NDArray[np.uint8] | None") -> None:
        super().__init__(message)
        self.table, self.failed, self.picture = table, failed, picture


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say in one line how to install it.

    Args:
        module: name of the module to import, such as ``"torch"``.
        extra: the extra of segship that brings it.
        purpose: what needs it, as the subject of a sentence ("training", "the ONNX Runtime backend").

    Raises:
        MissingExtraError: if the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module}, which does not import here ({error}); "
            f'install it with: pip install "segship[{extra}]"'
        ) from error


def one_line(error: BaseException) -> str:
    """Return what a library's error says, as one line of bounded length."""
    return " ".join(str(error).split())[:400]
