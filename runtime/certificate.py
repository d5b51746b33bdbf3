"""The certificate: what was compared with PyTorch at export, on which engines, and what came of it.

It lies in the card, and names the graph, the weights and the card that it was made for by a sha-256, so that a file in
which any of these was changed is not covered by it. It is evidence, not a signature: who changes the file can change
the certificate too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """One engine against PyTorch, on one device and in one precision.

    Attributes:
        backend: the name that ``--backend`` takes.
        engine: library and version.
        device: ``cpu`` or ``cuda:N``.
        precision: what the engine calculated in: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        gate: what was asked of it, in words; empty for a comparison that is only recorded.
        passes: whether it kept to the gate.
        max_abs: largest absolute difference of what the graph returns; None where it returns labels.
        p99_abs: 99th percentile of the absolute differences, the largest over the pictures; None likewise.
        cosine: smallest cosine between what PyTorch and the engine return for a picture; None likewise.
        label_agreement: share of the pixels that have the same label, 0…1.
        unexplained_flips: pixels with another label that are no near tie.
        miou: mean IoU between the masks of the two, 0…1, over the classes that either shows.
        lost: points that the engine loses on the user's pictures, in the gate's unit; None where nothing was asked.
    """

    backend: str
    engine: str
    device: str
    precision: str
    gate: str
    passes: bool
    max_abs: float | None
    p99_abs: float | None
    cosine: float | None
    label_agreement: float
    unexplained_flips: int
    miou: float
    lost: float | None = None


@dataclass(frozen=True)
class Certificate:
    """What was compared.

    Attributes:
        content_sha256: of graph, weights and the card without its certificate; see ``model_file.content_sha256``.
        reference: what everything was compared with, such as ``PyTorch 2.13.0 on cpu``.
        pictures: what it was compared on, in words.
        absolute_tolerance: a value may differ by this plus …
        relative_tolerance: … this times the reference's magnitude.
        rows: one an engine, device and precision.
    """

    content_sha256: str
    reference: str
    pictures: str
    absolute_tolerance: float
    relative_tolerance: float
    rows: tuple[Proof, ...]

    def proof(self, backend: str, engine: str, device: str, precision: str) -> Proof | None:
        """Return the row of a combination that kept to its gate, if there is one.

        All GPUs count as one device, and all versions of an engine that begin with the same number as one engine.
        """
        wanted = (backend, _generation(engine), device.partition(":")[0], precision)
        for row in self.rows:
            if (
                row.backend,
                _generation(row.engine),
                row.device.partition(":")[0],
                row.precision,
            ) == wanted and row.passes:
                return row
        return None


def _generation(engine: str) -> str:
    """Return name and first number of a version, as in ``OpenCV 4`` of ``OpenCV 4.14.0``."""
    return engine.partition(".")[0]
