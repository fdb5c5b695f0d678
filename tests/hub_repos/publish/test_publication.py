"""What a publication refuses; how it goes is in push/."""

from types import SimpleNamespace

import pytest

from hub_unets.hub_repos import push
from hub_unets.hub_repos.checks.check import Check
from hub_unets.hub_repos.publish import publication
from hub_unets.hub_repos.repository.export import load_network
from hub_unets.training.errors import UserError
from tests.variants import small_model

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


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A function (fields of the config) -> a Publication whose commit loads with the checkpoint's own weights."""
    monkeypatch.setattr(publication, "changes", lambda *_: {})
    monkeypatch.setattr(publication, "list_files", lambda *_: {})

    def make(**fields):
        small_model(**fields).save_pretrained(tmp_path)
        made = publication.Publication(SimpleNamespace(), tmp_path, "someone/unet", tmp_path / "scratch", None)
        made.changed = {"config.json": "new"}
        made.reload = lambda commit, pixels: publication.logits_of(load_network(tmp_path), pixels)
        return made

    return make


@pytest.mark.parametrize("fields", [{}, {"num_channels": 1}, {"num_channels": 5}, {"padding": "valid", "depth": 2}])
def test_a_network_of_any_channels_and_padding_is_tried_out(fields, published):
    made = published(**fields)
    made.run_checkpoint()
    assert made.noise.shape[1] == fields.get("num_channels", 3) and made.expected.any()
    made.try_out("abc")
    made.expected = made.expected + 1
    with pytest.raises(UserError, match="its logits differ from those of .* by up to 1"):
        made.try_out("abc")


def test_a_network_that_does_not_run_stops_the_push_before_a_repository_is_made(published, monkeypatch):
    made = published()
    made.remote = SimpleNamespace(head=None)
    made.api.create_repo = lambda *_, **__: pytest.fail("it was made")
    made.run_checkpoint = lambda: (_ for _ in ()).throw(UserError("it does not run"))
    made.listing = list
    for name in ("require_publishable", "require_verified"):
        monkeypatch.setattr(push, name, lambda *_: None)
    with pytest.raises(UserError, match="it does not run"):
        push.push_model(made, private=False, create_pr=False, dry_run=False)
