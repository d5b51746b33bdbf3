"""Writing files so that a reader only ever sees a whole one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from segship.runtime.errors import OutputError
from segship.runtime.printable import printable


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on failure it goes.

    The temporary name keeps the suffix, so that writers which choose the format by name work.

    Args:
        path: the file to write. Its folder is made if it is missing.
        durable: wait until the bytes are on the disk before replacing (for what must survive a power cut).

    Raises:
        OutputError: if the place cannot be written, or the disk is full.
    """
    begin = os.fsencode(path.stem)[:100].decode(errors="ignore")  # a name may have 255 bytes
    temporary = path.with_name(f".{begin}.{os.urandom(4).hex()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        if durable and os.name == "posix":
            _flush(path.parent, os.O_RDONLY)  # the new name, too
    except OSError as error:
        raise OutputError(f"cannot write {printable(path)}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # such as a folder that is a file: what went wrong is said above
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
