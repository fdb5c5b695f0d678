"""Pushes for the tests: one process imports everything once and forks a real process for each push.

`push` talks to that process, which is this file run as a script. The client's waits before a retry are cut
short there; stderr names their full length.
"""

import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]  # where this file is the script

from tests.forking import Server, exit_code, serve  # noqa: E402

NETWORK = b"the network"  # what stands in the page for it: the export is tested elsewhere
TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


class Pusher:
    """Runs pushes against the Hub at `url`; what they leave behind is in `folder`."""

    def __init__(self, url, folder):
        self.folder = folder
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        (folder / "temporary").mkdir()
        self.runtime = hollow_runtime(folder / "runtime")
        environment = keep | {
            "TMPDIR": str(folder / "temporary"),
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "RUNTIME": str(self.runtime),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.server = Server(__file__, environment, folder)

    def push(self, *arguments, token=None, isolated=False, seconds=None, npm=True, command="push", **variables):
        """A push to its end.

        Args:
            arguments: the command line.
            token: HF_TOKEN.
            seconds: for how long an answer is awaited, as the client's own variables say it.
            isolated: whether it is verified, and loaded from the Hub in an isolated process, which takes longer than
                the rest; otherwise it is loaded from there in the push's own process.
            command: push, or push_data.
            variables: further ones of the environment.
            npm: whether npm is there, and fetches a hollow runtime.
        """
        environment = variables | ({"HF_TOKEN": token} if token else {})
        environment |= dict.fromkeys(TIMEOUTS, str(seconds)) if seconds else {}
        request = {"argv": list(map(str, arguments)), "environment": environment}
        request |= {"isolated": isolated, "npm": npm, "command": command}
        return self.server.finish(self.server.start(**request))

    def verify(self, *arguments, token=None, folder=None):
        """`hub-unets verify` to its end, in a folder, without the isolated process."""
        environment = {"HF_TOKEN": token} if token else {}
        request = {"argv": list(map(str, arguments)), "environment": environment, "folder": str(folder or self.folder)}
        return self.server.finish(self.server.start(**request))

    def close(self):
        self.server.close()


def hollow_runtime(folder):
    """Make a folder that looks like an unpacked onnxruntime-web."""
    from hub_unets.hub_repos.page.page import RUNTIME

    (folder / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (folder / "dist" / name).write_text(name)
    return folder


# From here on: the process that forks.


def main():
    import torch

    import hub_unets.hub_repos.push
    import hub_unets.hub_repos.verify  # noqa: F401

    torch.set_num_threads(1)
    sleep, time.sleep = time.sleep, lambda seconds: sleep(min(seconds, 0.01))
    serve(_command)


def _command(request):
    from huggingface_hub import constants

    from hub_unets.hub_repos import push, push_data
    from hub_unets.hub_repos.page import page
    from hub_unets.hub_repos.publish import publication
    from hub_unets.training.errors import run_command

    for name in TIMEOUTS:  # read when the client was imported, before the fork
        setattr(constants, name, int(os.environ.get(name, getattr(constants, name))))
    if "folder" in request:
        return _verify(request)
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)  # the cache of the push before
    page.fetch_runtime = lambda scratch: Path(os.environ["RUNTIME"])
    page.shutil.which = lambda name: name if request["npm"] else None
    page.export_onnx = lambda folder, path: Path(path).write_bytes(NETWORK)
    if not request["isolated"]:
        publication.verify_folder = lambda folder, **options: []
        publication.Publication.reload = _reload_here
    module = {"push": push, "push_data": push_data}[request["command"]]
    return exit_code(run_command, module.main, request["argv"])


def _verify(request):
    from hub_unets.hub_repos import verify
    from hub_unets.hub_repos.checks import verification
    from hub_unets.training.errors import run_command

    verification.run_isolated = lambda folder, work: []
    os.chdir(request["folder"])
    return exit_code(run_command, verify.main, request["argv"])


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
    main()
