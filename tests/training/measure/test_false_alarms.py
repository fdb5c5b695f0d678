"""False alarms: on the polyp-free parts of images, and on a folder of frames."""

import json

import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.evaluate import main
from hub_unets.training.measure.false_alarms import marked_on_frames, marked_pixels, share_marked, summarize_crops
from hub_unets.training.measure.score import score
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task
from tests.training.measure.made_models import box, constant_model, rows_of

PROCESSOR = UNetImageProcessor(size=16)


def test_marked_pixels_are_counted_at_the_images_own_size():
    image = Image.new("RGB", (40, 30))
    for logit, threshold, pixels in ((1.0, None, 1200), (-1.0, None, 0), (1.0, 0.8, 0)):  # sigmoid(1) is .73
        assert marked_pixels(Segmenter(constant_model(logit), PROCESSOR, threshold), [1], image) == pixels


def test_only_labels_that_are_scored_count():
    """A model that sees label 1 everywhere, scored for label 2, raises no alarm."""
    model, rows = constant_model(0.0, 1.0, -1.0, num_labels=3), rows_of([box((60, 30), 0, 0)])
    assert score(model, PROCESSOR, rows, Task(((2,),), 2), crops=True).crops == [0]
    assert score(model, PROCESSOR, rows, Task(((1,),), 2), crops=True).crops == [1800]
    assert marked_on_frames(Segmenter(model, PROCESSOR), [2], rows) == [0]


def test_flips_reach_crops():
    """The left half alone is marked; the mean of it and its mirror images is marked nowhere."""
    calls = []

    class LeftHalf(torch.nn.Module):
        config, device, dtype = constant_model(1.0).config, torch.device("cpu"), torch.float32

        def forward(self, pixel_values):
            calls.append(len(pixel_values))
            logits = torch.full((len(pixel_values), 1, *pixel_values.shape[2:]), -3.0)
            logits[..., : pixel_values.shape[3] // 2] = 1.0
            return SemanticSegmenterOutput(logits=logits)

    rows = rows_of([box((60, 30), 0, 0)])
    assert score(LeftHalf(), PROCESSOR, rows, crops=True).crops == [900]
    assert len(calls) == 2
    assert score(LeftHalf(), PROCESSOR, rows, crops=True, flips=True).crops == [0]
    assert len(calls) == 2 + 8


def test_shares_by_hand():
    summary = summarize_crops([None, 0, 3, 5, None, 0])
    assert summary["crops"] == 4 and summary["marked"]["value"] == 0.5
    assert 0 <= summary["marked"]["low"] < 0.5 < summary["marked"]["high"] <= 1
    assert summarize_crops([None]) == {"crops": 0, "marked": None}
    frames = share_marked([0, 1, 1, 9])
    assert frames["frames"] == 4 and frames["marked"]["value"] == 0.75


def test_a_score_has_the_pixels_of_each_crop():
    rows = rows_of([box((64, 64), 20, 64), box((60, 30), 60, 29), box((30, 60), 0, 0)])
    scores = score(constant_model(1.0), PROCESSOR, rows, Task(), crops=True)
    assert scores.crops == [44 * 64, None, 30 * 60]  # below the polyp; nothing a third as wide; all of it
    assert scores.summary()["false_alarms"]["crops"] == 2
    assert scores.summary({"f1", "f2"})["false_alarms"]["crops"] == 1
    quiet = score(constant_model(-1.0), PROCESSOR, rows, Task(), crops=True).summary()["false_alarms"]
    assert quiet["marked"]["value"] == 0
    unasked = score(constant_model(1.0), PROCESSOR, rows, Task())
    assert unasked.crops == [] and "false_alarms" not in unasked.summary()


@pytest.mark.parametrize(
    ("logit", "options", "share"),
    [(1.0, [], 1.0), (-1.0, [], 0.0), (1.0, ["--threshold", "0.8", "--flips", "true"], 0.0)],
)
def test_an_evaluation_counts_a_folder_of_frames(logit, options, share, tmp_path, capsys):
    model, folder = tmp_path / "model", tmp_path / "normal"
    constant_model(logit).save_pretrained(model)
    PROCESSOR.save_pretrained(model)
    for name in ("a.jpg", "deeper/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    output = tmp_path / "evaluation"
    data = "phantoms?count=10&size=64"
    main([str(model), data, "--split", "own", "--output", str(output), "--negatives", str(folder), *options])
    results = json.loads((output / "results.json").read_text())
    assert (results["negatives"]["source"], results["negatives"]["frames"]) == ("normal", 2)
    assert results["negatives"]["marked"]["value"] == share
    assert f"normal: 2 frames without a polyp, marked {share:.4f}" in capsys.readouterr().out
    assert results["definitions"]["false_alarms"].startswith("Of each image the largest rectangle")
    header, *rows = (output / "per_image.csv").read_text().splitlines()
    assert header.endswith(",crop_pixels") and len(rows) == sum(part["images"] for part in results["metrics"].values())


def test_a_folder_without_images_is_refused(tmp_path):
    constant_model(1.0).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no image files"):
        main(
            [str(tmp_path), "phantoms?count=10&size=64", "--output", str(tmp_path / "e"), "--negatives", str(tmp_path)]
        )
