"""Runs of training/run.py for the tests: one process imports everything once and forks a real process for each run.

`start` and `finish` talk to that process, which is this file run as a script; where the system permits it, it lives in
a mount namespace of its own, so that a test can give a run a small or a read-only disk.
"""

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]  # where this file is the script

from tests.forking import Server, exit_code, serve  # noqa: E402

SERVER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
TINY = {
    "model.base_channels": 4,
    "model.depth": 2,
    "data": "phantoms?count=20&size=64&seed=0",
    "split": "own",
    "image_size": 32,
    "precision": "fp32",
    "num_train_epochs": 2,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 8,
    "disable_tqdm": "true",
}


def arguments(output_dir, **changes):
    """The command line of a tiny run; `changes` by name with __ for the dot, None leaves a field out."""
    fields = TINY | {name.replace("__", "."): value for name, value in changes.items()} | {"output_dir": output_dir}
    return [text for name, value in fields.items() if value is not None for text in (f"--{name}", str(value))]


def run(output_dir, moment=None, environment=None, draws=False, **changes):
    """A tiny run to its end; see `start`."""
    return finish(start(arguments(output_dir, **changes), moment, environment, draws))


def run_in_two_processes(output_dir, moment=None, **changes):
    """The same as two processes that share the gradient, as a launcher starts them."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    processes = [start(arguments(output_dir, **changes), moment, environment) for environment in ranks]
    return [finish(process) for process in processes]


def start(argv, moment=None, environment=None, draws=False):
    """Fork a run.

    Args:
        argv: what follows `training/run.py`.
        moment: (name in MOMENTS, step) at which the process kills itself, or sends itself the signal that is a third
            item, "SIGSTOP" to stop.
        environment: further environment variables.
        draws: whether pictures are drawn, which takes longer than the training.
    """
    return _server().start(argv=argv, moment=moment, environment=environment or {}, draws=draws)


def finish(process):
    """Wait until a started run ends, or stops itself, and return how."""
    return _server().finish(process)


def resume_stopped(process):
    os.kill(process[0], signal.SIGCONT)


def shell(command):
    """Run a shell command where the runs live: it sees their mounts. Returns its exit code."""
    return _server().shell(command)


def has_own_mounts():
    """Whether the system permits a mount namespace."""
    command = ["unshare", "-rm", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@functools.cache
def scratch():
    """A folder that lasts as long as the tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _server():
    wrapper = ["unshare", "-rm"] if has_own_mounts() else []
    environment = os.environ | SERVER_ENVIRONMENT | {"HF_DATASETS_CACHE": str(scratch() / "cache")}
    server = Server(__file__, environment, scratch(), wrapper)
    atexit.register(server.process.stdin.close)
    return server


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# From here on: the process that forks.


def main():
    import monai.metrics  # noqa: F401

    import hub_unets.training.run  # noqa: F401

    serve(_command)


def _command(request):
    from hub_unets.training import run
    from hub_unets.training.errors import run_command

    sys.argv = ["training/run.py", *request["argv"]]
    if not request["draws"]:
        run.draw = run.draw_first_batch = lambda *arguments, **options: None
    if request["moment"]:
        name, step, *sent = request["moment"]
        MOMENTS[name](step, signal.Signals[sent[0]] if sent else signal.SIGKILL)
    return exit_code(run_command, run.main)


def signal_before(owner, name, sent, applies):
    """Send this process a signal when `owner.name` is first called with arguments for which `applies` holds."""
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        if applies(*arguments):
            setattr(owner, name, original)
            sys.stdout.flush()
            os.kill(os.getpid(), sent)
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def after_step(step, sent):
    """After the optimizer's step, before its checkpoint, or its epoch's validation."""
    from hub_unets.training.fit.trainer import UNetTrainer

    signal_before(UNetTrainer, "_maybe_log_save_evaluate", sent, lambda self, *_: self.state.global_step == step)


def before_validation(step, sent):
    """After the last step of an epoch, and whatever is saved for it as a step."""
    from hub_unets.training.fit.trainer import UNetTrainer

    signal_before(UNetTrainer, "evaluate", sent, lambda self, *_: self.state.global_step == step)


def before_save(step, sent):
    """After an epoch's validation, before its checkpoint."""
    from hub_unets.training.fit.trainer import UNetTrainer

    signal_before(UNetTrainer, "_save_checkpoint", sent, lambda self, *_: self.state.global_step == step)


def inside_write(step, sent):
    """With the weights of the checkpoint written, and half of the optimizer's state."""
    import torch

    def half_written(_, path, *options):
        if f"checkpoint-{step}/optimizer.pt" not in str(path):
            return False
        Path(path).write_bytes(b"PK\x03\x04 half")
        return True

    signal_before(torch, "save", sent, half_written)


def before_marker(step, sent):
    """With every file of the checkpoint written but the one that says so."""

    from hub_unets.training.fit import trainer

    signal_before(trainer, "mark_complete", sent, lambda folder: folder.name == f"checkpoint-{step}")


def before_scoring(step, sent):
    """With the training done."""

    from hub_unets.training import run as command

    signal_before(command, "score_parts", sent, lambda *_: True)


MOMENTS = {
    moment.__name__: moment
    for moment in (after_step, before_validation, before_save, inside_write, before_marker, before_scoring)
}

if __name__ == "__main__":
    main()
