"""A card for people: what a model takes, what it returns, and where it comes from."""

from rich.text import Text

from segship.runtime.card import ModelCard, Shape
from segship.runtime.engine_table import proof_table
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.runtime.printable import printable

_LABEL_WIDTH = 13


def card_text(card: ModelCard, *, is_certified: bool | None) -> Text:
    """Return a card as lines, with the classes' colours where a terminal shows them.

    Args:
        card: to be shown.
        is_certified: whether its certificate is that of the file it lies in; None if there is no telling.
    """
    text = Text()
    for label, value in _facts(card):
        text.append(f"{label:<{_LABEL_WIDTH}}", "bold")
        text.append(f"{printable(value)}\n")
    width = len(str(card.num_classes - 1))
    for number, (name, (red, green, blue)) in enumerate(zip(card.class_names, card.palette, strict=True)):
        text.append(f"{'classes' if number == 0 else '':<{_LABEL_WIDTH}}", "bold")
        text.append(f"{number:>{width}} ")
        text.append("  ", f"on rgb({red},{green},{blue})")
        text.append(f" #{red:02x}{green:02x}{blue:02x}  {printable(name)}\n")
    text.append(f"{'certificate':<{_LABEL_WIDTH}}", "bold")
    text.append("\n".join(_certificate_lines(card, is_certified)) + "\n")
    return text


def _facts(card: ModelCard) -> list[tuple[str, str]]:
    source, form = card.provenance, card.preprocess
    height, width = card.frame or form.size
    network = (
        "of another origin" if card.network is None else " ".join([card.network.arch, *_pairs(card.network.options)])
    )
    task = card.task if card.task == "multiclass" else f"binary, {card.class_names[1]} above {card.threshold:g}"
    dynamic = f", open: {', '.join(card.dynamic)} (sides: multiples of {card.stride})" if card.dynamic else ""
    tiles = "" if card.tile_overlap is None else f", cut into tiles that overlap by {card.tile_overlap:.0%}"
    added = "" if form.resize == "stretch" else f", filled with {form.fill}"
    coarse = "" if card.output_stride == 1 else f", one for {card.output_stride}×{card.output_stride} pixels"
    facts = [
        ("network", f"{network}, {card.precision}"),
        ("task", f"{task}, {card.num_classes} classes"),
        ("pictures", f"{form.depth}, {_order(form)}, brought to {height}×{width} (height × width){tiles}"),
        ("resize", f"{form.resize}, {form.interpolation}{added}" + (", in the graph" if card.frame else "")),
        ("normalise", _normalisation(form) + (", in the graph" if card.input_form == "pixels" else "")),
        ("takes", f"{card.input_name} {_shape(card.input_shape)} {card.input_dtype}{dynamic}"),
        ("returns", f"{card.output_name} {_shape(card.output_shape)}: {card.head}{coarse}"),
        ("dataset", f"{source.dataset or 'not recorded'}" + (f", epoch {source.epoch}" if source.epoch else "")),
        ("metrics", " ".join(f"{name} {value:.4g}" for name, value in source.metrics.items())),
        ("versions", " ".join(_pairs(source.versions))),
        ("checkpoint", source.checkpoint_sha256),
    ]
    return [(label, value) for label, value in facts if value]


def _order(form: Preprocess) -> str:
    return "grey" if form.channels == 1 else f"{form.color_order} channels"


def _normalisation(form: Preprocess) -> str:
    divisor = str(FULL_SCALE[form.depth]) if form.scale == "full_scale" else "the picture's largest value"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (form.mean, form.std))
    return f"(value / {divisor} − mean) / std, mean {mean}, std {std}"


def _certificate_lines(card: ModelCard, is_certified: bool | None) -> list[str]:
    certificate = card.certificate
    if certificate is None:
        return ["none: nothing says that this model was compared with PyTorch"]
    verdict = {True: "matches this file", False: "DOES NOT match this file, which was changed since", None: "of a file"}
    about = f"against {certificate.reference}, on {certificate.pictures}"
    return [printable(f"{verdict[is_certified]}; {about}"), "", *proof_table(certificate.rows)]


def _pairs(values: dict[str, int | str] | dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _shape(shape: Shape) -> str:
    return f"({', '.join('open' if side is None else str(side) for side in shape)})"
