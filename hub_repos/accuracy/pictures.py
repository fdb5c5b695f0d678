"""The picture of the accuracy page: seeds, sizes of polyps, ablations."""

import numpy as np

from hub_unets.training.records.drawing import BLUE, GREEN, ORANGE, VERMILLION, dress, new_figure, rgb, save_figure
from hub_unets.training.records.leaderboard import paired_difference

COLOURS = BLUE, ORANGE, GREEN, VERMILLION


def share(row):
    """A range of sizes in words."""
    return f"up to {100 * row['up_to']:g} %" if row["up_to"] < 1 else f"above {100 * row['above']:g} %"


def draw(recipes, path, published):
    """Draw two panels, and two more if a recipe has ablations.

    Args:
        recipes: `hub_repos.accuracy.records.Recipe`s, the main one first.
        path: of the PNG file.
        published: {method: (Dice, IoU)} of other papers.
    """
    trials = next((recipe.ablations() for recipe in recipes if recipe.ablations()), [])
    figure = new_figure(11, 8 if trials else 4.2, layout="constrained")
    axes = figure.subplots(2 if trials else 1, 2, squeeze=False)
    _draw_seeds(axes[0, 0], recipes, published)
    _draw_sizes(axes[0, 1], recipes[0])
    if trials:
        axes[1, 1].sharey(axes[1, 0])
        _draw_differences(axes[1, 0], trials)
        _draw_alarms(axes[1, 1], trials)
    save_figure(figure, path)


def _draw_seeds(ax, recipes, published):
    """Each seed's test Dice, and the interval of their mean."""
    for position, recipe in enumerate(recipes):
        estimate = recipe.dice_with_interval("test")
        error = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
        ax.errorbar(estimate["value"], position, xerr=error, fmt="|", color=rgb(BLUE), ms=14, lw=1.4)
        dices = recipe.seed_values("test", "per_image", "dice")
        ax.plot(dices, [position] * len(dices), "o", color=rgb(ORANGE), ms=5)
    for position, (dice, _) in enumerate(published.values(), start=len(recipes)):
        ax.plot(dice, position, "D", color="grey", mfc="white", ms=5)
    names = [*(recipe.name for recipe in recipes), *published]
    ax.set_yticks(range(len(names)), names, size=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_title("Test Dice: each seed (dots), mean, 95 % interval; of papers (diamonds)", size=10)
    dress(ax, "Dice per image")


def _draw_sizes(ax, recipe):
    """Mean over seeds of the Dice of each range of polyp sizes."""
    lines = {"test": [run.metrics("test") for run in recipe.runs]}
    lines |= {name: [record.metrics("test") for record in records] for name, records in recipe.external().items()}
    for (name, metrics), colour in zip(lines.items(), COLOURS, strict=False):
        rows = [[row["dice"]["value"] for row in seed_metrics["by_size"]] for seed_metrics in metrics]
        labels = [f"{share(row)}\n({row['images']})" for row in metrics[0]["by_size"]]
        shift = 0.06 * list(lines).index(name)  # so that the lines' dots do not cover each other
        positions = np.arange(len(labels)) + shift
        ax.plot(positions, np.mean(rows, axis=0), "o-", color=rgb(colour), label=name)
        for row in rows:
            ax.plot(positions, row, ".", color=rgb(colour), ms=4, alpha=0.6)
        if name == "test":
            ax.set_xticks(range(len(labels)), labels, size=8)
    ax.set_title(f"{recipe.name}: Dice by the polyp's share of the image", size=10)
    ax.set_ylabel("Dice per image")
    dress(ax, "share of the image (test images)")


def _draw_differences(ax, trials):
    baseline, *others = trials
    for position, trial in enumerate(others):
        difference = paired_difference(trial.dices("validation"), baseline.dices("validation"), len(others))
        error = [[difference["value"] - difference["low"]], [difference["high"] - difference["value"]]]
        ax.errorbar(difference["value"], position, xerr=error, fmt="o", color=rgb(BLUE), ms=5, lw=1.4)
    ax.axvline(0, color="black", lw=1)
    ax.set_xscale("symlog", linthresh=0.05)  # a random encoder's difference is ten times as large as any other
    ax.set_xticks([-0.5, -0.1, -0.05, -0.02, 0, 0.02, 0.05], ["−.5", "−.1", "−.05", "−.02", "0", ".02", ".05"])
    ax.set_yticks(range(len(others)), [trial.name.replace("_", " ") for trial in others], size=8)
    ax.invert_yaxis()
    ax.set_title("Ablations: Dice minus the recipe's as chosen", size=10)
    dress(ax, "difference of validation Dice")


def _draw_alarms(ax, trials):
    baseline, *others = (trial.value("validation", "false_alarms", "marked") or 0 for trial in trials)
    ax.barh(range(len(others)), others, color=rgb(ORANGE), height=0.6)
    ax.axvline(baseline, color="black", lw=1, label="as chosen")
    ax.tick_params(labelleft=False)
    ax.set_title("Ablations: polyp-free crops of validation marked", size=10)
    dress(ax, "share of the crops")
