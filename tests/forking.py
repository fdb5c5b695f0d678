"""A server for tests of commands: it imports once, and forks a real process for each command line.

A module that uses it starts itself as the server's script, `Server(__file__, ...)`, and there calls `serve` with the
function that a fork runs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple


class Finished(NamedTuple):
    """How a command ended: exit code (negative: the signal), and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Server:
    """The side of the tests.

    Args:
        script: the file that the server runs.
        environment: its environment variables, all of them.
        folder: where a command's output is kept.
        wrapper: what stands before the interpreter on the server's command line.
    """

    def __init__(self, script, environment, folder, wrapper=()):
        self.folder = folder
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, **request):
        """Fork a command; what `finish` takes."""
        outputs = [tempfile.mkstemp(dir=self.folder)[1] for _ in range(2)]
        return self.ask("start", request | {"outputs": outputs}), outputs

    def finish(self, started):
        """Wait until a command ends, or stops itself, and return how."""
        pid, outputs = started
        code = self.ask("wait", pid)
        return Finished(code, *(Path(path).read_text(encoding="utf-8") for path in outputs))

    def shell(self, command):
        """Run a shell command where the commands live: it sees their mounts. Returns its exit code."""
        return self.ask("shell", command)

    def ask(self, name, request):
        self.process.stdin.write(json.dumps({name: request}, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


# From here on: the process that forks.


def serve(command):
    """Answer requests until there are none; `command`, of a request, runs in the fork and returns an exit code."""
    answers, sys.stdout = sys.stdout, sys.stderr
    served = {
        "start": lambda request: _fork(request, command),
        "wait": _wait,
        "shell": lambda text: subprocess.call(text, shell=True),
    }
    for line in sys.stdin:
        ((name, request),) = json.loads(line).items()
        print(json.dumps(served[name](request)), file=answers, flush=True)


def exit_code(run, *arguments):
    """The exit code of a command that ends by `sys.exit`, or by an error; the message is on stderr."""
    try:
        run(*arguments)
    except SystemExit as error:
        if not isinstance(error.code, int):
            print(error.code or "", file=sys.stderr)
            return int(error.code is not None)
        return error.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fork(request, command):
    pid = os.fork()
    if pid:
        return pid
    for number, path in enumerate([os.devnull, *request["outputs"]]):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell start deaf to it
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = 1
    try:
        code = command(request)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid):
    _, status = os.waitpid(pid, os.WUNTRACED)
    return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
