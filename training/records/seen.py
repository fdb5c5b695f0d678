"""Whether a model that a run starts from, or is taught by, has learned what the run is chosen and tested by."""

import json
from pathlib import Path

from hub_unets.training.data.partition import make_partition
from hub_unets.training.errors import UserError
from hub_unets.training.measure.ensemble import ENSEMBLE
from hub_unets.training.records.results import read_results, source_name


def refuse_seen(field, name, data, source, partition):
    """Raise UserError where a model learned from a run's validation or test images, or was chosen by its test images.

    Told by the results.json of a run, a repository or an ensemble's members, where these had the same data: of
    other models nothing is known.

    Args:
        field: what names the model in a recipe.
        name: a folder; a Hub id is passed over.
        data: of the run, as `--data`.
        source: what `load_source` makes of it.
        partition: of the run.
    """
    for folder in _folders(Path(name)):
        if not (folder / "results.json").is_file():
            continue
        record = read_results(folder / "results.json")["data"]
        of_folds = record["split"].endswith(" folds") and record["source"] == source_name(data)
        seen = len(_held_out(partition)) if of_folds else _seen(record, source, partition)
        if seen:
            raise UserError(
                f"{field}: {folder} learned from {seen} of the images that this run is chosen or tested by: take a "
                f"model of the same split, {partition.name}."
            )


def _folders(folder):
    """The folder of a model, and those of an ensemble's members."""
    path = folder / ENSEMBLE
    if not path.is_file():
        return [folder]
    members = json.loads(path.read_text(encoding="utf-8"))["members"]
    return [folder, *(folder / member["path"] for member in members)]


def _seen(record, source, partition):
    """The number of held-out images that a run with such a record has learned from."""
    try:
        theirs = make_partition(source, record["split"], record["split_seed"])[1]
    except UserError:  # a split of other data
        return 0
    if theirs.sha256 != record["sha256"]:
        return 0
    tested = {partition.digests[index] for index in partition.test}
    learned = {theirs.digests[index] for index in theirs.train} & _held_out(partition)
    return len(learned | {theirs.digests[index] for index in theirs.validation} & tested)


def _held_out(partition):
    return {partition.digests[index] for index in (*partition.validation, *partition.test)}
