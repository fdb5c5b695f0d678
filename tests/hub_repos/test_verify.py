"""Builds pass every check, by folder and Hub id; what the command can not take is said."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from hub_unets.hub_repos import verify
from hub_unets.hub_repos.checks.check import Check
from hub_unets.hub_repos.checks.verification import STATIC_CHECKS, verify_folder
from hub_unets.hub_repos.publish.remote import CLIENT
from hub_unets.hub_repos.repository.builder import build
from hub_unets.hub_repos.repository.card import Standing
from hub_unets.hub_repos.verify import main
from tests.hub_repos.conftest import DATA, unscored
from tests.hub_repos.tampering import NAMES, PROJECT, edit, failures
from tests.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_the_static_checks(variant, make_checkpoint, tmp_path):
    build(make_checkpoint(variant), tmp_path / "built", "someone/unet", "v1.0")
    assert failures(tmp_path / "built", run=False, repo_id="someone/unet", revision="v1.0") == {}


def test_a_backbone_and_pictures_pass_the_static_checks(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("unet", "mobilenetv2_100")
    shutil.copyfile(PROJECT / "hub_repos" / "published" / "unet_mobilenetv2" / "curves.png", checkpoint / "curves.png")
    build(checkpoint, tmp_path / "built")
    (tmp_path / "built" / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    assert failures(tmp_path / "built", run=False) == {}


def test_a_build_passes_every_check(repository, capsys):
    assert main([str(repository), "--data", DATA]) == 0
    folder, *lines, note, footer = capsys.readouterr().out.splitlines()
    assert folder == str(repository) and footer == f"All {len(lines)} checks passed."
    assert all(line.startswith("ok   ") for line in lines) and note.startswith("note figures ˢ: ")
    names = [line.removeprefix("ok   ").split(":")[0] for line in lines]
    assert "ok   results: labels 0 background, 1 polyp" in lines
    run = ["load", "logits", "pipeline", "endpoint", "snippets", "saves again"]
    figures = ["split", "data of validation", "figures of validation", "data of test", "figures of test"]
    assert names == ["files", *STATIC_CHECKS, NAMES, *run, *figures, "figures ʳ", "figures ᵈ"]
    assert "largest difference 0.00" in lines[-3]


@pytest.mark.long
def test_a_build_of_three_classes_passes_every_check(three_class_checkpoint, tmp_path):
    build(three_class_checkpoint, tmp_path / "built")
    checks = verify_folder(tmp_path / "built", data=DATA)
    assert [check for check in checks if not check.passed] == []
    assert "figures of test" in [check.name for check in checks]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("notes.txt", 1, "notes.txt is no file that"), ("README.md", 2**40, "README.md is larger than 262144 bytes")],
)
def test_an_unknown_file_on_the_hub_is_not_downloaded(name, size, message):
    with pytest.raises(ValueError, match=f"someone/unet: {message}"):
        verify.require_known(SimpleNamespace(rfilename=name, size=size), "someone/unet")


@pytest.mark.parametrize(("tag_commit", "expected"), [("c" * 40, "v1"), ("d" * 40, "c" * 40), (None, "c" * 40)])
def test_a_tag_counts_where_it_is_the_commit_that_was_checked(tag_commit, expected, tmp_path, monkeypatch):
    def model_info(api, repo_id, revision, timeout):
        assert (repo_id, revision) == ("someone/unet", "v1")
        if tag_commit is None:
            raise CLIENT.ConnectError("no such revision")
        return SimpleNamespace(sha=tag_commit)

    monkeypatch.setattr(verify.HfApi, "model_info", model_info)
    monkeypatch.setattr(verify, "is_unsigned", lambda *_: False)
    line = 'segment = pipeline("image-segmentation", model="someone/unet", revision="v1", trust_remote_code=True)'
    (tmp_path / "README.md").write_text(f"{line}\n")
    assert verify.revision_of(tmp_path, "someone/unet", "c" * 40) == expected


def test_a_hub_that_is_not_reached_is_an_error_in_words(monkeypatch):
    def download(*arguments):
        raise CLIENT.ConnectError("refused")

    monkeypatch.setattr(verify, "download", download)
    with pytest.raises(ValueError, match=r"the connection to the Hub broke \(refused\): repeat the command"):
        main(["someone/unet"])


def test_a_line_shows_no_escape():
    assert str(Check("files", False, "\x1b[2Kok")) == "FAIL files: ?[2Kok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-folder"], "neither a folder nor a Hub id"),
        (["a/b", "--commit", "main"], "whole hash"),
        ([str(PROJECT), "--commit", "a" * 40], "this is a folder"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_a_folder_that_is_no_repository_fails(tmp_path):
    assert failures(tmp_path) == {"files": "README.md is missing"}
    assert failures(tmp_path / "none") == {"files": f"{tmp_path / 'none'} is no folder"}


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub that a download needs: one repository, one commit."""

    commit = "c" * 40

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, names = self.path.partition("?")[0], sorted(path.name for path in self.server.folder.iterdir())
        if path.startswith(f"/someone/unet/resolve/{self.commit}/"):
            content = (self.server.folder / path.rsplit("/", 1)[1]).read_bytes()
        elif path in ("/api/models/someone/unet", f"/api/models/someone/unet/revision/{self.commit}"):
            siblings = [{"rfilename": name} for name in names]
            content = json.dumps({"id": "someone/unet", "sha": self.commit, "siblings": siblings}).encode()
        elif path == f"/api/models/someone/unet/tree/{self.commit}":
            entries = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
            content = json.dumps(entries).encode()
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def log_message(self, *arguments):
        """Keep the test's output quiet."""


