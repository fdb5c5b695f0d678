"""What a publication refuses; how it goes is in push/."""

import pytest

from hub_unets.hub_repos.checks.check import Check
from hub_unets.hub_repos.publish import publication

TOKEN = "hf_" + "w" * 34


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "state.pkl", ".env", "deep/weights.pth"])
def test_what_is_never_published(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name} is never published"):
        publication.require_publishable(tmp_path)


def test_an_access_token_in_a_file_is_never_published(tmp_path):
    (tmp_path / "results.json").write_text(f'"command": "--data https://x?token={TOKEN}"')
    with pytest.raises(ValueError, match="results.json holds what looks like an access token") as error:
        publication.require_publishable(tmp_path)
    assert TOKEN not in str(error.value)


def test_a_link_in_a_build_is_never_published(tmp_path):
    (tmp_path / "worst.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="worst.png is a symbolic link"):
        publication.require_publishable(tmp_path)


def test_a_failed_check_stops_the_push(tmp_path, monkeypatch):
    checks = [Check("loads", True), Check("imports", False, "os is imported")]
    monkeypatch.setattr(publication, "verify_folder", lambda folder, **names: checks)
    with pytest.raises(ValueError, match="nothing was sent: imports: os is imported$"):
        publication.require_verified(tmp_path, "someone/unet")


def test_the_next_tag_is_above_all():
    assert publication.next_tag(()) == "v1"
    assert publication.next_tag(("v9", "v10", "v2.1", "release", "v3")) == "v11"
