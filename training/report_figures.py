"""The picture of a part's calibration: observed share of polyp pixels against predicted probability."""

from training.figures import BLUE, ORANGE, _dress, _figure, _rgb, _save
from training.reliability import expected_calibration_error, reliability_table


def reliability(scores, path):
    """Draw a panel for each part: its reliability curve over its pixels by probability; nothing without tables.

    Args:
        scores: {"validation", "test"} to Scores.
        path: of the PNG file.
    """
    tables = {part: reliability_table(sum(one.tables)) for part, one in scores.items() if one.tables}
    if not tables:
        return
    figure = _figure(4 * len(tables), 4.6, layout="constrained")
    axes = figure.subplots(2, len(tables), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
    for (upper, lower), (part, table) in zip(axes.T, tables.items(), strict=True):
        _draw_curve(upper, table)
        upper.set_title(f"{part}: ECE {expected_calibration_error(table):.4f}", size=11)
        _draw_pixels(lower, table)
    axes[0, 0].set_ylabel("share of polyp pixels")
    axes[1, 0].set_ylabel("pixels")
    _save(figure, path)


def _draw_curve(ax, table):
    filled = [row for row in table if row["pixels"]]
    observed = [row["polyp_pixels"] / row["pixels"] for row in filled]
    ax.plot([0, 1], [0, 1], color="black", ls=":", lw=1, label="calibrated")
    ax.plot([row["probability"] for row in filled], observed, "o-", color=_rgb(BLUE), ms=4, lw=1.6, label="observed")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    _dress(ax, "")


def _draw_pixels(ax, table):
    lefts, widths = [row["above"] for row in table], [row["up_to"] - row["above"] for row in table]
    ax.bar(lefts, [row["pixels"] for row in table], widths, align="edge", color=_rgb(ORANGE), ec="white", lw=0.5)
    ax.set_yscale("log")
    _dress(ax, "predicted probability")
