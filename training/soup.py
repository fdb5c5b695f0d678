"""The mean of several runs' weights as one network: `hub-unets soup RUN RUN ... --data DATA --output_dir FOLDER`.

A greedy soup (Wortsman et al. 2022, arXiv:2203.05482, section 3.2): the run with the highest validation Dice comes
first, and each other one is added only if validation Dice does not fall. It works for runs of one start, the same
ImageNet weights or the same checkpoint, also for those of the folds of a cross-validation. The result is a folder like
a run's, and costs no more to use than one of them.
"""

import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors.torch import load_file
from transformers import HfArgumentParser

from hub_unets.training.data.partition import FOLD, make_partition
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.measure.metrics import ranking_dice
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.measure.weights import save_tensors
from hub_unets.training.records import locks
from hub_unets.training.records.results import data_record, environment_record, read_results, write_results
from hub_unets.training.records.run_pictures import draw
from hub_unets.training.settings.publishable import without_folders

CHECKPOINT = ("config.json", "preprocessor_config.json", "model.safetensors")
FOLDS_TOGETHER = (
    "the validation parts of all folds together: other members were trained on most of each, so the figures are "
    "not out of fold and serve to compare soups alone"
)
FREE = ("transformers_version", "mask_threshold", "score_threshold")  # may differ between the runs


@dataclass
class SoupArguments:
    """Average the weights of runs that started alike, as long as validation Dice does not fall."""

    data: str = field(metadata={"help": "The runs' data, as they were trained on: folder, zip, table, Hub id."})
    output_dir: str = field(metadata={"help": "New folder for the averaged run."})
    image_column: str | None = field(default=None, metadata={"help": "Column (or sub-folder) of the images."})
    mask_column: str | None = field(default=None, metadata={"help": "Column (or sub-folder) of the masks."})
    score_test: bool = field(default=True, metadata={"help": "False leaves the test part unseen."})


class Member(NamedTuple):
    """A finished run and the file contents that members must share."""

    folder: Path
    results: dict
    shared: dict

    @property
    def name(self):
        return self.folder.name

    @property
    def dice(self):
        return ranking_dice(self.results["metrics"]["validation"])


def main(argv=None):
    transformers.logging.disable_progress_bar()
    parser = HfArgumentParser(SoupArguments, prog="hub-unets soup", usage="%(prog)s RUN RUN ... --data DATA ...")
    parser.add_argument("runs", nargs="+", help="Folders of finished runs, two or more.")
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, positional = parser.parse_args_into_dataclasses(argv)
    output = Path(arguments.output_dir)
    if output.exists():
        raise UserError(f"{output} exists: choose another output_dir, or remove it.")
    members = sorted(map(read_member, positional.runs), key=lambda member: -member.dice)
    require_alike(members)
    best = members[0]
    model, _ = load_model(best.folder)
    settings, data = best.results["run"]["settings"], best.results["data"]
    source = load_source(arguments.data, arguments.image_column, arguments.mask_column, model.config.id2label)
    rows, partition, notes = common_partition(source, members)
    task = Task.of_run(model.config, data.get("boundary_width"))
    validation = rows.select(partition.validation)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".soup-") as temporary:
        folder = Path(temporary)
        kept, scores = greedy_soup(members, folder, lambda *pair: score(*pair, validation, task, crops=True))
        model, processor = load_model(folder)
        settings = settings | {"soup": ", ".join(member.name for member in kept)} | notes
        lock = locks.make_lock(
            model.config.model_type, settings, best.results["run"]["seed"], partition.seed, partition.sha256
        )
        scores = {"validation": scores}
        if arguments.score_test and partition.test:
            locks.log_scoring(folder, "test", len(partition.test), lock=lock)
            scores["test"] = score(
                model, processor, rows.select(partition.test), task, crops=True, progress="Score test"
            )
        seconds = sum(member.results["cost"]["training_seconds"] or 0 for member in kept)
        command = shlex.join(["hub-unets", "soup", *map(without_folders, argv)])
        results = {
            "run": best.results["run"] | {"name": output.name, "settings": settings, "command": command, "best": None},
            "data": data_record(arguments.data, partition, data.get("boundary_width"))
            | {name: data[name] for name in ("extra",) if name in data},
            **({"lock": locks.lock_record(folder, lock)} if "test" in scores else {}),
            "environment": environment_record(model) | {"processes": 1},
            "cost": best.results["cost"] | {"training_seconds": seconds},
        }
        draw(folder, [], scores, rows, model, processor, data.get("boundary_width"))
        print(write_results(folder, results, scores, partition.twins))
        output.mkdir()
        for path in folder.iterdir():  # the folder and its files are made anew: a temporary one is its owner's alone
            shutil.copyfile(path, output / path.name)
    print(f"The mean of {len(kept)} runs: {output}")


