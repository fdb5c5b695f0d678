"""PNG pictures of images and masks: what the network saw, predictions and their errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from hub_unets.training.records.drawing import (
    CLASS_COLOURS,
    DPI,
    ERROR_COLOURS,
    IGNORED,
    IGNORED_COLOUR,
    new_figure,
    rgb,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 256  # rows

SIDE = 240  # pixels of the longer side of a drawn picture

LABEL, CELL = 1.5, (2.2, 1.85)  # inches: width of a row's label, width and height of a picture's cell


def first_batch(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], path: str | Path, max_images: int = 8
) -> None:
    """Draws the first `max_images` of a batch with their masks' outlines and light fill, four in a row.

    Raises ValueError when the batch is empty, an image is no uint8 H x W x 3, or a mask is of another size.
    """
    if len(images) == 0 or len(images) != len(masks):
        raise ValueError(
            f"images and masks must be as many, at least one, got {len(images)} and {len(masks)}: pass a whole batch"
        )
    pairs = list(zip(images, masks, strict=True))[:max_images]
    for number, (image, mask) in enumerate(pairs):
        _check_picture(f"image {number}", image, mask=mask)
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = new_figure(max(4.5, 2.3 * columns), 2.5 * rows + 0.4, layout="constrained")
    height, width = np.shape(images[0])[:2]
    figure.suptitle(f"First training batch: {len(pairs)} of {len(images)} images, {width} x {height} pixels", size=11)
    for ax in figure.subplots(rows, columns, squeeze=False).flat:
        ax.set_axis_off()
    for ax, (image, mask) in zip(figure.axes, pairs, strict=False):
        _draw_picture(ax, outlined(image, mask))
        ax.set_title(f"mask {100 * np.mean(_foreground(mask)):.1f} % of pixels", size=8)
    save_figure(figure, path)


def prediction_grid(
    cases: Sequence[dict], path: str | Path, title: str, class_names: dict[int, str] | None = None
) -> None:
    """Draws one row a case: image, truth, prediction, and errors over the greyed image, with a legend.

    A case is {"name": str, "image": uint8 H x W x 3, "truth": H x W, "prediction": H x W, "dice": float}; sizes may
    differ between cases. `class_names` are for the legend of several classes. Raises ValueError when there is no case,
    a case's arrays differ in size, or a prediction holds 255.
    """
    if len(cases) == 0:
        raise ValueError("cases is empty: pass at least one case with name, image, truth, prediction and dice")
    for case in cases:
        _check_picture(case["name"], case["image"], truth=case["truth"], prediction=case["prediction"])
        if np.any(np.asarray(case["prediction"]) == IGNORED):
            raise ValueError(
                f"{case['name']}: prediction holds {IGNORED}, which is no class: pass class indices from 0"
            )
    legends = _legend_rows(cases, class_names or {})
    head, foot = 0.7, 0.15 + 0.25 * len(legends)  # inches, as are LABEL and CELL
    width, height = LABEL + 4 * CELL[0], head + len(cases) * CELL[1] + foot
    figure = new_figure(width, height)
    figure.dpi = DPI * min(1, (8 / len(cases)) ** 0.5)  # more rows get smaller, as 8 already make a file of 1 MB
    figure.suptitle(title, size=12, y=1 - 0.15 / height, va="top")
    box = {"left": LABEL / width, "right": 1 - 0.03 / width, "bottom": foot / height, "top": 1 - head / height}
    axes = figure.subplots(len(cases), 4, squeeze=False, gridspec_kw={**box, "wspace": 0.03, "hspace": 0.05})
    for row, case in zip(axes, cases, strict=True):
        _draw_case(row, case)
    for number, case in enumerate(cases):
        _side_text(figure, head + (number + 0.5) * CELL[1], _row_label(case))
    for column, name in enumerate(("image", "truth", "prediction", "errors")):
        x = (LABEL + (column + 0.5) * CELL[0]) / width
        figure.text(x, 1 - (head - 0.06) / height, name, size=10, ha="center", va="bottom")
    for number, (name, colours) in enumerate(legends.items()):
        _draw_legend(figure, height - foot + 0.25 * (number + 0.7), name, colours)
    save_figure(figure, path)


def error_overlay(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The greyed image, uint8 H x W x 3, with each foreground pixel two thirds in its ERROR_COLOURS.

    A pixel is a false positive where background is predicted as a class, a false negative where a class is predicted
    as background, and of the wrong class where the classes differ. Pixels ignored in the truth stay grey.
    """
    valid, predicted, labelled = truth != IGNORED, prediction > 0, truth > 0
    kinds = {
        "true positive": labelled & (prediction == truth),
        "false positive": ~labelled & predicted,
        "false negative": labelled & ~predicted,
        "wrong class": labelled & predicted & (prediction != truth),
    }
    overlay = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for kind, pixels in kinds.items():
        pixels = valid & pixels
        overlay[pixels] = (overlay[pixels].astype(np.uint16) + 2 * np.uint16(ERROR_COLOURS[kind])) // 3
    return overlay


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, uint8 H x W x 3, with every class of the mask outlined and a quarter filled in its colour."""
    mask, picture = np.asarray(mask), image.copy()
    for top in range(0, len(mask), BAND):  # a large image's temporary arrays would take gigabytes
        band, rows = picture[top : top + BAND], mask[top : top + BAND]
        painted = rows > 0
        band[painted] = (3 * band[painted].astype(np.uint16) + coloured(rows[painted][None])[0]) // 4
    thickness = max(1, round(max(mask.shape) / 120))
    for label in np.unique(mask[mask > 0]):
        region = (mask == label).astype(np.uint8)
        contours, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, coloured([[label]])[0, 0].tolist(), thickness)
    return picture


def coloured(mask: np.ndarray) -> np.ndarray:
    """The mask as a picture, uint8 H x W x 3: black background, one of CLASS_COLOURS a class, ignored pixels grey."""
    mask = np.asarray(mask).astype(np.int64)
    picture = CLASS_COLOURS[(mask - 1) % len(CLASS_COLOURS)]
    picture[mask == 0] = 0
    picture[mask == IGNORED] = IGNORED_COLOUR
    return picture


def pick_cases(
    dice: Sequence[float], names: Sequence[str], typical: int = 4, worst: int = 10
) -> tuple[list[str], list[str]]:
    """Names of `typical` images spread over the middle fifth of the Dice ranks, and of the `worst`, both ascending.

    Ties go by name; a Dice that is None or NaN counts as the worst. With few images the middle widens, the two lists
    may share names, and neither is longer than `names`. Raises ValueError when dice and names differ in length.
    """
    if len(dice) != len(names):
        raise ValueError(f"dice and names must be as many, got {len(dice)} and {len(names)}: pass one Dice an image")
    ranked = [name for _, name in sorted(zip(map(_or_worst, dice), names, strict=True))]
    count, middle = min(typical, len(ranked)), (len(ranked) - 1) / 2
    reach = max(0.1 * (len(ranked) - 1), (count - 1) / 2) if count > 1 else 0  # steps of one rank or more: no repeats
    ranks = np.floor(np.linspace(middle - reach, middle + reach, count) + 0.5).astype(int)
    return [ranked[rank] for rank in ranks], ranked[:worst]


def _or_worst(dice: float | None) -> float:
    return -1.0 if dice is None or np.isnan(dice) else dice


def _check_picture(name: str, image: np.ndarray, **masks: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{name}: image must be uint8 H x W x 3, got {image.dtype} {image.shape}: undo the normalisation first"
        )
    for field, mask in masks.items():
        if np.shape(mask) != image.shape[:2]:
            raise ValueError(
                f"{name}: {field} must have its image's size {image.shape[:2]}, got {np.shape(mask)}: resize it first"
            )


def _foreground(mask: np.ndarray) -> np.ndarray:
    """Where the mask has a class, bool H x W."""
    return (mask > 0) & (mask != IGNORED)


def _draw_picture(ax: "Axes", picture: np.ndarray) -> None:
    """Shows uint8 H x W x 3 as large as the axes allow, at most SIDE pixels stored."""
    scale = SIDE / max(picture.shape)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ax.imshow(picture, interpolation="nearest" if scale > 2 else "antialiased")


def _draw_case(row: np.ndarray, case: dict) -> None:
    """Fills the four axes of `row` with the case's image, truth, prediction and errors."""
    image, truth, prediction = case["image"], np.asarray(case["truth"]), np.asarray(case["prediction"])
    pictures = image, coloured(truth), coloured(prediction), error_overlay(image, truth, prediction)
    for ax, picture in zip(row, pictures, strict=True):
        _draw_picture(ax, picture)
        ax.set_axis_off()
    for ax, mask in ((row[1], truth), (row[2], prediction)):
        if not _foreground(mask).any():
            ax.text(0.5, 0.5, "empty", transform=ax.transAxes, color="white", size=10, ha="center", va="center")


