"""Errors between processes: the same class and words on the other side."""

from segship.runtime.error_transport import error_from_values, error_values
from segship.runtime.errors import BackendError, CardError, LossyConversionError


def test_errors_keep_their_class_and_words_between_processes() -> None:
    class OwnError(CardError):
        pass

    for error, kind in (
        (LossyConversionError("it is grey", "grey", "drop it"), LossyConversionError),
        (OwnError("not\nso"), CardError),
    ):
        again = error_from_values(error_values(error))
        assert type(again) is kind
        assert str(again) == str(error)
    unknown = error_from_values({"error": "Path", "message": "x"})
    assert type(unknown) is BackendError
    assert str(error_from_values(error_values(KeyError()))) == "the engine failed (KeyError)"
