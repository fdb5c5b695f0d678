"""Whether what was fitted on validation, a temperature and two thresholds, comes out again on its images."""

import copy
import math

import numpy as np

from hub_unets.training.errors import UserError
from hub_unets.training.measure.calibration import (
    COST,
    SCORES,
    THRESHOLDS,
    by_thresholds,
    fit_temperature,
    fold_temperature,
)
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task

TOLERANCES = {  # of a figure, by its name in results.json: float16 weights, divided and multiplied again, are rounded
    "temperature": 0.02,
    "loss_before": 1e-3,
    "ece_before": 1e-3,
    "dice_before": 1e-3,
    "false_alarms_before": 0.02,
    "false_alarms_after": 0.02,
}
SIZE_TOLERANCE = 5e-3  # of the images of one size
MARGIN = 2e-4  # of a mean Dice that is compared with COST
BEST_TOLERANCE = 0.02  # training validates in half precision where the machine can


def check_calibration(model, processor, rows, fitted):
    """The block `calibration` of results.json, computed again; its `_after` are compared with validation's elsewhere.

    A temperature that was folded into the weights can't be told from them. What is checked is that the weights are
    calibrated, as it is the one of the lowest cross-entropy for the logits multiplied by it, and the figures of those.

    Args:
        model: the published one, in eval mode.
        processor: its image processor, with the thresholds that were chosen.
        rows: the validation images.
        fitted: the block.

    Raises:
        UserError: a figure does not come out again, or other thresholds fit better.
    """
    before, temperature = score_before(model, processor, rows, fitted["temperature"])
    dice, alarms = by_thresholds(model, processor, rows)
    half = _place(THRESHOLDS, 0.5), 0
    chosen = _place(THRESHOLDS, processor.mask_threshold), _place(SCORES, processor.score_threshold)
    found = {
        "temperature": temperature,
        "loss_before": before["loss"]["value"],
        "ece_before": before["calibration"]["ece"],
        "dice_before": before["per_image"]["dice"]["value"],
        "false_alarms_before": float(alarms[half]),
        "false_alarms_after": float(alarms[chosen]),
    }
    for name, value in found.items():
        difference = math.log(value / fitted[name]) if name == "temperature" else value - fitted[name]
        if abs(difference) > TOLERANCES[name]:
            raise UserError(f"not reproduced: calibration.{name} is {value:.6f}, results.json says {fitted[name]}")
    _check_sizes(before["by_size"], fitted.get("by_size"))
    _check_choice(dice, alarms, chosen)
    return f"{len(rows)} images; the head is calibrated, and no other thresholds mark fewer crops at that Dice"


def score_before(model, processor, rows, temperature):
    """What the model scored before the temperature and thresholds, and the temperature that fits its logits then."""
    unfolded, plain = copy.deepcopy(model).float(), copy.deepcopy(processor)
    fold_temperature(unfolded, 1 / temperature)
    plain.mask_threshold, plain.score_threshold = 0.5, 0.0
    scores = score(unfolded, plain, rows, Task.of_polyps(unfolded.config))
    return scores.summary(), fit_temperature(scores.logits / len(scores.names))


def _place(grid, value):
    """The index of a value in THRESHOLDS or SCORES."""
    index = int(np.abs(grid - value).argmin())
    if abs(grid[index] - value) > 1e-6:
        raise UserError(f"not reproduced: a threshold of {value} is none of those that are tried")
    return index


def _check_sizes(found, said):
    """The rows by size of an older release are not there."""
    for ours, theirs in zip(found, said or found, strict=True):
        for name in ("dice", "recall") if said else ():
            if abs(ours[name]["value"] - theirs[f"{name}_before"]) > SIZE_TOLERANCE:
                raise UserError(
                    f"not reproduced: calibration.by_size, up to {ours['up_to']:g}: {name}_before is "
                    f"{ours[name]['value']:.4f}, results.json says {theirs[f'{name}_before']}"
                )


def _check_choice(dice, alarms, chosen):
    """No other pair of thresholds that surely costs at most COST of Dice marks fewer crops."""
    best, fewest = dice.max(), alarms[dice >= dice.max() - COST + MARGIN].min()
    if dice[chosen] < best - COST - MARGIN or alarms[chosen] > fewest + TOLERANCES["false_alarms_after"]:
        raise UserError(
            f"not reproduced: the thresholds give a Dice of {dice[chosen]:.4f} and mark {alarms[chosen]:.4f} of the "
            f"crops; others give {best:.4f}, and mark {fewest:.4f} at a Dice at most {COST} below it"
        )


def check_best(results):
    """The best epoch's Dice, as the training saw it, is near the one that its weights have before thresholds."""
    dice, validation = results["run"]["best"]["dice"], results["metrics"]["validation"]["per_image"]["dice"]["value"]
    found = results.get("calibration", {}).get("dice_before", validation)
    if abs(dice - found) > BEST_TOLERANCE:
        raise UserError(f"run.best.dice is {dice}, and its weights have {found:.4f} on validation")
    return f"{dice:.4f} as the training saw it, {found:.4f} here; {BEST_TOLERANCE} apart are allowed"
