"""A second data set to train on: all but its test part, and never an image that the run is chosen or tested by."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.further import load_extra, load_further
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.reading import read_image
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


PROCESSOR = UNetImageProcessor(size=32)


@pytest.fixture
def held():
    """Rows and split of the data, and the processor of the run."""
    return *make_partition(load_source(runs.TINY["data"]), "own"), PROCESSOR


def test_all_of_it_or_all_but_its_test_part(other, held):
    everything = load_extra(str(other), "all", 42, LABELS, *held)
    assert sorted(everything.rows["name"]) == [str(number) for number in range(9)]
    assert everything.record["images"] == len(everything.digests) == 9
    rows, fold = make_partition(load_source(str(other)), "fold-1-of-3", 42)
    part = load_extra(str(other), "fold-1-of-3", 42, LABELS, *held)
    assert set(part.rows["name"]) == set(rows["name"]) - set(fold.names_of("test"))
    assert part.record == {"split": "fold-1-of-3", "images": 6, "sha256": fold.sha256}


def test_an_image_that_the_run_is_tested_by_is_refused(held):
    with pytest.raises(UserError, match="extra_data: .* in phantoms.* is a validation or test image of data: take it"):
        load_extra(runs.TINY["data"], "all", 42, LABELS, *held)


@pytest.mark.parametrize("kind", ["extra_data", "negatives"])
def test_an_image_stored_anew_is_refused_by_its_pixels(other, held, kind):
    rows, partition, _ = held
    row = rows[partition.test[0]]
    image = read_image(row["image"], row["name"])
    resized = image.resize((64, 64))
    resized.save(other / "images/3.png")  # of the same size as the others
    image.save(other / "images/5.bmp")
    (other / "images/5.png").unlink()
    Image.new("L", image.size).save(other / "masks/5.png")

    def load():
        if kind == "extra_data":
            return load_extra(str(other), "all", 42, LABELS, *held)
        return load_further("negatives", str(other / "images"), *held)

    with pytest.raises(UserError, match=f"{kind}: 5.* in .* is a validation or test image of data"):
        load()
    Image.fromarray(np.array(image) ^ 1).save(other / "images/5.bmp")
    assert "5" in {Path(name).stem for name in load().rows["name"]}


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
    for changed, pixels in (("masks/0.png", np.zeros((64, 64), np.uint8)), ("images/0.png", np.zeros((64, 64, 3)))):
        before = (other / changed).read_bytes()
        Image.fromarray(pixels.astype(np.uint8)).save(other / changed)
        ended = runs.run(tmp_path / "run", **fields)
        assert ended.code == 1 and "extra_data_sha256" in ended.stderr
        (other / changed).write_bytes(before)


@pytest.mark.skipif(not CLINICDB.is_dir(), reason="CVC-ClinicDB is not beside the checkout")
def test_the_last_three_sequences_of_clinicdb_are_held_out(held):
    source = load_source(str(CLINICDB))
    _, split = make_partition(source, "clinicdb")
    assert split.sizes == {"train": 546, "validation": 0, "test": 66}
    assert split.names_of("test") == sorted(map(str, range(547, 613)))
    sequences = dict(line.split(",") for line in (CLINICDB / "sequences.csv").read_text().split()[1:])
    assert {sequences[name] for name in split.names_of("test")} == {"27", "28", "29"}
    assert not {sequences[name] for name in split.names_of("train")} & {"27", "28", "29"}
    assert load_extra(str(CLINICDB), "clinicdb", 42, LABELS, *held).record["images"] == 546
    colondb = load_source(str(CLINICDB.with_name("cvc-colondb")))
    assert make_partition(colondb, "cvc-300")[1].sizes == {"train": 320, "validation": 0, "test": 60}
    with pytest.raises(UserError, match='"clinicdb" .*give the whole of CVC-ClinicDB'):
        make_partition(load_source(runs.TINY["data"]), "clinicdb")
