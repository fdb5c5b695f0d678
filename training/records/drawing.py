"""What all pictures share: colours, which colour-blind readers can tell apart (Okabe and Ito 2008), and a canvas."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # matplotlib takes a fifth of a second, and who predicts draws nothing with it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110

IGNORED = 255

IGNORED_COLOUR = (128, 128, 128)

SKY, GREEN, ORANGE, BLUE = (86, 180, 233), (0, 158, 115), (230, 159, 0), (0, 114, 178)

PURPLE, YELLOW, VERMILLION, WHITE = (204, 121, 167), (240, 228, 66), (213, 94, 0), (255, 255, 255)

CLASS_COLOURS = np.uint8([SKY, GREEN, ORANGE, BLUE, PURPLE, YELLOW, VERMILLION, WHITE])  # from class 9 on they repeat

ERROR_COLOURS = {"true positive": SKY, "false positive": VERMILLION, "false negative": YELLOW, "wrong class": PURPLE}


def new_figure(width: float, height: float, **options) -> "Figure":
    """An empty figure of width x height inches that no display or global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", optimize=True)


def rgb(colour: Iterable[int]) -> tuple[float, ...]:
    return tuple(int(value) / 255 for value in colour)


def dress(ax: "Axes", xlabel: str) -> None:
    ax.set_xlabel(xlabel)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, framealpha=0.95)
