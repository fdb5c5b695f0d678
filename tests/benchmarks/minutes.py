"""Minutes to accuracy: `hub-unets bench-minutes --data FOLDER --backbone_weights FILE [-- OPTIONS OF OUR TRAINING]`.

The whole training command's wall time until the validation Dice first exceeds each target, ours beside a plain loop
of segmentation-models-pytorch's Unet (`plain_training.py`) with the same encoder, weights, rates, augmentation and
epochs. The sides take turns, a seed each. What is done is kept in minutes.json: the command goes on when repeated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from hub_unets.benchmarks import page
from hub_unets.benchmarks.timing import hardware
from hub_unets.training.errors import run_command
from hub_unets.training.records.results import without_folder

HERE, RESULTS = Path(__file__).parent, "minutes.json"
OURS, PLAIN = "ours", "plain"
MODULES = {OURS: "hub_unets.training.run", PLAIN: "hub_unets.benchmarks.plain_training"}
TARGETS = 0.88, 0.9


def run_side(side, options, targets, whole=False):
    """Train one side and watch it.

    Args:
        side: a name of MODULES.
        options: of its command.
        targets: Dice in rising order.
        whole: go on to the end, for the best Dice, once the last target is reached.

    Returns:
        {"minutes": {target: minutes}, "best_dice": float, "epochs": those that were scored, "total_minutes": float}.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        extra = ["--output_dir", str(run), "--score_test", "false"] if side == OURS else []
        with Path(folder, "printed").open("w+") as printed, Path(folder, "errors").open("w+") as errors:
            command = [sys.executable, "-m", MODULES[side], *options, *extra]
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=printed, stderr=errors)
            scores = partial(dice_of_run, run) if side == OURS else partial(dice_of_lines, printed.name)
            try:
                minutes = dict(reached(process, scores, targets, whole))
            except RuntimeError as error:
                raise RuntimeError(f"{side}: {error}: {Path(errors.name).read_text()[-500:]}") from None
            total, found = (time.monotonic() - started) / 60, scores()
    best = round(max(found, default=0), 4)
    return {"minutes": minutes, "best_dice": best, "epochs": len(found), "total_minutes": round(total, 2)}


def reached(process, scores, targets, whole=False, pause=1):
    """Each target and the minutes after which a training process first exceeds it; then the process is ended.

    Args:
        process: the training.
        scores: returns the Dice of each epoch so far.
        targets: in rising order.
        whole: let it end by itself.
        pause: seconds between two looks.

    Raises:
        RuntimeError: it failed before.
    """
    started, missing, ended = time.monotonic(), list(targets), False
    while not ended and (whole or missing):
        ended = process.poll() is not None  # before the look at what it left
        best = max(scores(), default=0)
        while missing and best > missing[0]:
            yield missing.pop(0), round((time.monotonic() - started) / 60, 2)
        time.sleep(0 if ended else pause)
    process.terminate()
    if process.wait() and ended:
        raise RuntimeError("the training ended with an error")


def dice_of_run(run):
    """The validation Dice of each epoch, by the newest complete checkpoint of a running training."""
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    for path in reversed(states):
        try:
            history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        except (ValueError, OSError):  # it is being written, or was removed
            continue
        return [row["eval_dice"] for row in history if "eval_dice" in row]
    return []


def dice_of_lines(path):
    """The Dice that `plain_training` has printed so far."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["dice"] for line in lines if line.startswith("{") and line.endswith("}")]


def measure(common, sides, seeds, targets, whole, record, keep):
    """Add to a record what it lacks.

    Args:
        common: options of every side.
        sides: {name of a row: (a name of MODULES, options of its own)}.
        seeds: each is trained by every side in turn.
        targets, whole: as `run_side`.
        record: a list of rows.
        keep: called with the record after each run.
    """
    for seed in seeds:
        for name, (side, options) in sides.items():
            if any((row["side"], row["seed"]) == (name, seed) for row in record):
                continue
            result = run_side(side, [*common, *options, "--seed", str(seed)], targets, whole and side == OURS)
            record.append({"side": name, "seed": seed, **result})
            print(record[-1], flush=True)
            keep(record)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets bench-minutes", description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs="*", help="Options of our training behind --, which make a row of their own.")
    parser.add_argument("--recipe", default="unet_mobilenetv2", help="With a timm encoder that smp has too.")
    parser.add_argument("--data", required=True, help="Folder of the images.")
    parser.add_argument("--backbone_weights", required=True, help="File or folder of the encoder's weights.")
    parser.add_argument("--num_train_epochs", type=int, help="Of every side; default: the recipe's.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=[*MODULES], default=[*MODULES])
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="Validation Dice, rising.")
    parser.add_argument("--whole", action="store_true", help="Train ours to the end, for the best Dice.")
    parser.add_argument("--output", type=Path, default=HERE, help=f"Folder for {RESULTS}.")
    arguments = parser.parse_args(argv)
    common = [arguments.recipe, "--data", arguments.data, "--backbone_weights", arguments.backbone_weights]
    common += ["--num_train_epochs", str(arguments.num_train_epochs)] if arguments.num_train_epochs else []
    sides = {side: (side, []) for side in arguments.sides}
    if arguments.options:
        sides |= {" ".join([OURS, *arguments.options]): (OURS, arguments.options)}
    path = arguments.output / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    terms = {
        "recipe": arguments.recipe, "epochs": arguments.num_train_epochs, "data": without_folder(arguments.data),
        "hardware": hardware(),
    }  # fmt: skip
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"terms": terms, "runs": []}
    if known["terms"] != terms:
        parser.error(f"{path} is of {known['terms']}, this command of {terms}: name another --output.")

    def keep(runs):
        path.write_text(json.dumps({"terms": terms, "runs": runs}, indent=1) + "\n", encoding="utf-8")

    measure(common, sides, arguments.seeds, arguments.targets, arguments.whole, known["runs"], keep)
    print(page.minutes(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    run_command(main)
