"""A sweep on a database server: two workers, one killed with -9, the server gone and back."""

import os
import signal
import time

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from hub_unets.training.errors import UserError
from hub_unets.training.settings import storage
from tests.training import postgresql
from tests.training.test_sweep import RECIPE, SWEEP, runs_in, start, wait_for


@pytest.mark.long
@pytest.mark.skipif(bool(postgresql.missing()), reason=postgresql.missing())
def test_no_trial_is_lost_and_none_is_trained_twice(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        RECIPE
        + "num_train_epochs: 6\nsave_steps: 1\nsave_strategy: steps\ngrid: {learning_rate: [0.01, 0.02, 0.03]}\n"
    )
    folder = tmp_path / "study"
    with postgresql.running_server() as server:
        argv = [str(tmp_path / "mine.yaml"), "--output_dir", str(folder), "--storage", server.url]
        first, second = start(SWEEP, *argv), start(SWEEP, *argv)
        wait_for(lambda: len(list(folder.glob("trials/*/checkpoint-*/complete.json"))) > 1, first)
        wait_for(lambda: len(list(folder.glob("trials/*/settings.json"))) == 2, second)
        os.killpg(first.pid, signal.SIGKILL)  # a worker and its run
        first.communicate()
        server.stop()
        wait_for(lambda: list(folder.glob("trials/*/results.json")), second)  # it ends while the server is away
        time.sleep(1)
        server.start()
        stdout, stderr = second.communicate(timeout=300)
        assert second.returncode == 0, stderr
        trials = optuna.load_study(study_name="study", storage=server.url).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert {trial.user_attrs["name"] for trial in trials} == {"0.01", "0.02", "0.03"}
    assert sorted(runs_in(folder / "trials" / f"{name}.log") for name in ("0.01", "0.02", "0.03")) == [1, 1, 2]
    page = (folder / "leaderboard.md").read_text("utf-8")
    assert page.count("| 1 |") == page.count("| 3 |") == 1
    assert "Traceback" not in stderr and "does not answer: waiting for it" in stdout
    for text in (stdout, stderr, page):
        assert postgresql.PASSWORD not in text and "se:cr" not in text
    assert "sweeper:***@" in page


class Fails:
    """A call that fails some times before it answers."""

    def __init__(self, *errors, answer="answer"):
        self.errors, self.answer, self.__name__ = list(errors), answer, "call"

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return self.answer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.1)


def test_an_outage_is_waited_for(quick, capsys):
    call = storage._patient(Fails(*[StorageInternalError("gone")] * 3), "db://x")
    assert call() == "answer"
    assert capsys.readouterr().out == "The sweep's database, db://x, does not answer: waiting for it.\n"


def test_an_outage_that_lasts_ends_with_what_to_repeat(quick):
    call = storage._patient(Fails(*[StorageInternalError("gone")] * 1000), "db://x")
    with pytest.raises(OSError, match="database, db://x, has not answered .*: repeat the command when it does"):
        call()


def test_an_answer_that_was_lost_is_no_error(quick):
    assert storage._patient(Fails(StorageInternalError("gone"), UpdateFinishedTrialError("told")), "db://x")() is True
    with pytest.raises(UpdateFinishedTrialError):
        storage._patient(Fails(UpdateFinishedTrialError("told")), "db://x")()


@pytest.mark.parametrize("url", ["postgresql+psycopg://ann:secret@127.0.0.1:9/s", "nosuch://ann:secret@host/s"])
def test_a_password_is_not_in_the_error(url):
    with pytest.raises(UserError, match=r"storage '.*://ann:\*\*\*@.*' can't be opened: ") as error:
        storage.open_storage(url)
    assert "secret" not in str(error.value)
