"""A second data set to train on: all but its test part, and never an image that the run is chosen or tested by."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.data.further import load_extra
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError
from hub_unets.training.records.results import read_history, read_results
from tests.training import runs

LABELS = {0: "background", 1: "polyp"}
CLINICDB = Path(os.environ.get("CLINICDB", runs.ROOT.parent / "shared/other-hospitals/clinicdb"))


@pytest.fixture
def other(tmp_path):
    """Nine pairs of another hospital as a folder, in three sequences."""
    for number in range(9):
        for kind, pixels in zip(("images", "masks"), phantom(5, number, 64), strict=True):
            (tmp_path / "other" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "other" / kind / f"{number}.png")
    lines = [f"{number},{number // 3}" for number in range(9)]
    (tmp_path / "other/sequences.csv").write_text("\n".join(["name,sequence", *lines]))
    return tmp_path / "other"


@pytest.fixture
def partition():
    return make_partition(load_source(runs.TINY["data"]), "own")[1]


def test_all_of_it_or_all_but_its_test_part(other, partition):
    everything = load_extra(str(other), "all", 42, LABELS, partition)
    assert sorted(everything.rows["name"]) == [str(number) for number in range(9)]
    assert everything.record["images"] == len(everything.digests) == 9
    rows, fold = make_partition(load_source(str(other)), "fold-1-of-3", 42)
    part = load_extra(str(other), "fold-1-of-3", 42, LABELS, partition)
    assert set(part.rows["name"]) == set(rows["name"]) - set(fold.names_of("test"))
    assert part.record == {"split": "fold-1-of-3", "images": 6, "sha256": fold.sha256}


def test_an_image_that_the_run_is_tested_by_is_refused(partition):
    with pytest.raises(UserError, match="extra_data: .* in phantoms.* is a validation or test image of data: take it"):
        load_extra(runs.TINY["data"], "all", 42, LABELS, partition)


@pytest.mark.long
def test_a_run_trains_on_both_and_says_so(other, tmp_path):
    fields = {"extra_data": other, "extra_split": "fold-1-of-3", "num_train_epochs": 1}
    for name, more in (("both", fields), ("one", {"num_train_epochs": 1})):
        ended = runs.run(tmp_path / name, **more, per_device_train_batch_size=2)
        assert ended.code == 0, ended.stderr
    steps = [read_history(tmp_path / name, {})[-1]["step"] for name in ("both", "one")]
    assert steps[0] == steps[1] + 3  # 6 images are three more batches
    both, one = (read_results(tmp_path / name / "results.json") for name in ("both", "one"))
    (record,) = both["data"].pop("extra")
    assert (record["source"], record["split"], record["images"]) == ("other", "fold-1-of-3", 6)
    assert both["data"] == one["data"] and both["run"]["settings"]["extra_data"] == "other"


def test_a_split_of_nothing_is_refused(tmp_path):
    ended = runs.run(tmp_path / "run", extra_split="clinicdb")
    assert ended.code == 1 and "extra_split=clinicdb is a split of extra_data, which is missing" in ended.stderr


def test_another_second_data_set_is_another_run(other, tmp_path):
    fields = {"extra_data": other, "num_train_epochs": 1}
    stopped = runs.run(tmp_path / "run", moment=["before_scoring", 0], **fields)
    assert stopped.code != 0
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(other / "images/0.png")
    ended = runs.run(tmp_path / "run", **fields)
    assert ended.code == 1 and "extra_data_sha256" in ended.stderr


@pytest.mark.skipif(not CLINICDB.is_dir(), reason="CVC-ClinicDB is not beside the checkout")
def test_the_last_three_sequences_of_clinicdb_are_held_out(partition):
    source = load_source(str(CLINICDB))
    _, split = make_partition(source, "clinicdb")
    assert split.sizes == {"train": 546, "validation": 0, "test": 66}
    assert split.names_of("test") == sorted(map(str, range(547, 613)))
    sequences = dict(line.split(",") for line in (CLINICDB / "sequences.csv").read_text().split()[1:])
    assert {sequences[name] for name in split.names_of("test")} == {"27", "28", "29"}
    assert not {sequences[name] for name in split.names_of("train")} & {"27", "28", "29"}
    assert load_extra(str(CLINICDB), "clinicdb", 42, LABELS, partition).record["images"] == 546
    colondb = load_source(str(CLINICDB.with_name("cvc-colondb")))
    assert make_partition(colondb, "cvc-300")[1].sizes == {"train": 320, "validation": 0, "test": 60}
    with pytest.raises(UserError, match='"clinicdb" .*give the whole of CVC-ClinicDB'):
        make_partition(load_source(runs.TINY["data"]), "clinicdb")
