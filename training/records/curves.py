"""PNG charts: training curves, the threshold, calibration, ranks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hub_unets.training.measure.reliability import expected_calibration_error, reliability_table
from hub_unets.training.records.drawing import BLUE, GREEN, ORANGE, VERMILLION, dress, new_figure, rgb, save_figure


def training_curves(log_history: list[dict], path: str | Path) -> None:
    """Draws loss, validation Dice and IoU with the best epoch marked, and learning rate against epochs.

    `log_history` is the Trainer's state.log_history. Values that are None or not finite leave gaps, a panel without a
    value is left out, and of a history without loss, eval_loss and eval_dice nothing is drawn.
    """
    keys = "loss", "eval_loss", "eval_dice", "eval_iou", "learning_rate"
    series = {key: _series(log_history, key) for key in keys}
    panels = [
        (draw, width)
        for draw, width, needs in (
            (_draw_losses, 3, ("loss", "eval_loss")),
            (_draw_overlap, 3, ("eval_dice",)),
            (_draw_learning_rate, 2, ("learning_rate",)),
        )
        if any(len(series[key]) for key in needs)
    ]
    if not any(len(series[key]) for key in keys[:3]):
        return
    widths = [width for _, width in panels]
    figure = new_figure(1.5 * sum(widths), 3.6, layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for (draw, _), ax in zip(panels, axes, strict=True):
        draw(ax, series)
        dress(ax, "epoch")
    save_figure(figure, path)


def threshold_curves(
    thresholds: Sequence[float],
    dice: Sequence[float],
    precision: Sequence[float],
    recall: Sequence[float],
    path: str | Path,
    chosen: float,
) -> None:
    """Draws the three validation scores (0 to 1) against the threshold, with the best Dice and `chosen` marked.

    Raises ValueError when there is no threshold or a score has another length.
    """
    scores = {"Dice": dice, "precision": precision, "recall": recall}
    lengths = {"thresholds": len(thresholds)} | {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) > 1 or len(thresholds) == 0:
        raise ValueError(f"thresholds and scores must be as many and at least one, got {lengths}: pass one score each")
    order = np.argsort(thresholds)
    x = np.asarray(thresholds, float)[order]
    figure = new_figure(6, 4, layout="constrained")
    ax = figure.subplots()
    for (name, values), colour, style in zip(scores.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
        ax.plot(x, np.asarray(values, float)[order], style, color=rgb(colour), label=name, lw=2)
    y = np.asarray(dice, float)[order]
    chosen_label = f"chosen {chosen:.3g}"
    if len(finite := np.flatnonzero(np.isfinite(y))):
        best = finite[y[finite].argmax()]
        _mark(ax, x[best], y[best], f"best Dice {y[best]:.3f} at {x[best]:.3g}")
        chosen_label += f": Dice {np.interp(chosen, x[finite], y[finite]):.3f}"
    ax.axvline(chosen, color=rgb(VERMILLION), ls=":", lw=2, label=chosen_label)
    ax.set_title("Validation scores by threshold", size=11)
    ax.set_ylabel("score (0 to 1)")
    dress(ax, "probability threshold")
    save_figure(figure, path)


def leaderboard(rows: Sequence[dict], path: str | Path, title: str, part: str = "test") -> None:
    """The Dice on `part` of each row of `training.records.leaderboard.ranked` with its interval, a panel a group.

    An open dot is really behind the first of its group; a full one is the first, or its difference may be chance.
    """
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    sizes = [len(group) for group in groups.values()]
    figure = new_figure(7.5, 0.8 + 0.27 * sum(sizes) + 0.45 * len(sizes), layout="constrained")
    axes = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=[size + 0.8 for size in sizes])
    for ax, (group, members) in zip(axes[:, 0], groups.items(), strict=True):
        for y, row in enumerate(members):
            dice, behind = row["dice"], row["difference"] is not None and row["difference"]["low"] > 0
            value, low, high = (_number(dice[key]) for key in ("value", "low", "high"))
            interval = [[value - low], [high - value]]
            fill = "white" if behind else rgb(BLUE)
            ax.errorbar(value, y, xerr=interval, fmt="o", color=rgb(BLUE), mfc=fill, ms=5, lw=1.2)
            ax.plot(_number(row["validation_dice"]), y, "|", color=rgb(VERMILLION), ms=9, mew=1.8)
        ax.set_yticks(range(len(members)), [row["name"] for row in members], size=8)
        ax.set_ylim(len(members) - 0.4, -0.6)
        ax.set_title(group, size=9, loc="left")
        ax.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel("Dice per image")
    handles = [
        Line2D([], [], marker="o", ls="", color=rgb(BLUE), label=f"{part}, 95 % interval"),
        Line2D(
            [], [], marker="o", ls="", color=rgb(BLUE), mfc="white", label=f"{part}, really behind its group's first"
        ),
        Line2D([], [], marker="|", ls="", color=rgb(VERMILLION), mew=1.8, label="validation, which ranks"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, size=11)
    save_figure(figure, path)


def _number(value: float | None) -> float:
    """NaN, which is not drawn, for a missing value."""
    return np.nan if value is None else value


def _series(log_history: list[dict], key: str) -> np.ndarray:
    """Finite values of `key` by epoch, float N x 2, N from 0.

    The first value of an epoch counts: an evaluation of the reloaded best model after training repeats the last epoch.
    """
    points = {}
    for entry in log_history:
        if "epoch" in entry and np.isfinite(_number(entry.get(key))):
            points.setdefault(entry["epoch"], entry[key])
    return np.array(list(points.items()), float).reshape(-1, 2)


def _draw_losses(ax: Axes, series: dict[str, np.ndarray]) -> None:
    for key, name, colour, style in (("loss", "training", BLUE, "-"), ("eval_loss", "validation", VERMILLION, "--")):
        if len(series[key]):
            _line(ax, series[key], name, colour, style)
    values = np.concatenate([series["loss"], series["eval_loss"]])[:, 1]
    if 0 < 10 * values.min() < values.max():
        ax.set_yscale("log")
    ax.set_title("Loss", size=11)
    ax.set_ylabel("loss")


def _draw_overlap(ax: Axes, series: dict[str, np.ndarray]) -> None:
    for key, name, colour, style in (("eval_dice", "Dice", BLUE, "-"), ("eval_iou", "IoU", ORANGE, "--")):
        if len(series[key]):
            _line(ax, series[key], name, colour, style)
    epoch, best = series["eval_dice"][series["eval_dice"][:, 1].argmax()]
    _mark(ax, epoch, best, f"best Dice {best:.3f}, epoch {epoch:.4g}")
    ax.axvline(epoch, color="black", ls=":", lw=1)
    ax.set_title("Validation overlap", size=11)
    ax.set_ylabel("score (0 to 1)")


def _draw_learning_rate(ax: Axes, series: dict[str, np.ndarray]) -> None:
    _line(ax, series["learning_rate"], None, GREEN, "-")
    ax.set_ylim(bottom=0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    ax.set_title("Learning rate", size=11)
    ax.set_ylabel("learning rate")


def _line(ax: Axes, points: np.ndarray, name: str | None, colour: tuple[int, int, int], style: str) -> None:
    """Draws points, float N x 2; the few of a short run get dots, without which a single one would not show."""
    dots = "o" if len(points) <= 40 else ""
    ax.plot(*points.T, style, marker=dots, markersize=3, color=rgb(colour), label=name, lw=1.6)


def _mark(ax: Axes, x: float, y: float, label: str) -> None:
    ax.plot([x], [y], ls="", marker="*", markersize=14, color="black", mec="white", label=label, zorder=5)


def reliability(scores, path):
    """Draw a panel for each part: its reliability curve over its pixels by probability; nothing without tables.

    Args:
        scores: {"validation", "test"} to Scores.
        path: of the PNG file.
    """
    tables = {part: reliability_table(sum(values.tables)) for part, values in scores.items() if values.tables}
    if not tables:
        return
    figure = new_figure(4 * len(tables), 4.6, layout="constrained")
    axes = figure.subplots(2, len(tables), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
    for (upper, lower), (part, table) in zip(axes.T, tables.items(), strict=True):
        _draw_curve(upper, table)
        upper.set_title(f"{part}: ECE {expected_calibration_error(table):.4f}", size=11)
        _draw_pixels(lower, table)
    axes[0, 0].set_ylabel("share of polyp pixels")
    axes[1, 0].set_ylabel("pixels")
    save_figure(figure, path)


def _draw_curve(ax, table):
    filled = [row for row in table if row["pixels"]]
    observed = [row["polyp_pixels"] / row["pixels"] for row in filled]
    ax.plot([0, 1], [0, 1], color="black", ls=":", lw=1, label="calibrated")
    ax.plot([row["probability"] for row in filled], observed, "o-", color=rgb(BLUE), ms=4, lw=1.6, label="observed")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    dress(ax, "")


def _draw_pixels(ax, table):
    lefts, widths = [row["above"] for row in table], [row["up_to"] - row["above"] for row in table]
    ax.bar(lefts, [row["pixels"] for row in table], widths, align="edge", color=rgb(ORANGE), ec="white", lw=0.5)
    ax.set_yscale("log")
    dress(ax, "predicted probability")
