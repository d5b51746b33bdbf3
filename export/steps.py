"""How a picture becomes a model's input, and its output labels: each step in words and numbers, as Markdown."""

from collections.abc import Iterable
from typing import Final

from segship.export.example import input_axes, output_axes
from segship.export.triton import one_line_name
from segship.runtime.backends.common import input_dtype
from segship.runtime.card import ModelCard
from segship.runtime.labels import labels_dtype
from segship.runtime.preprocess import FULL_SCALE, Preprocess

_CHANNELS: Final = {"RGB": ("red", "green", "blue"), "BGR": ("blue", "green", "red"), "grey": ("grey",)}
_BITS: Final = {"uint8": "8-bit", "uint16": "16-bit"}


def input_steps(card: ModelCard) -> list[str]:
    """Return what has to be done to a picture's file, in order."""
    form = card.preprocess
    steps = [_decoding(form)]
    if card.frame is not None:
        height, width = card.frame
        steps.append(
            f"**Do not resize**: the picture must be {width} wide and {height} high. The graph resizes it itself."
        )
    elif card.tile_overlap is not None:
        steps.append(_tiling(card.preprocess.size, card.tile_overlap))
    else:
        steps += _resizing(form)
    steps.append(
        "**Do not normalise**: the graph takes the pixels as they are."
        if card.input_form == "pixels"
        else _normalisation(form)
    )
    layout = "picture, row, column, channel" if card.input_form == "pixels" else "picture, channel, row, column"
    steps.append(
        f"**Hand it over** as `{card.input_name}`: {input_axes(card)} {input_dtype(card)}, that is {layout}"
        f"{_order_of_channels(card)}.{_open_axes(card)}"
    )
    return steps


def _decoding(form: Preprocess) -> str:
    bits = _BITS[form.depth]
    upright = "turned upright as its EXIF data say"
    other = "16" if form.depth == "uint8" else "8"
    if form.channels == 1:
        return (
            f"**Decode** to {bits} grey, (H, W, 1) {form.depth}, {upright}. Pictures in colour or of {other} bits are "
            "not what it was made for."
        )
    return (
        f"**Decode** to {bits} red, green, blue, (H, W, 3) {form.depth}, {upright}. OpenCV decodes to blue, green, "
        "red: reverse the last axis. A grey picture has its value in all three. Pictures that are partly transparent, "
        f"or of {other} bits, are not what it was made for."
    )


def _resizing(form: Preprocess) -> list[str]:
    height, width = form.size
    filled = f"with {', '.join([str(form.fill)] * form.channels)}"
    if form.resize == "pad":
        return [
            f"**Do not resize**: a picture that is larger than {width} wide and {height} high is not for this model.",
            f"**Pad** to {width} wide and {height} high, at the right and below, {filled}.",
        ]
    if form.interpolation == "linear_float":
        rule = (
            "as float32, linearly, pixel centres aligned, without antialiasing and without rounding: "
            "`cv2.resize(…, interpolation=cv2.INTER_LINEAR)` on float32"
        )
    else:
        rule = (
            f"on the {_BITS[form.depth]} integers by `cv2.resize(…, interpolation=cv2.INTER_LINEAR_EXACT)`, whose "
            "result is the same on every machine; `INTER_LINEAR`, Pillow and PyTorch round or smooth in other ways"
        )
    if form.resize == "stretch":
        return [f"**Resize** to {width} wide and {height} high, whatever the aspect ratio, {rule}."]
    return [
        f"**Resize** with the aspect ratio kept, so that it just fits into {width} wide and {height} high: with the "
        f"scale s = min({width} / W, {height} / H), in double precision, to round(s · W) wide and round(s · H) high, "
        f"halves to the even number and at least 1, {rule}.",
        f"**Letterbox** it to {width} wide and {height} high {filled}: of the columns that are added, half, rounded "
        "down, lie on its left and the others on its right; of the rows, above and below it.",
    ]


def _tiling(size: tuple[int, int], overlap: float) -> str:
    height, width = size
    return (
        f"**Cut into tiles** of {width} wide and {height} high at the picture's own resolution, without resizing. "
        f"Along each axis tiles start every round(side · {1 - overlap:g}) pixels; the last one is moved back so that "
        "it ends with the picture. A picture smaller than a tile is padded below and at the right with its nearest "
        "pixels. The next steps are done for each tile."
    )


