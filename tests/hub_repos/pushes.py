"""Pushes for the tests: one process imports everything once and forks a real process for each push.

`push` talks to that process, which is this file run as a script. The client's waits before it tries again are cut
short there, and told on stderr in full.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


class Finished(NamedTuple):
    """How a push ended: exit code, and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Pusher:
    """Runs pushes against the Hub at `url`; what they leave behind is in `folder`."""

    def __init__(self, url, folder):
        self.folder = folder
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        (folder / "temporary").mkdir()
        environment = keep | {
            "TMPDIR": str(folder / "temporary"),
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def push(self, *arguments, token=None, isolated=False, seconds=None):
        """A push to its end.

        Args:
            arguments: the command line.
            token: HF_TOKEN.
            seconds: for how long an answer is awaited, as the client's own variables say it.
            isolated: whether it is verified, and loaded from the Hub in an isolated process, which takes longer than
                the rest; otherwise it is loaded from there in the push's own process.
        """
        outputs = [tempfile.mkstemp(dir=self.folder)[1] for _ in range(2)]
        environment = {"HF_TOKEN": token} if token else {}
        environment |= dict.fromkeys(TIMEOUTS, str(seconds)) if seconds else {}
        request = {
            "argv": list(map(str, arguments)),
            "isolated": isolated,
            "environment": environment,
            "outputs": outputs,
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Finished(code, *(Path(path).read_text(encoding="utf-8") for path in outputs))

    def close(self):
        self.server.kill()
        self.server.wait()


# From here on: the process that forks.


def serve():
    import torch

    import hub_unets.hub_repos.push  # noqa: F401

    torch.set_num_threads(1)
    sleep, time.sleep = time.sleep, lambda seconds: sleep(min(seconds, 0.01))
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        pid = fork(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def fork(request):
    pid = os.fork()
    if pid:
        return pid
    for number, path in enumerate([os.devnull, *request["outputs"]]):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.update(request["environment"])
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = 1
    try:
        code = _child(request)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _child(request):
    from huggingface_hub import constants

    from hub_unets.hub_repos import push
    from hub_unets.hub_repos.publish import publication
    from hub_unets.training.errors import run_command

    for name in TIMEOUTS:  # read when the client was imported, before the fork
        setattr(constants, name, int(os.environ.get(name, getattr(constants, name))))
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)  # the cache of the push before
    if not request["isolated"]:
        publication.verify_folder = lambda folder, **options: []
        publication.Publication.reload = _reload_here
    try:
        run_command(push.main, request["argv"])
    except SystemExit as error:
        print(error.code or "", file=sys.stderr)
        return int(bool(error.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _reload_here(publication, commit, pixels):
    import numpy as np

    from hub_unets.hub_repos.publish import reload

    paths = [str(publication.scratch / name) for name in ("pixels.npy", "logits.npy")]
    np.save(paths[0], pixels)
    project = sys.modules["hub_unets"]
    reload.main(publication.repo_id, commit, *paths)
    sys.modules["hub_unets"] = project  # which it hides
    return np.load(paths[1])


if __name__ == "__main__":
    serve()
