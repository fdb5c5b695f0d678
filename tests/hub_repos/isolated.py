"""Run by tests in a process of its own, `python -I`: checks built repositories as a stranger would load them.

Usage: isolated.py isolated_check.py. Prints its version of transformers; then each line that it reads is a load,
[REPOSITORY, WORK] in JSON, answered with an exit status. The libraries are imported once; each load is a fork, with
fresh caches, that knows nothing of another; what it says is in WORK/printed.txt.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import timm  # noqa: F401
import transformers
from transformers import AutoConfig, AutoImageProcessor, pipeline  # noqa: F401


def main(script):
    transformers.logging.disable_progress_bar()
    print(transformers.__version__, flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            repository, work = json.loads(line)
            with Path(work, "printed.txt").open("w") as printed:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
            runpy.run_path(script)["main"](repository, work)  # an error ends the fork alone
            break
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