def _normalisation(form: Preprocess) -> str:
    if form.scale == "image_max":
        how = (
            "divide by the largest value of what is handed over (a black one: by 1), then in each channel subtract the "
            "mean and divide by the standard deviation."
        )
        return f"**Normalise** in float32: {how}\n\n{_table(form, 'mean', form.mean, 'standard deviation', form.std)}"
    full = FULL_SCALE[form.depth]
    gain, bias = form.gain_and_bias(full)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (form.mean, form.std))
    how = (
        f"in each channel `value * gain + bias`. This is (value / {full} − mean) / standard deviation, with the means "
        f"{mean} and the standard deviations {std}; do not divide by {full} once more."
    )
    return f"**Normalise** in float32: {how}\n\n{_table(form, 'gain', gain, 'bias', bias)}"


def _table(form: Preprocess, first: str, firsts: Iterable[float], second: str, seconds: Iterable[float]) -> str:
    """Return a number of each kind for each channel, in the network's order, indented as a part of a step."""
    rows = zip(_CHANNELS[form.color_order], map(str, firsts), map(str, seconds), strict=True)
    lines = [("channel", first, second), ("---", "---", "---"), *rows]
    return "\n".join(f"   | {' | '.join(cells)} |" for cells in lines)


def _order_of_channels(card: ModelCard) -> str:
    form = card.preprocess
    if form.channels == 1:
        return ""
    order = _CHANNELS["RGB" if card.input_form == "pixels" else form.color_order]
    return f", channels in the order {', '.join(order)}"


def _open_axes(card: ModelCard) -> str:
    text = " `N` may be any number of pictures." if "batch" in card.dynamic else ""
    if "size" in card.dynamic:
        height, width = card.preprocess.size
        text += (
            f" `h` and `w` may be any multiples of {card.stride}, to which the picture is brought then; it was made "
            f"for {height}×{width}."
        )
    return text


def output_steps(card: ModelCard) -> list[str]:
    """Return what has to be done to what the graph returns, in order."""
    dtype = labels_dtype(card.num_classes).__name__
    returned = f"`{card.output_name}`: {output_axes(card)}"
    if card.head == "labels":
        steps = [
            f"**The graph returns** {returned} {dtype}, that is picture, row, column: the id of each pixel's class."
        ]
        if card.frame is None:
            steps += _cutting(card.preprocess)
        if card.frame is None and card.preprocess.resize != "pad":
            steps.append(
                "**Resize** them to the picture's own width and height by the nearest pixel, "
                "`cv2.INTER_NEAREST_EXACT`; never linearly, since the mean of two ids is a third class."
            )
        return steps
    steps = [f"**The graph returns** {returned} float32, that is picture, plane, row, column: {_planes(card)}."]
    if card.tile_overlap is not None:
        steps.append(
            "**Blend the tiles**: each pixel of a tile counts by the product of a weight of its row and one of its "
            "column, Gaussian around the tile's middle with a standard deviation of an eighth of its side, divided so "
            "that the weights of all tiles at a pixel add up to 1. The program below does it."
        )
    elif card.frame is None and card.preprocess.resize == "pad":
        steps += _cutting(card.preprocess)
    elif card.frame is None:
        steps += _cutting(card.preprocess)
        what = {"multiclass": "the logarithms of the planes", "binary": "log(p) − log(1 − p)"}[card.task]
        steps.append(
            f"**Resize** {what if card.head == 'probabilities' else 'each plane'} to the picture's own width and "
            "height, linearly: `cv2.resize(…, interpolation=cv2.INTER_LINEAR)` on float32. Before the next step, not "
            "after it: that makes edges smooth."
        )
    steps.append(_decision(card, dtype))
    return steps


def _cutting(form: Preprocess) -> list[str]:
    """Return how to get rid of what was added around a picture."""
    where = {
        "letterbox": "the rows and columns that the picture was resized to",
        "pad": "the picture's rows and columns",
    }
    return [] if form.resize == "stretch" else [f"**Cut out** {where[form.resize]}; the others are of what was added."]


def _planes(card: ModelCard) -> str:
    if card.task == "binary":
        name = f"`{one_line_name(card.class_names[1])}`"
        if card.head == "probabilities":
            return f"the probability of {name}, 0…1"
        return f"a single one, the logit of {name}, whose sigmoid is its probability"
    if card.head == "probabilities":
        return "the probability of each class, 0…1"
    return "a number for each class, the larger the likelier. They are no probabilities; their softmax is"


def _decision(card: ModelCard, dtype: str) -> str:
    if card.task == "multiclass":
        return f"**The label** of a pixel, {dtype}, is the class with the largest value; of equal ones, the lowest."
    rest, thing = map(one_line_name, card.class_names)
    is_probability = card.head == "probabilities" and card.frame is not None
    limit = card.threshold if is_probability else card.logit_threshold
    why = "" if is_probability else f" (a probability of {card.threshold:g})"
    return f"**The label** of a pixel is 1 (`{thing}`) where its value is above {limit:g}{why}, otherwise 0 (`{rest}`)."
