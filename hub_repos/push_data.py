"""A split of a data set to the Hub: `hub-unets push-data DATA REPO_ID`.

The data set's repository lists who is where, with digests of every file and of its decoded pixels, and holds no image.
`hub-unets push --dataset REPO_ID` then names it, by its commit, wherever a model's card shows figures.
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from hub_unets.hub_repos.publish.dataset import send_dataset, stage_dataset
from hub_unets.hub_repos.publish.remote import explained, limit_waiting, require_token
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.settings.publishable import publishable


def push_data(data, repo_id, name=None, split="official", split_seed=42, private=False, dry_run=False, columns=()):
    """Publish a split.

    Args:
        data: the images and masks, as `training.run` takes them.
        repo_id: `namespace/name`; made if it does not exist.
        name: what the data set is called; the default is the last name of `data`.
        split, split_seed: which split; see `training.data.partition`.
        private: make the new repository private.
        dry_run: build and compare only.
        columns: the image column and the mask column, where they can't be told.

    Returns:
        The commit's hash; None in a dry run that would make one.

    Raises:
        UserError: what went wrong, and the cure, in one line.
    """
    if repo_id.count("/") != 1:
        raise UserError(f"REPO_ID is namespace/name, such as someone/kvasir-seg-official, got {repo_id!r}.")
    if not dry_run:
        require_token()
    limit_waiting()
    with explained(f"the data set {repo_id}"), tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "dataset"
        shown = name or publishable({"data": data})["data"]
        stage_dataset(staged, load_source(data, *columns), shown, split, split_seed)
        commit = send_dataset(HfApi(), repo_id, staged, private, dry_run)
    if dry_run:
        print("Dry run: nothing was sent.")
    return commit


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets push-data", description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA", help="images and masks, as training/run.py takes them")
    parser.add_argument("repo_id", metavar="REPO_ID", help="namespace/name of the data set on the Hub")
    parser.add_argument("--name", help="what the data set is called (default: the last name of DATA)")
    parser.add_argument("--split", default="official", help="which split (default: official)")
    parser.add_argument("--split_seed", type=int, default=42, help="of what is drawn in it (default: 42)")
    parser.add_argument("--image_column", help="column or sub-folder of the images")
    parser.add_argument("--mask_column", help="column or sub-folder of the masks")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--dry-run", action="store_true", help="build and list what would be sent")
    options = vars(parser.parse_args(argv))
    columns = options.pop("image_column"), options.pop("mask_column")
    push_data(**options, columns=columns)


if __name__ == "__main__":
    run_command(main)
