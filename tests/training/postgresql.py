"""A PostgreSQL server of our own for a test, from Debian's package `postgresql`, with a password."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "se:cr@et"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def missing():
    """Why no server can be started; empty if one can."""
    if not BINARIES:
        return "no PostgreSQL: apt-get install postgresql"
    if importlib.util.find_spec("psycopg") is None:
        return "no driver: pip install 'hub-unets[sweep]'"
    if os.geteuid() == 0 and not _has_user():
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def _has_user():
    try:
        return bool(pwd.getpwnam("postgres"))
    except KeyError:
        return False


class Server:
    """Runs, and may be stopped and started again; `url` is what --storage takes."""

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"postgresql+psycopg://sweeper:{PASSWORD.replace('@', '%40')}@127.0.0.1:{self.port}/postgres"
        (folder / "password").write_text(PASSWORD)
        self._run("initdb", "-U", "sweeper", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync")

    def start(self):
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self):
        """Stop as if its machine failed."""
        self._run("pg_ctl", "stop", "-m", "immediate")

    def _run(self, program, *arguments):
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        command = [str(BINARIES[-1] / program), "-D", str(self.data), *arguments]
        for path in (self.folder, *self.folder.iterdir()):
            if user and path.stat().st_uid == 0:
                shutil.chown(path, "postgres", "postgres")
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **user)


@contextlib.contextmanager
def running_server():
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # stopped already
            server.stop()
        shutil.rmtree(folder)
