"""Rows of engines as tables and as plain values: the same at export and on the machine that deploys."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from segship.runtime.backends import EngineInfo
from segship.runtime.candidate import EngineRow
from segship.runtime.certificate import Proof
from segship.runtime.compare import Comparison, figures
from segship.runtime.printable import printable

_COLUMNS: Final = (
    *("engine", "device", "precision", "max abs Δ", "99 % abs Δ", "cosine"),
    *("same labels", "flips, no near tie", "mIoU of masks", ""),
)


def engine_table(rows: Sequence[EngineRow]) -> list[str]:
    """Return rows as the lines of a Markdown table, and what was asked of them."""
    gates = dict.fromkeys(f"{row.engine.precision}: {row.gate}" for row in rows if row.gate is not None)
    lines = _as_table([*_engine_cells(row.engine), *_figure_cells(row.comparison), row.verdict] for row in rows)
    return [*lines, *([""] if gates else []), *(f"Asked of {gate}." for gate in gates)]


def proof_table(rows: Sequence[Proof]) -> list[str]:
    """Return the rows of a certificate as the lines of a Markdown table."""
    return _as_table(
        [
            *map(printable, (row.engine, row.device, row.precision)),
            _figure(row.max_abs, ".1e"),
            _figure(row.p99_abs, ".1e"),
            _figure(row.cosine, ".7f"),
            f"{100 * row.label_agreement:.4f} %",
            str(row.unexplained_flips),
            f"{row.miou:.5f}",
            "recorded" if not row.gate else "same" if row.passes else "DIFFERS",
        ]
        for row in rows
    )


def plain_row(row: EngineRow) -> dict[str, Any]:
    """Return a row as plain values, for JSON."""
    values = {
        "engine": dataclasses.asdict(row.engine),
        "gate": None if row.gate is None else str(row.gate),
        "verdict": row.verdict,
        "fault": row.fault,
    }
    return values if row.comparison is None else values | figures(row.comparison)


def engine_name(engine: EngineInfo) -> str:
    """Return what an engine is called in a sentence."""
    return f"{engine.engine} on {engine.device} in {engine.precision}"


def _as_table(rows: Any) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]


def _engine_cells(engine: EngineInfo) -> list[str]:
    return [engine.engine, engine.device, engine.precision]


def _figure_cells(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["n/a"] * 6
    return [
        _figure(comparison.max_abs, ".1e"),
        _figure(comparison.p99_abs, ".1e"),
        _figure(comparison.cosine, ".7f"),
        f"{100 * comparison.label_agreement:.4f} %",
        f"{comparison.unexplained_flips} of {comparison.differing_pixels}",
        f"{comparison.miou:.5f}",
    ]


def _figure(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
