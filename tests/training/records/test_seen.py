"""A model that has learned from what a run is chosen or tested by is no start and no teacher for it."""

import contextlib
import json

import pytest

from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from hub_unets.training.measure.ensemble import ENSEMBLE
from hub_unets.training.records import seen
from tests.training import runs

DATA = "phantoms?count=40&size=64&seed=0"


@pytest.fixture(scope="module")
def source():
    return load_source(DATA)


@pytest.fixture
def trained(tmp_path, source, monkeypatch):
    """Makes the folder of a run of a split; its results.json holds what is looked at alone."""
    monkeypatch.setattr(seen, "read_results", lambda path: json.loads(path.read_text()))

    def make(name, split, split_seed=42, changes=()):
        partition = make_partition(source, split, split_seed)[1] if "folds" not in split else None
        data = {"source": DATA, "split": split, "split_seed": split_seed, "sha256": partition and partition.sha256}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"data": data | dict(changes)}))
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("split", "split_seed", "changes", "refused"),
    [
        ("80/10/10", 42, {}, False),  # the run's own
        ("80/10/10", 1, {}, True),
        ("fold-1-of-5", 42, {}, True),
        ("5 folds", 42, {}, True),  # the mean of all: each learned from most
        ("5 folds", 42, {"source": "other"}, False),
        ("80/10/10", 1, {"sha256": "0" * 64}, False),  # of other data
        ("official", 42, {"split": "official"}, False),
    ],
)
def test_by_the_split_that_it_was_trained_on(trained, source, split, split_seed, changes, refused):
    partition = make_partition(source, "80/10/10")[1]
    folder = trained("run", "80/10/10" if split == "official" else split, split_seed, changes)
    message = r"teacher: .*run learned from \d+ of the images .* same split, 80/10/10"
    with pytest.raises(UserError, match=message) if refused else contextlib.nullcontext():
        seen.refuse_seen("teacher", str(folder), DATA, source, partition)


def test_the_members_of_an_ensemble_count(trained, source, tmp_path):
    trained("good", "80/10/10")
    trained("bad", "fold-2-of-5")
    (tmp_path / "both").mkdir()
    members = [{"path": "../good"}, {"path": "../bad"}]
    (tmp_path / "both" / ENSEMBLE).write_text(json.dumps({"members": members}))
    with pytest.raises(UserError, match="bad learned from"):
        seen.refuse_seen("teacher", str(tmp_path / "both"), DATA, source, make_partition(source, "80/10/10")[1])


def test_models_without_a_record_pass(source, tmp_path):
    for name in (str(tmp_path), "someone/a-model"):
        seen.refuse_seen("start_from", name, DATA, source, make_partition(source, "80/10/10")[1])


@pytest.mark.long
@pytest.mark.parametrize("field", ["start_from", "teacher"])
def test_a_run_refuses_it(field, tmp_path):
    assert runs.run(tmp_path / "fold", split="fold-1-of-3", num_train_epochs=1).code == 0
    ended = runs.run(tmp_path / "run", **{field: tmp_path / "fold"})
    assert ended.code == 1 and f"{field}: " in ended.stderr and "learned from" in ended.stderr
