"""Golden inputs and outputs of an exported file: what PyTorch says of the pictures that it was compared on."""

from collections.abc import Iterator
from pathlib import Path

from segship.export.exporter import ExportResult
from segship.export.parity import expectations
from segship.runtime.errors import ExportError
from segship.runtime.golden import Example, write_golden


def write_golden_of(result: ExportResult, path: Path) -> None:
    """Write golden inputs and outputs of what was exported.

    Raises:
        OutputError: if they cannot be written.
    """
    card = result.card
    if card.certificate is None:
        raise ExportError("golden outputs are those of a file that was compared, which this one was not")

    def examples() -> Iterator[Example]:
        for picture, expected in expectations(result.reference, card, result.pictures, result.convert):
            file = picture.source.read_bytes() if isinstance(picture.source, Path) else b""
            yield Example(picture.name, file, expected)

    write_golden(path, card, card.certificate.content_sha256, examples())
