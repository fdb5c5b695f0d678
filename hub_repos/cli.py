"""The command `hub-unets`; the module of a sub-command is imported only when that is called."""

import difflib
import importlib
import sys
from importlib.metadata import version

from hub_unets.training.errors import UserError, run_command

GROUPS = {  # sub-command: its module, and what it does
    "train": {
        "check-data": ("hub_unets.training.run", "look at images and masks before training: sizes, values, leaks"),
        "train": ("hub_unets.training.run", "train a model, score it, draw what it does"),
        "sweep": (
            "hub_unets.training.sweep",
            "train every cell of a grid, or search a space; ends in a leaderboard",
        ),
        "ensemble": ("hub_unets.training.ensemble", "several trained models as one, the mean of their probabilities"),
        "soup": ("hub_unets.training.soup", "average the weights of runs that started alike"),
    },
    "judge": {
        "evaluate": ("hub_unets.training.evaluate", "score any segmentation model at the images' original size"),
        "verify": ("hub_unets.hub_repos.verify", "judge a built repository, and compute its figures again"),
        "bench": ("hub_unets.benchmarks.run", "measure speed beside other libraries"),
        "bench-minutes": ("hub_unets.benchmarks.minutes", "measure the minutes to accuracy beside a plain loop"),
        "bench-gpu": ("hub_unets.benchmarks.gpu", "the same on CUDA devices, within eight minutes"),
        "report": ("hub_unets.hub_repos.report", "make the results page from kept records"),
        "keep": ("hub_unets.hub_repos.keep", "keep the records of finished runs, and the median run's model"),
    },
    "publish": {
        "build": ("hub_unets.hub_repos.build", "make a Hub repository of a run: weights, code, card"),
        "quantise": ("hub_unets.hub_repos.quantise", "add a run's network in int8, for the fast path and the page"),
        "push": ("hub_unets.hub_repos.push", "publish a run, or a sweep, on the Hub"),
        "push-data": ("hub_unets.hub_repos.push_data", "publish who is where in a split, with digests and no image"),
    },
    "use": {
        "predict": ("hub_unets.hub_repos.predict", "mark the polyps in images, folders, videos"),
        "demo": ("hub_unets.hub_repos.demo", "try a model in the browser, on this machine"),
        "convert": ("hub_unets.hub_repos.convert", "bring a checkpoint of segmentation-models-pytorch here"),
        "browser": ("hub_unets.hub_repos.browser", "make a page of static files that runs a model by itself"),
    },
}
ALWAYS = {"check-data": ("--check_data", "true")}  # options that a sub-command adds
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def usage():
    """What `hub-unets --help` says."""
    lines = ["usage: hub-unets COMMAND ...", "", "U-Nets as Hugging Face models: train, judge, publish, use."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<12}{summary}" for name, (_, summary) in commands.items())]
    lines += ["", "hub-unets COMMAND --help lists a command's options. Training on several processes:"]
    return "\n".join([*lines, "accelerate launch training/run.py RECIPE, or training/sweep.py RECIPE."])


def main(argv=None):
    """Run the sub-command that the first argument names.

    Raises:
        UserError: there is no such command; the message names the nearest one.
    """
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"hub-unets {version('hub-unets')}")
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        raise UserError(f"hub-unets has no command {name!r}; did you mean {nearest}? There are {', '.join(COMMANDS)}.")
    sys.argv = [f"hub-unets {name}", *options]  # a run's record quotes it
    return importlib.import_module(COMMANDS[name][0]).main([*options, *ALWAYS.get(name, ())])


def command():
    """The entry point of the installed script."""
    run_command(main)


if __name__ == "__main__":
    command()
