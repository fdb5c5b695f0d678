"""A Hub that is slow, refuses, moves or breaks off leaves nothing half published."""

import copy
import time

import pytest

from hub_unets.hub_repos.publish.publication import BRANCH
from tests.hub_repos.loopback_repository import Blob
from tests.hub_repos.push.names import FIRST_HEAD, REPO, TOKEN


def test_the_clients_own_retries_are_enough(hub, pusher, run):
    hub.fail("POST", "/preupload/", 429, headers={"Retry-After": "7"})
    hub.fail("PUT", "/lfs/", 500, times=2)
    hub.drop("/lfs/", after_bytes=100)
    finished = pusher.push(run, REPO, token=TOKEN)
    assert finished.code == 0, finished.stderr
    assert "Waiting 8.0s before retry" in finished.stderr
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD and hub.repositories[REPO].tags.keys() == {"v1"}


@pytest.mark.long
def test_slow_answers_are_awaited(hub, pusher, run):
    for path in ("/api/repos/create", "/preupload/", "/lfs/", "/commit/", "/tag/"):
        hub.slow("POST|PUT", path, 1)
    hub.slow("GET", "/tree/", 1)
    began = time.monotonic()
    finished = pusher.push(run, REPO, token=TOKEN, seconds=20)
    assert finished.code == 0, finished.stderr
    assert time.monotonic() - began > 6 and "Retrying" not in finished.stderr
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD
    assert hub.count("POST", f"/models/{REPO}/commit/") == 2


@pytest.mark.long
def test_the_client_asks_again_where_an_answer_comes_too_late(hub, pusher, run):
    hub.hold("POST", "/preupload/")
    hub.hold("PUT", "/lfs/")
    finished = pusher.push(run, REPO, token=TOKEN, seconds=5)
    assert finished.code == 0, finished.stderr
    assert finished.stderr.count("timed out' thrown while requesting") == 2
    assert len(hub.repositories[REPO].history()) == FIRST_HEAD and hub.repositories[REPO].tags.keys() == {"v1"}


@pytest.mark.parametrize(
    "path",
    [
        "/commit/main",
        *(pytest.param(path, marks=pytest.mark.long) for path in ("/branch/", "/commit/hub-unets-push", "/tag/")),
    ],
)
def test_a_hub_that_answers_too_late_is_given_up_and_the_next_push_finishes(path, published, hub, pusher, other_run):
    before = published.branches["main"]
    hub.hold("POST", path)
    late = pusher.push(other_run, REPO, token=TOKEN, seconds=5)
    assert late.code == 1 and "the Hub did not answer in time: repeat the command" in late.stderr
    assert late.stderr.count("\n") == 1 and published.branches.keys() == {"main"}
    arrived = path in ("/commit/main", "/tag/")  # the request was carried out
    assert (published.parents[published.branches["main"]] if arrived else published.branches["main"]) == before
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    head = published.branches["main"]
    assert published.parents[head] == before and published.tags == {"v1": before, "v2": head}
    assert hub.count("PUT", "/lfs/") == 1  # the weights, once


def test_a_hub_that_never_tells_what_it_holds_is_named(published, hub, pusher, run):
    hub.hold("GET", "/revision/main")
    finished = pusher.push(run, REPO, token=TOKEN, seconds=5)
    assert finished.code == 1 and finished.stderr.startswith("error: the Hub did not answer in time")
    assert finished.stderr.count("\n") == 1 and {method for method, *_ in hub.requests} == {"GET"}


@pytest.mark.parametrize("path", ["/preupload/", "/lfs/", "/branch/", "/commit/hub-unets-push", "/commit/main"])
def test_a_hub_out_of_order_leaves_main_as_it_was(path, published, hub, pusher, other_run):
    before = copy.deepcopy(published)
    hub.fail("POST|PUT", path, 500, times=6)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1
    assert "error: the Hub is out of order (500, injected): repeat the command later." in finished.stderr
    assert (published.branches, published.tags) == (before.branches, before.tags)


def test_an_answer_that_is_a_page_is_an_error_of_one_line(published, hub, pusher, other_run):
    hub.when("POST", "/validate-yaml", lambda handler: handler.answer(b"<html>Sorry</html>", 503))
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and finished.stderr.startswith("error: the Hub did not take the files (")
    assert finished.stderr.count("\n") == 1 and published.tags.keys() == {"v1"}


