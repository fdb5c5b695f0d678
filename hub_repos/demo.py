"""Try a model in the browser, on this machine: `hub-unets demo MODEL`; the page is the one that a Space shows."""

import argparse
import importlib.util
import os
import runpy

from hub_unets.hub_repos.publish.space import FILES
from hub_unets.training.errors import UserError, run_command


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets demo", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="a built repository, or an id on the Hub; its code is run")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'hub-unets[demo]'")
    os.environ["MODEL"] = arguments.model
    runpy.run_path(str(FILES / "app.py"), run_name="__main__")


if __name__ == "__main__":
    run_command(main)
