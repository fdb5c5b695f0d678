"""Locks before a test part is scored: what moves them, how they are counted, what counts as seen before."""

import dataclasses
import os

import pytest

from hub_unets.training.records import locks
from hub_unets.training.records.locks import is_seen_before, lock_record, log_scoring, make_lock

SPLIT = "5" * 64
SETTINGS = {"data": "phantoms", "learning_rate": "0.1", "seed": "0", "output_dir": "runs/a"}


def lock_of(seed=0, split=SPLIT, model_type="unet", code="c" * 64, **settings):
    return make_lock(model_type, SETTINGS | settings, seed, 42, split, code=code)


def score(folder, *given):
    """The record of the last of some locks, each logged as for a scoring of the test part."""
    for lock in given:
        log_scoring(folder, "test", 5, lock=lock)
    return lock_record(folder, given[-1])


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"learning_rate": "0.2"}, {"recipe"}),
        ({"seed": 1}, {"seeds"}),
        ({"split": "6" * 64}, {"split"}),
        ({"code": "d" * 64}, {"code"}),
        ({"model_type": "resunet"}, {"family"}),
        ({"output_dir": "runs/b", "disable_tqdm": "true"}, set()),
    ],
)
def test_a_change_moves_its_part_and_the_whole(change, moved):
    before, after = (dataclasses.asdict(lock) for lock in (lock_of(), lock_of(**change)))
    assert {name for name in before if before[name] != after[name]} == moved
    assert (lock_of().sha256 != lock_of(**change).sha256) == bool(moved)


def test_another_definition_moves_the_metric(monkeypatch):
    before = lock_of()
    monkeypatch.setattr(locks.polyps, "DEFINITION", "Another.")
    assert lock_of() == dataclasses.replace(before, metric=lock_of().metric) and lock_of().metric != before.metric


def test_another_line_of_code_moves_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PROJECT", tmp_path)
    for folder in locks.CODE_FOLDERS:
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "a.py").write_text("a = 1\n")
    before = locks.code_sha256()
    (tmp_path / "training" / "notes.md").write_text("no code")
    assert locks.code_sha256() == before
    (tmp_path / "training" / "inner" / "a.py").write_text("a = 2\n")
    assert locks.code_sha256() != before


def test_each_scoring_under_a_lock_is_counted(tmp_path):
    folder = tmp_path / "a"
    log_scoring(folder, "validation", 3, "to calibrate")
    record = score(folder, lock_of(), lock_of())  # a run that ended while it scored, and was resumed
    assert (record["scorings"], record["earlier"]) == (2, [])
    assert record["sha256"] == lock_of().sha256 and record["recipe"] == lock_of().recipe
    assert record["time"] == (folder / "scorings.log").read_text().splitlines()[-1].split()[0]
    assert not is_seen_before(record)


@pytest.mark.parametrize("place", ["runs/b", "runs/a/elsewhere", "runs/a", "runs"])
def test_an_earlier_lock_around_the_folder_is_seen_before(place, tmp_path):
    earlier = lock_of(learning_rate="0.2", code="d" * 64)
    score(tmp_path / place, earlier, earlier)
    record = score(tmp_path / "runs/a", lock_of())
    assert record["earlier"] == [{"sha256": earlier.sha256, "scorings": 2, "changed": ["recipe", "code"]}]
    assert record["scorings"] == 1 and is_seen_before(record)


def test_the_same_lock_beside_it_counts_as_the_same(tmp_path):
    score(tmp_path / "runs/b", lock_of())
    assert score(tmp_path / "runs/a", lock_of())["scorings"] == 2


def test_other_seeds_are_listed_and_are_not_seen_before(tmp_path):
    score(tmp_path / "runs/b", lock_of(seed=1))
    record = score(tmp_path / "runs/a", lock_of())
    assert [entry["changed"] for entry in record["earlier"]] == [["seeds"]] and not is_seen_before(record)


@pytest.mark.parametrize("other", [{"split": "6" * 64}, {"model_type": "resunet"}])
def test_another_split_or_variant_is_another_matter(other, tmp_path):
    score(tmp_path / "runs/b", lock_of(**other))
    assert score(tmp_path / "runs/a", lock_of())["earlier"] == []


def test_a_scoring_without_a_lock_counts(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/scorings.log").write_text(
        "2026-01-01T00:00:00+0000 validation 3 images to calibrate\n2026-01-01T00:00:00+0000 test 5 images\n"
    )
    record = score(tmp_path / "a", lock_of())
    assert record["earlier"] == [{"sha256": None, "scorings": 1, "changed": []}] and is_seen_before(record)


def test_a_later_lock_is_not_an_earlier_one(tmp_path, monkeypatch):
    log_scoring(tmp_path / "runs/a", "test", 5, lock=lock_of())
    monkeypatch.setattr(locks, "_now", lambda: "9999-01-01T00:00:00Z")
    log_scoring(tmp_path / "runs/b", "test", 5, lock=lock_of(seed=1))
    assert lock_record(tmp_path / "runs/a", lock_of())["earlier"] == []


def test_what_cannot_be_read_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "runs/b").mkdir(parents=True)
    os.mkfifo(tmp_path / "runs/b/scorings.log")
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "runs/c/scorings.log").write_bytes(b"\xff\n")
    assert score(tmp_path / "runs/a", lock_of())["scorings"] == 1
    refuse = lambda path, *_, **__: (_ for _ in ()).throw(PermissionError(path))  # noqa: E731
    monkeypatch.setattr(locks.Path, "read_text", refuse)
    monkeypatch.setattr(locks.Path, "iterdir", refuse)
    assert lock_record(tmp_path / "runs/a", lock_of())["scorings"] == 1