def test_a_push_cut_off_before_its_tag_is_finished_by_the_next(hub, pusher, run):
    hub.fail("POST", "/tag/", 503)
    cut_off = pusher.push(run, REPO, token=TOKEN)
    repository = hub.repositories[REPO]
    assert cut_off.code == 1 and not repository.tags
    assert f"commit {repository.branches['main']} is on main, but has no tag v1 yet: " in cut_off.stderr
    assert pusher.push(run, REPO, token=TOKEN).code == 0
    assert repository.tags == {"v1": repository.branches["main"]} and len(repository.history()) == FIRST_HEAD


def test_files_that_arrived_before_a_connection_broke_are_not_sent_again(hub, pusher, run):
    hub.drop(Blob((run / "curves.png").read_bytes()).sha256, after_bytes=100, times=6)
    broken = pusher.push(run, REPO, token=TOKEN)
    assert broken.code == 1 and "error: the connection to the Hub broke" in broken.stderr
    assert hub.repositories[REPO].branches.keys() == {"main"} and len(hub.repositories[REPO].history()) == 1
    arrived = set(hub.objects)
    assert len(arrived) == 3
    hub.requests.clear()
    assert pusher.push(run, REPO, "--no-space", token=TOKEN).code == 0
    assert not any(hub.count("PUT", oid) for oid in arrived) and hub.count("PUT", "/lfs/") == 1


def test_a_commit_of_someone_else_is_not_overwritten(published, hub, pusher, other_run):
    def arrives(handler):
        files = published.commits[published.branches["main"]] | {"NOTES.md": Blob(b"theirs")}
        published.commit("main", files, published.branches["main"])

    hub.when("POST", "/commit/main", arrives)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and f"error: someone else pushed to {REPO}" in finished.stderr
    assert "repeat the command" in finished.stderr
    assert published.main["NOTES.md"] == b"theirs" and published.tags.keys() == {"v1"}
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    assert published.main["NOTES.md"] == b"theirs" and published.tags["v2"] == published.branches["main"]


def test_other_logits_never_reach_main(published, hub, pusher, other_run):
    before = copy.deepcopy(published)
    weights = (other_run / "model.safetensors").read_bytes()

    def damaged(handler):
        handler.answer(weights[:-4] + b"\0\0\0\x7f", headers={"ETag": '"damaged"'})
        return True

    hub.when("GET", f"/lfs/{Blob(weights).sha256}", damaged)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1
    assert "(main and the tags are as they were): its logits differ from those of" in finished.stderr
    assert (published.branches, published.tags) == (before.branches, before.tags)


def test_a_file_that_the_hub_ignores_is_noticed(published, pusher, other_run):
    files = published.commits[published.branches["main"]] | {".gitignore": Blob(b"README.md\n")}
    ignoring = published.commit("main", files, published.branches["main"])
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and "README.md did not arrive as built" in finished.stderr
    assert published.branches == {"main": ignoring}


def test_a_branch_that_a_killed_push_left_is_replaced(published, pusher, other_run):
    published.commit(BRANCH, {}, published.branches["main"])
    assert pusher.push(other_run, REPO, token=TOKEN).code == 0
    assert published.branches.keys() == {"main"} and published.tags["v2"] == published.branches["main"]


def test_a_branch_that_cannot_be_removed_is_named(published, hub, pusher, other_run):
    hub.fail("DELETE", "/branch/", 500)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 0 and published.tags["v2"] == published.branches["main"]
    assert f"A branch is left: hf repos branch delete {REPO} {BRANCH}" in finished.stderr


def test_a_branch_that_another_push_makes_meanwhile_is_left_to_it(published, hub, pusher, other_run):
    hub.when("POST", "/branch/", lambda handler: published.branches.update({BRANCH: published.branches["main"]}))
    before = copy.deepcopy(published)
    finished = pusher.push(other_run, REPO, token=TOKEN)
    assert finished.code == 1 and "changed while this ran (Reference already exists): repeat" in finished.stderr
    assert published.tags == before.tags and published.branches == {**before.branches, BRANCH: before.branches["main"]}
