"""Keep the records of finished runs: `hub-unets keep RUN... FOLDER [--publish MODEL]`.

FOLDER/NAME gets a run's results.json and per_image.csv, and a sub-folder for each evaluation in the run's folder.
MODEL gets the checkpoint, card and pictures of the run whose validation Dice is the median: `hub-unets predict` and
`hub-unets build` take it. `hub-unets report` makes the accuracy page from the records.
"""

import argparse
import shutil
from pathlib import Path

from hub_unets.hub_repos.repository.builder import PICTURES
from hub_unets.hub_repos.repository.card import write_card
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.measure.metrics import ranking_dice
from hub_unets.training.records.data_digests import DATA_DIGESTS
from hub_unets.training.records.folds import PICTURE as HARDEST
from hub_unets.training.records.locks import SCORINGS
from hub_unets.training.records.results import HISTORY, read_results

RECORDS = ("results.json", "per_image.csv")
CHECKPOINT = ("config.json", "model.safetensors", "preprocessor_config.json")
LARGEST = 16 * 10**6  # bytes of a file in the project


def keep_records(run, folder):
    """Copy a run's or an evaluation's records, and those of the evaluations in its folder, to `folder`.

    Raises:
        UserError: a record is missing or is not one of ours.
    """
    for path in [run, *sorted(run.glob("*/"))]:
        if path == run or (path / RECORDS[0]).exists() and path.name != "repository":
            require(path, RECORDS)
            read_results(path / RECORDS[0])
            copy(path, folder / path.relative_to(run), (*RECORDS, HISTORY, DATA_DIGESTS, SCORINGS, HARDEST))


def publish(run, folder):
    """Copy a run's checkpoint, records and pictures to `folder`, and write its card.

    Raises:
        UserError: a file is missing, or the weights are too large for the project.
    """
    require(run, CHECKPOINT)
    size = (run / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise UserError(
            f"{run}/model.safetensors has {size / 1e6:.1f} MB, the project keeps at most {LARGEST / 1e6:.0f}: train "
            "with half_precision: true, or a smaller network."
        )
    copy(run, folder, (*CHECKPOINT, *RECORDS, HISTORY, DATA_DIGESTS, INT8, *PICTURES))
    write_card(folder, read_results(folder / "results.json"))


def median(runs):
    """The run whose validation Dice is the median; of an even number the lower of the middle two."""
    results = {run: read_results(run / "results.json") for run in runs}
    ranked = sorted(runs, key=lambda run: ranking_dice(results[run]["metrics"]["validation"]))
    return ranked[(len(ranked) - 1) // 2]


def require(folder, names):
    """Raise UserError naming the first of these files that the folder lacks."""
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a finished run: {name} is missing; train with training/run.py.")


def copy(source, folder, names):
    """Copy the files that there are; of the others none stays in `folder`, where an earlier run may have left it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets keep", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("folder", type=Path, help="folder for a folder of each run's records")
    parser.add_argument("--publish", type=Path, metavar="MODEL", help="folder for the checkpoint of the median run")
    arguments = parser.parse_args(argv)
    for run in arguments.runs:
        require(run, RECORDS)
    if arguments.publish:
        median_run = median(arguments.runs)
        publish(median_run, arguments.publish)
        print(f"Model: {arguments.publish}, the median of {len(arguments.runs)} runs by validation Dice: {median_run}")
    for run in arguments.runs:
        keep_records(run, arguments.folder / run.name)
    print(f"Records: {arguments.folder}; now: hub-unets report")


if __name__ == "__main__":
    run_command(main)