def _row_label(case: dict) -> str:
    name = str(case["name"])
    short = name if len(name) <= 16 else f"{name[:8]}…{name[-7:]}"
    dice = case["dice"]
    return f"{short}\nDice {'–' if dice is None or np.isnan(dice) else f'{dice:.3f}'}"


def _legend_rows(cases: Sequence[dict], class_names: dict[int, str]) -> dict[str, dict[str, Sequence[int]]]:
    """The colours to name, by the columns they stand in: the kinds of error, and the classes if there are several."""
    masks = [np.asarray(case[field]) for case in cases for field in ("truth", "prediction")]
    present = set().union(*(np.unique(mask).tolist() for mask in masks))
    classes = {
        class_names.get(label, f"class {label}"): CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]
        for label in sorted(present - {0, IGNORED})
    }
    kinds = {kind: colour for kind, colour in ERROR_COLOURS.items() if kind != "wrong class" or len(classes) > 1}
    several = max(len(classes), len(class_names) - 1) > 1  # a class of several may be alone in these cases
    mask_colours = (classes if several else {}) | ({"ignored": IGNORED_COLOUR} if IGNORED in present else {})
    return {"errors": kinds} | ({"truth, prediction": mask_colours} if mask_colours else {})


def _draw_legend(figure: "Figure", y: float, name: str, colours: dict[str, Sequence[int]]) -> None:
    """Draws `name` and a patch for each colour in one line, y inches below the top."""
    _side_text(figure, y, name)
    width, height = figure.get_size_inches()
    position = {"loc": "center left", "bbox_to_anchor": (LABEL / width, 1 - y / height), "borderaxespad": 0}
    from matplotlib.patches import Patch

    handles = [Patch(color=rgb(colour), label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, borderpad=0, **position)


def _side_text(figure: "Figure", y: float, text: str) -> None:
    """Writes text left of the pictures, its middle y inches below the top."""
    width, height = figure.get_size_inches()
    figure.text((LABEL - 0.1) / width, 1 - y / height, text, size=9, ha="right", va="center", linespacing=1.6)
