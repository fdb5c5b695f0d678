"""Several trained networks as one model: `hub-unets ensemble MODEL MODEL ... FOLDER`.

FOLDER gets an ensemble.json that names the members, runs or built repositories in folders, with the sha256 of their
files. Give FOLDER wherever a model is taken: evaluate, predict, --teacher. Its probability is the mean of the
members', its thresholds are the means of theirs, and it costs as much to use as all of them together.
"""

import argparse
from pathlib import Path

import numpy as np

from hub_unets.training.errors import UserError, run_command
from hub_unets.training.measure.ensemble import CHECKPOINT, ENSEMBLE, THRESHOLDS, require_alike, write_ensemble
from hub_unets.training.measure.models import load_model


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets ensemble", description=__doc__.splitlines()[0])
    parser.add_argument("members", nargs="+", type=Path, help="folders of runs or built repositories, two or more")
    parser.add_argument("folder", type=Path, help="folder for the ensemble.json; it must hold no model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a member")
    arguments = parser.parse_args(argv)
    if len(arguments.members) < 2:
        raise UserError(f"an ensemble takes two members or more, got {arguments.members[0]} alone.")
    if taken := [name for name in (*CHECKPOINT, ENSEMBLE) if (arguments.folder / name).exists()]:
        raise UserError(f"{arguments.folder} holds {taken[0]}: choose another folder, the last one named.")
    for member in arguments.members:
        if missing := [name for name in CHECKPOINT if not (member / name).is_file()]:
            raise UserError(f"{member} is not the folder of a model: {missing[0]} is missing.")
    loaded = [load_model(str(path), arguments.trust_remote_code) for path in arguments.members]
    models, processors = zip(*loaded, strict=True)
    require_alike(models, processors)
    means = {name: float(np.mean([getattr(processor, name) for processor in processors])) for name in THRESHOLDS}
    write_ensemble(arguments.folder, arguments.members, means)
    print(f"The mean of {len(models)} models: {arguments.folder}; pixels above {means[THRESHOLDS[0]]:.3f}")


if __name__ == "__main__":
    run_command(main)
