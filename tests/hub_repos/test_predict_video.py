"""The command on a clip: smoothed, with ids, and the same however many processes and starts there were."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hub_unets.hub_repos.inference.documents import write_documents
from hub_unets.hub_repos.inference.predictions import Predictions
from hub_unets.hub_repos.inference.records import Records
from hub_unets.hub_repos.inference.video import Video
from hub_unets.hub_repos.predict import Predictor, main, predict
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from tests.hub_repos.clips import video
from tests.hub_repos.inference.test_outside_view import green
from tests.variants import small_model

FRAMES, FLASH, GAP = 30, 12, 20
LABELS = {0: "background", 1: "polyp"}


def pictures():
    """A green square that moves right, missing in one frame, and another that is there in one frame alone."""
    for index in range(FRAMES):
        pixels = np.full((64, 96, 3), (150, 60, 50), np.uint8)
        if index != GAP:
            pixels[8:28, 4 + index : 24 + index] = 40, 220, 40
        if index == FLASH:
            pixels[40:60, 60:80] = 40, 220, 40
        yield Image.fromarray(pixels)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return video(tmp_path_factory.mktemp("clip") / "clip.mp4", pictures(), "libx264", g="8", bf="2", crf="8")


@pytest.fixture
def predictor(monkeypatch):
    def make(smoothing=0):
        model = small_model().eval()
        monkeypatch.setattr(model, "forward", green)
        processor = UNetImageProcessor(size=[64, 96], do_normalize=False)
        return Predictor(model, processor, smoothing=smoothing)

    return make


def written(predictor, path, folder, processes=1, every=1):
    """The folder after that many processes have each predicted its share."""
    clip = Video("clip", path, "stamp", every)
    for number in range(processes):
        state = SimpleNamespace(num_processes=processes, process_index=number, is_main_process=True)
        assert predict(predictor, [clip], Predictions(folder, LABELS, number), state) == []
    write_documents(folder, LABELS, [], stamps={"clip": "stamp"})
    return folder


def polyps_of(folder):
    with (folder / "polyps.csv").open(newline="") as file:
        return [(int(row["image"][-6:]), row["track"]) for row in csv.DictReader(file)]


def contents(folder):
    apart = {".work", "files.txt"}  # the latter has the paths of the folder itself
    files = [file for file in folder.rglob("*") if file.is_file() and not apart & set(file.parts)]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_smoothing_drops_the_flash_and_closes_the_gap_in_masks_rows_and_overlays(predictor, path, tmp_path):
    plain = written(predictor(), path, tmp_path / "plain")
    still = written(predictor(0.7), path, tmp_path / "still")
    expected = [(index, "1") for index in range(FRAMES) if index != GAP]
    assert sorted(polyps_of(plain)) == sorted([*expected, (FLASH, "2")])
    assert {index for index, track in polyps_of(still) if track == "1"} == set(range(FRAMES))
    assert not any(np.asarray(Image.open(mask))[36:, 56:].any() for mask in still.glob("masks/clip/*.png"))
    before, after = (np.asarray(Image.open(folder / f"masks/clip/{GAP:06d}.png")) for folder in (plain, still))
    assert not before.any() and after[10:26, 26:33].all()
    before, after = (np.asarray(Image.open(folder / f"overlays/clip/{FLASH:06d}.jpg")) for folder in (plain, still))
    assert np.abs(before[38:62, 58:82].astype(int) - after[38:62, 58:82]).max() > 50
    annotations = json.loads((still / "annotations.json").read_text())["annotations"]
    (held,) = [entry for entry in annotations if (entry["image_id"], entry["track_id"]) == (GAP + 1, 1)]
    assert 0.5 < held["score"] < 0.9


@pytest.mark.parametrize("smoothing", [0, 0.4])
@pytest.mark.parametrize("every", [1, 2])
def test_three_processes_write_what_one_does(predictor, path, tmp_path, smoothing, every):
    one = written(predictor(smoothing), path, tmp_path / "one", every=every)
    three = written(predictor(smoothing), path, tmp_path / "three", 3, every)
    assert contents(one) == contents(three)
    shares = [len(file.read_text().splitlines()) for file in sorted((three / ".work").glob("records-*"))]
    assert shares == [FRAMES // every // 3] * 3


def test_a_run_that_was_stopped_goes_on_to_the_same_files(predictor, path, tmp_path):
    whole = written(predictor(0.4), path, tmp_path / "whole")
    part = written(predictor(0.4), path, tmp_path / "part")
    records = part / ".work" / "records-0.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:9] + lines[20:25]))
    (part / "masks/clip/000015.png").unlink()
    assert contents(written(predictor(0.4), path, part)) == contents(whole)
    assert len(records.read_text().splitlines()) == FRAMES == len(Records(part))


def test_the_command(checkpoint, path, tmp_path):
    arguments = [str(checkpoint), path, str(tmp_path / "out"), "--every", "10"]
    assert main([*arguments, "--smoothing", "0.6"]) == 0
    assert json.loads((tmp_path / "out/settings.json").read_text())["smoothing"] == "0.6"
    assert {index for index, _ in polyps_of(tmp_path / "out")} <= {0, 10, 20}
    with pytest.raises(ValueError, match="smoothing"):
        main(arguments)
    with pytest.raises(ValueError, match="smoothing must lie between 0 and 0.95, got 1.0"):
        main([*arguments, "--smoothing", "1"])