def read_member(folder):
    """A run's folder as a Member.

    Raises:
        UserError: it is no finished run that was scored on validation.
    """
    folder = Path(folder)
    for name in ("results.json", *CHECKPOINT):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a finished run: {name} is missing.")
    results = read_results(folder / "results.json")
    if "validation" not in results["metrics"] or "seed" not in results["run"]:
        raise UserError(f"{folder} is not a training that was scored on validation: name runs of hub-unets train.")
    contents = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in CHECKPOINT[:2]}
    shared = {f"{name}, {key}": value for name, fields in contents.items() for key, value in fields.items()}
    data, fold = results["data"], FOLD.fullmatch(results["data"]["split"])
    of_split = {"split": data["split"], "sha256": data["sha256"]} if fold is None else {"split": f"{fold[2]} folds"}
    of_split |= {name: data.get(name) for name in ("boundary_width", "split_seed", "extra")}
    shared |= {f"results.json, data.{name}": value for name, value in of_split.items()}
    return Member(folder, results, {name: value for name, value in shared.items() if not name.endswith(FREE)})


def common_partition(source, members):
    """The rows of the data; the members' split of them; and what the settings say of its validation part.

    Of different folds the validation part is all folds' together, and no image is left to test.

    Raises:
        UserError: the data split otherwise than when a member was trained.
    """
    partitions = {}
    for member in members:
        data = member.results["data"]
        if data["split"] not in partitions:
            rows, partitions[data["split"]] = make_partition(source, data["split"], data["split_seed"])
        if partitions[data["split"]].sha256 != data["sha256"]:
            raise UserError(f"the data split otherwise than when {member.name} was trained: give the runs' own data.")
    first, *others = partitions.values()
    if not others:
        return rows, first, {}
    validation = tuple(sorted({index for partition in partitions.values() for index in partition.validation}))
    name = f"{FOLD.fullmatch(first.name)[2]} folds"
    together = dataclasses.replace(first, name=name, train=(), validation=validation, test=(), twins=())
    return rows, together, {"soup_validation": FOLDS_TOGETHER}


def require_alike(members):
    """Raise UserError unless there are several runs of one network, one processor and one split, or its folds."""
    first, *others = members
    if not others:
        raise UserError(f"a soup takes two runs or more, got {first.folder} alone.")
    for member in others:
        for name in {**first.shared, **member.shared}:
            pair = [str(side.shared.get(name))[:80] for side in (first, member)]
            if pair[0] != pair[1]:
                raise UserError(
                    f"{first.name} and {member.name} can't be averaged: {name} is {pair[0]} and {pair[1]}."
                )


def greedy_soup(members, folder, score_validation):
    """Leave the averaged checkpoint in a folder.

    Args:
        members: the runs, the best first, whose thresholds the result has.
        folder: an empty folder.
        score_validation: takes a model and a processor, and returns Scores.

    Returns:
        (the members that were averaged, the Scores of their mean on validation).

    Raises:
        UserError: validation Dice falls whichever run is added to the best.
    """
    for name in CHECKPOINT:
        shutil.copyfile(members[0].folder / name, folder / name)
    kept, scores = members[:1], score_validation(*load_model(folder))
    dice = dice_of(scores)
    print(f"{members[0].name}: validation Dice {dice:.4f}")
    for member in members[1:]:
        stored = (folder / CHECKPOINT[-1]).read_bytes()
        states = [load_file(chosen.folder / CHECKPOINT[-1]) for chosen in (*kept, member)]
        save_tensors(mean_of(states), folder / CHECKPOINT[-1])
        candidate = score_validation(*load_model(folder))
        falls = not dice_of(candidate) >= dice
        print(f"with {member.name}: {dice_of(candidate):.4f}, {'left out' if falls else 'kept'}")
        if falls:
            (folder / CHECKPOINT[-1]).write_bytes(stored)
        else:
            kept, scores, dice = [*kept, member], candidate, dice_of(candidate)
    if len(kept) == 1:
        raise UserError(f"validation Dice falls whichever run is added to {kept[0].name}: nothing was written.")
    return kept, scores


def dice_of(scores):
    """The validation Dice that runs are chosen by."""
    return ranking_dice(scores.summary())


def mean_of(states):
    """The mean of each tensor of floats, in float32, stored as the first is; counters are the first's."""

    def mean(tensors):
        if not tensors[0].is_floating_point():
            return tensors[0]
        return torch.stack([tensor.float() for tensor in tensors]).mean(dim=0).to(tensors[0].dtype)

    return {name: mean([state[name] for state in states]) for name in states[0]}


if __name__ == "__main__":
    run_command(main)
