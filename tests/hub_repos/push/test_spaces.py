"""The Space that a push sends: a static page, a gradio app, or none."""

import copy
import json
import re

import pytest
from huggingface_hub import RepoCard

from hub_unets.hub_repos.publish.space import FILES, OURS, PAGE_README
from tests.hub_repos.loopback_repository import Blob
from tests.hub_repos.push.names import FIRST_HEAD, REPO, SPACE, TOKEN, files_of, without_attributes
from tests.hub_repos.pushes import NETWORK


def filled(content, commit):
    return content.replace(b"REPO_ID", REPO.encode()).replace(b"COMMIT", commit.encode())


def require_page(space, commit):
    """The Space is the static page of a model's commit, and holds nothing else."""
    files = without_attributes(space.main)
    assert files.keys() == OURS["static"] | {"README.md"} and space.sdk == "static"
    assert files["README.md"] == filled(PAGE_README.read_bytes(), commit)
    assert files["model.onnx"] == NETWORK and json.loads(files["settings.json"])["name"] == REPO
    assert b"connect-src 'self' https://huggingface.co https://*.hf.co;" in files["index.html"]
    assert RepoCard(files["README.md"].decode()).data.models == [REPO]


def app_of(commit):
    """The Gradio Space's files for a model's commit."""
    names = {"app.py", "README.md"}
    return {name: filled(content, commit) if name in names else content for name, content in files_of(FILES).items()}


def test_the_space_is_a_static_page_of_one_commit(first, first_push):
    finished, repository, requests = first
    space, commit = first_push[1][SPACE], repository.branches["main"]
    assert len(space.history()) == FIRST_HEAD and not space.tags and not space.private and space.hardware is None
    require_page(space, commit)
    assert space.main["LICENSE"] == repository.main["LICENSE"]
    assert finished.stdout.splitlines()[-1].endswith(f"/spaces/{REPO}")
    paths = [path for _, path, _ in requests]
    assert paths.index(f"/api/models/{REPO}/tag/{commit}") < paths.index(f"/api/spaces/{REPO}/commit/main")
    assert f"https://huggingface.co/spaces/{REPO}." in repository.main["README.md"].decode()


def test_the_space_follows_a_new_commit_and_keeps_what_a_user_added(published, space, pusher, other_run):
    files = space.commits[space.branches["main"]] | {"NOTES.md": Blob(b"a user's own")}
    edited = space.commit("main", files, space.branches["main"])
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    assert space.parents[space.branches["main"]] == edited and space.main["NOTES.md"] == b"a user's own"
    assert space.main["README.md"] == filled(PAGE_README.read_bytes(), published.branches["main"])
    listed = finished.stdout.partition(f"\nSpace {REPO} (static):\n")[2].splitlines()
    assert listed[0].split() == ["changed", "README.md"] and listed[1].startswith("Space: http")


def test_a_gradio_space_asks_for_zerogpu_and_stays_one_until_another_is_asked_for(published, hub, pusher, other_run):
    del hub.repositories[SPACE]
    assert pusher.push(other_run, REPO, "--space", "gradio", token=TOKEN).code == 0
    space, commit = hub.repositories[SPACE], published.branches["main"]
    assert without_attributes(space.main) == app_of(commit) and (space.sdk, space.hardware) == ("gradio", "zero-a10g")
    assert f'MODEL, REVISION = "{REPO}", "{commit}"' in space.main["app.py"].decode()
    assert f"https://huggingface.co/spaces/{REPO}." in published.main["README.md"].decode()
    repeated = pusher.push(other_run, REPO, token=TOKEN, npm=False)
    assert repeated.stdout.splitlines()[-1] == f"Nothing changed: Space {REPO}, commit {space.branches['main']}."
    changed = pusher.push(other_run, REPO, "--space", "static", token=TOKEN)
    assert changed.code == 0 and re.search(r"deleted +app.py\n", changed.stdout)
    require_page(space, commit)


def test_a_space_of_another_kind_is_left_alone(space, hub, pusher, other_run):
    space.sdk, before = "docker", space.branches["main"]
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0 and space.branches["main"] == before
    assert f"Left alone: the Space {REPO} is of kind docker; --space static replaces it." in finished.stdout
    assert f"https://huggingface.co/spaces/{REPO}." in hub.repositories[REPO].main["README.md"].decode()


