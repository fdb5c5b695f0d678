"""Pushes from CI: the documented workflow, tokens of trusted publishers, and the time limit of Xet."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import get_session

from hub_unets.hub_repos import cli
from hub_unets.hub_repos.publish import remote
from tests.hub_repos.loopback_hub import LoopbackHub
from tests.hub_repos.pushes import Pusher

ROOT = Path(__file__).parents[2]
TOKEN, REPO = "hf_" + "w" * 34, "someone/unet"
XET = """
import sys, time
from hf_xet import XetFileInfo
from huggingface_hub.utils._xet import get_xet_session

options = {"token": "x", "token_expiry_unix_secs": int(time.time()) + 9999, "token_refresh_headers": {}}
options |= {"token_refresh_url": None, "custom_headers": {}, "progress_callback": lambda *reports: None}
began = time.monotonic()
try:
    with get_xet_session().new_file_download_group(endpoint=sys.argv[1], **options) as group:
        group.start_download_file(XetFileInfo("ab" * 32, 100), "file")
except RuntimeError:
    print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def hub():
    hub = LoopbackHub([TOKEN])
    hub.trusted[("an ID token", REPO)] = TOKEN
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def pusher(hub, tmp_path_factory):
    pusher = Pusher(hub.url, tmp_path_factory.mktemp("pushes"))
    yield pusher
    pusher.close()


def test_the_documented_workflow_pushes_on_a_tag_with_options_that_exist(capsys):
    page = (ROOT / "hub_repos/README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "id-token": "write"}
    *_, install, step = job["steps"]
    program, command, folder, repo_id, *options = shlex.split(step["run"])
    assert install["run"] == "pip install ." and program == "hub-unets" and (ROOT / folder).is_dir()
    assert step["env"] == {"HF_OIDC_RESOURCE": repo_id}
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    explained = capsys.readouterr().out
    assert options == ["--tag", "$GITHUB_REF_NAME", "--space", "none"]
    assert "--tag TAG" in explained and "--space {static,gradio,none}" in explained


@pytest.mark.long
def test_a_trusted_publisher_pushes_without_a_token(hub, pusher, checkpoint):
    job = {"HF_OIDC_RESOURCE": REPO, "HF_OIDC_ID_TOKEN": "an ID token"}
    finished = pusher.push(checkpoint, REPO, "--tag", "v1.0", "--space", "none", **job)
    assert finished.code == 0, finished.stderr
    assert hub.repositories[REPO].tags == {"v1.0": hub.repositories[REPO].branches["main"]}
    assert TOKEN not in finished.stdout + finished.stderr and hub.count("POST", "/oauth/token") == 1


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"HF_OIDC_ID_TOKEN": "another"}, "the Hub answered 400: "),
        ({}, "this CI job gets no token: HF_OIDC_RESOURCE is set but no OIDC id token is available"),
    ],
)
def test_a_job_that_is_not_trusted_is_told_so_in_one_line(job, reason, pusher, checkpoint):
    finished = pusher.push(checkpoint, REPO, HF_OIDC_RESOURCE=REPO, **job)
    assert finished.code == 1 and finished.stderr.startswith(f"error: {reason}") and finished.stderr.count("\n") == 1


def test_xet_waits_no_longer_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_XET_CLIENT_READ_TIMEOUT", raising=False)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr(get_session(), "timeout", None)
    remote.limit_waiting()
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", os.environ.pop("HF_XET_CLIENT_READ_TIMEOUT"))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", XET, address]
        process = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stderr[-2000:]
    assert 0.9 < float(process.stdout) < 20


def test_a_limit_of_xets_own_is_kept(monkeypatch):
    monkeypatch.setattr(get_session(), "timeout", None)
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", "7s")
    remote.limit_waiting()
    assert os.environ["HF_XET_CLIENT_READ_TIMEOUT"] == "7s"
    monkeypatch.delenv("HF_XET_CLIENT_READ_TIMEOUT")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")
    remote.limit_waiting()
    assert os.environ.pop("HF_XET_CLIENT_READ_TIMEOUT") == "3s"
