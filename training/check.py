"""Look at images and masks before training: `hub-unets check-data [RECIPE] --data DATA`; options as of `train`."""

import sys

from hub_unets.training import run
from hub_unets.training.errors import run_command


def main(argv=None):
    return run.main([*(sys.argv[1:] if argv is None else argv), "--check_data", "true"])


if __name__ == "__main__":
    run_command(main)
