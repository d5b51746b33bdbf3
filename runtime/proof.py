"""Is what runs what was proven? A model's certificate against its file, and against the engine that runs it."""

import warnings
from pathlib import Path

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.errors import UnprovenWarning
from segship.runtime.model_file import content_sha256


def warn_if_unproven(model: Path, card: ModelCard, engine: EngineInfo) -> None:
    """Warn where a model with a certificate was changed since, or runs in a combination that has no row in it."""
    if reason := unproven(model, card, engine):
        warnings.warn(f"{model}: {reason}", UnprovenWarning, stacklevel=3)


def unproven(model: Path, card: ModelCard, engine: EngineInfo) -> str:
    """Say in words why what runs was not proven; empty if it was, or if the model has no certificate at all."""
    if card.certificate is None:
        return ""
    if content_sha256(model, card) != card.certificate.content_sha256:
        return "its graph, weights or card were changed since it was proven to compute what PyTorch computes"
    if card.certificate.proof(engine.backend, engine.engine, engine.device, engine.precision) is None:
        return (
            f"its export did not compare it with PyTorch on {engine.engine}, {engine.device}, {engine.precision}; "
            f"do so here: seg-check model {model} --backend {engine.backend} --golden FILE.npz"
        )
    return ""
