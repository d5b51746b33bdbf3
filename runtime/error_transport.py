"""Errors on their way from one process to another: the same class and words, and nothing that is executed."""

from typing import Any

from segship.runtime import errors
from segship.runtime.errors import BackendError, SegshipError, one_line


def error_values(error: Exception) -> dict[str, Any]:
    """Say what an error is in plain values: the nearest class that every process knows, and its message.

    What is no :class:`SegshipError` becomes a :class:`BackendError` that names it.
    """
    for kind in type(error).__mro__:
        if issubclass(kind, SegshipError) and getattr(errors, kind.__name__, None) is kind:
            return {"error": kind.__name__, "message": str(error)}
    text = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
    return {"error": BackendError.__name__, "message": f"the engine failed ({text})"}


def error_from_values(values: dict[str, Any]) -> SegshipError:
    """Return the error that :func:`error_values` told of."""
    kind = getattr(errors, str(values.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, SegshipError)):
        kind = BackendError
    # Not by calling it: some take more than a message, and make their message of it.
    return kind.__new__(kind, str(values.get("message", "")))