@pytest.mark.long
def test_a_hub_id_is_downloaded_and_its_commit_named(checkpoint, tmp_path):
    build(checkpoint, tmp_path / "built", "someone/other", "v1.0")
    edit("layers.py", r"^import torch$", "import os\nimport torch")(tmp_path / "built")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = tmp_path / "built"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    process = subprocess.run(
        [sys.executable, "-m", "hub_repos.verify", "someone/unet"],
        cwd=PROJECT,
        env={**os.environ, **hub, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    server.shutdown()
    lines = process.stdout.splitlines()
    assert process.returncode == 1, process.stderr
    assert lines[0] == f"someone/unet at commit {'c' * 40}"
    failed = [line.split(":")[0] for line in lines if line.startswith("FAIL ")]
    assert failed == ["FAIL manifest", "FAIL card names this repository"]
    assert lines[-1] == f"2 of {len(lines) - 2} checks failed."


def test_a_standing_in_a_sweep_is_part_of_results_and_card(checkpoint, tmp_path):
    standing = Standing("family", "resnet50, from scratch, split 0b2df61a", 2, 6, "someone/family-1")
    build(checkpoint, tmp_path / "out", "someone/unet", "v1", standing)
    checks = verify_folder(tmp_path / "out", run=False, repo_id="someone/unet", revision="v1")
    assert all(check.passed for check in checks), checks
    assert "Place 2ˢ of 6ˢ by validation Dice (resnet50, from scratch" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_without_a_test_part_gets_a_repository_whose_card_says_so(checkpoint, tmp_path):
    standing = Standing("family", "resnet50", 1, 3, None)
    build(unscored(checkpoint, tmp_path / "run"), tmp_path / "out", standing=standing)
    checks = verify_folder(tmp_path / "out", run=False, data=DATA)
    assert [check for check in checks if not check.passed] == []
    names = [check.name for check in checks]
    assert "figures of validation" in names and "figures of test" not in names
    card = ModelCard.load(tmp_path / "out" / "README.md")
    validation = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["validation"]
    dice = validation["per_image"]["dice"]
    figure = f"{dice['value']:.4f} ({dice['low']:.4f}–{dice['high']:.4f})ʳ"
    for text in (
        "On 1ʳ validation images of phantoms", f"reach a Dice of {figure}", "**Not scored on a test part**:",
        "Every choice was made on validation, and no test part was scored", "Place 1ˢ of 3ˢ by validation Dice",
        "1ᵈ test images, of which none was scored", "By the polyp's share of the image, validation:",
    ):  # fmt: skip
        assert text in card.text, text
    assert "| test |" not in card.text and "model-index" not in (tmp_path / "out" / "README.md").read_text()
    assert not card.data.eval_results


def test_classes_without_a_test_part(three_class_checkpoint, tmp_path):
    build(unscored(three_class_checkpoint, tmp_path / "run"), tmp_path / "out")
    assert failures(tmp_path / "out", run=False) == {}
    assert "| validation | boundary |" in (tmp_path / "out" / "README.md").read_text()