def test_where_a_gradio_space_costs_money_the_page_is_sent(hub, pusher, run, monkeypatch):
    monkeypatch.setattr(hub, "pays", False)
    finished = pusher.push(run, REPO, "--space", "gradio", token=TOKEN)
    assert finished.code == 0, finished.stderr
    asked = "(402, Creating a Gradio Space requires a PRO subscription). The static page is sent instead"
    assert f"No Gradio Space: the Hub asks for a paid plan {asked}" in finished.stdout
    model = hub.repositories[REPO]
    require_page(hub.repositories[SPACE], model.branches["main"])
    assert model.tags.keys() == {"v1"} and hub.count("POST", "/api/repos/create") == 3
    assert f"https://huggingface.co/spaces/{REPO}." in model.main["README.md"].decode()


def test_where_neither_can_be_had_the_model_stays_published(hub, pusher, run, monkeypatch):
    monkeypatch.setattr(hub, "pays", False)
    finished = pusher.push(run, REPO, "--space", "gradio", token=TOKEN, npm=False)
    assert finished.code == 1 and hub.repositories.keys() == {REPO}
    assert hub.repositories[REPO].tags.keys() == {"v1"}
    assert "its Space is not, and the same command sends it: npm is not installed" in finished.stderr


@pytest.mark.parametrize("options", [(), ("--space", "static")])
def test_without_npm_the_model_is_published_and_its_card_names_no_space(options, hub, pusher, run):
    finished = pusher.push(run, REPO, *options, token=TOKEN, npm=False)
    model = hub.repositories[REPO]
    assert hub.repositories.keys() == {REPO} and model.tags == {"v1": model.branches["main"]}
    assert f"huggingface.co/spaces/{REPO}" not in model.main["README.md"].decode()
    reason = "npm is not installed, and fetches onnxruntime-web@"
    if options:
        assert finished.code == 1 and f"its Space is not, and the same command sends it: {reason}" in finished.stderr
    else:
        assert finished.code == 0 and f"No Space: {reason}" in finished.stdout
    given = pusher.push(run, REPO, "--runtime", pusher.runtime, token=TOKEN, npm=False)
    assert given.code == 0, given.stderr
    require_page(hub.repositories[SPACE], model.branches["main"])
    assert model.tags.keys() == {"v1", "v2"} and f"/spaces/{REPO}." in model.main["README.md"].decode()


@pytest.mark.parametrize("options", [("--no-space",), ("--space", "none"), ("--create-pr",)])
def test_a_push_without_a_space(options, hub, published, pusher, other_run):
    del hub.repositories[SPACE]
    assert pusher.push(other_run, REPO, *options, token=TOKEN).code == 0
    assert hub.repositories.keys() == {REPO} and not hub.count("POST", "/spaces/|/repos/create")
    revision = "refs/pr/1" if "--create-pr" in options else "main"
    assert f"huggingface.co/spaces/{REPO}" not in published.at(revision)["README.md"].decode()


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/spaces/.*/commit/main"])
def test_a_space_that_fails_leaves_the_model_published_and_comes_with_the_next_push(path, hub, published, pusher, run):
    del hub.repositories[SPACE]
    before = copy.deepcopy(published)
    hub.fail("POST", path, 500, times=6)
    finished = pusher.push(run, REPO, token=TOKEN)
    assert finished.code == 1 and published == before
    published_as = f"error: {REPO} is published, commit {before.branches['main']}; its Space is not, and the same"
    assert published_as in finished.stderr and "the Hub is out of order (500, injected)" in finished.stderr
    hub.rules.clear()
    assert pusher.push(run, REPO, token=TOKEN).code == 0
    require_page(hub.repositories[SPACE], before.branches["main"])


def test_a_space_is_not_written_over_someone_elses_commit(space, hub, pusher, other_run):
    def arrives(handler):
        files = space.commits[space.branches["main"]] | {"page.js": Blob(b"theirs")}
        space.commit("main", files, space.branches["main"])

    hub.when("POST", "/api/spaces/.*/commit/main", arrives)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and f"someone else pushed to the Space {REPO}" in finished.stderr
    assert space.main["page.js"] == b"theirs"


def test_a_private_models_space_is_private(hub, pusher, run):
    finished = pusher.push(run, REPO, "--private", token=TOKEN)
    assert finished.code == 0 and hub.repositories[SPACE].private
    hub.repositories[SPACE].private = False
    repeated = pusher.push(run, REPO, token=TOKEN)
    assert repeated.code == 1 and f"the Space {REPO} is public and its model is not" in repeated.stderr


def test_a_dry_run_lists_the_space(hub, pusher, run):
    finished = pusher.push(run, REPO, "--dry-run")
    listed = finished.stdout.partition(f"\nSpace {REPO} (static):\n")[2].splitlines()
    assert {line.split()[1] for line in listed[:-1]} == OURS["static"] | {"README.md"}
    assert listed[-1] == "Dry run: nothing was sent." and not hub.repositories
