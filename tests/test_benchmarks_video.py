"""The made clip, what is measured on it, and what is measured of the endoscope's view: by hand, on tiny frames."""

import numpy as np
import pytest
from PIL import Image

from hub_unets.benchmarks import video, view
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.coco import mask_api
from tests.variants import small_model


def record(position, *boxes):
    """A frame of 20 x 20 with a square region for each box, (row, column, side)."""
    polyps = []
    for row, column, side in boxes:
        mask = np.zeros((20, 20), np.uint8, order="F")
        mask[row : row + side, column : column + side] = 1
        polyps.append({"segmentation": mask_api().encode(mask)})
    return {"video": "clip", "position": position, "image": {"height": 20, "width": 20}, "polyps": polyps}


def test_stillness_by_hand():
    polyp, flash, alarm = (2, 2, 6), (12, 12, 2), (2, 12, 4)
    records = [
        record(0, polyp),
        record(1, polyp, flash),
        record(2),  # a gap
        record(3, polyp, alarm),
        record(4, polyp, alarm),
        record(5),
    ]
    truth = np.zeros((20, 20), bool)
    truth[2:8, 2:8] = True
    result = video.stillness(records, [truth] * 4 + [~truth & False] * 2, rate=6)  # one second
    marked = 4 * 36 + 4 + 2 * 16
    assert result.flicker == pytest.approx((4 + 36) / marked)  # the flash, and the gap
    assert (result.blinks, result.alarms) == (pytest.approx(60), pytest.approx(120))
    assert (result.alarm_frames, result.found) == (0.5, 0.75)
    assert result.dice == pytest.approx((1 + 72 / 76 + 0 + 72 / 88) / 4)


def test_the_camera_moves_image_and_mask_alike():
    image = np.full((90, 120, 3), (60, 20, 20), np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    mask[30:60, 40:80] = 255
    image[mask > 0] = 220
    first, *_, last = video.camera(image, mask, 30, np.random.default_rng(0), 64)
    assert not np.array_equal(first[1], last[1])
    for pixels, truth in (first, last):
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        assert ((pixels.mean(axis=2) > 130) == truth).mean() > 0.95 and 0.05 < truth.mean() < 0.6


@pytest.fixture
def model(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    UNetImageProcessor(size=32).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_prints_a_line_for_each_smoothing(model, capsys, monkeypatch):
    monkeypatch.setattr(video, "SIZE", 64)
    video.main([model, "--data", "phantoms?count=6&size=64&seed=0", "--images", "1", "--frames", "3"])
    count, heading, plain, *smoothed = capsys.readouterr().out.splitlines()
    assert count.split()[:2] in (["3", "frames,"], ["6", "frames,"]) and heading.split()[1:] == [
        *video.Stillness._fields
    ]
    assert [line.split()[0] for line in (plain, *smoothed)] == ["0", "0.4", "0.6"] and len(plain.split()) == 7


def test_a_frame_cropped_to_its_view_is_marked_in_its_own_place():
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:32, 24:56] = 150, 60, 50
    left, top, right, bottom = view.box_of(view.view_of(image))
    assert left in range(18, 25) and top in range(2, 9) and right in range(56, 61) and bottom in range(32, 39)
    mask = view.in_box(
        lambda images: ([np.asarray(image)[..., 0] > 100 for image in images], None), Image.fromarray(image)
    )
    assert np.array_equal(mask, image[..., 0] > 100)


def test_false_regions():
    mask, truth = np.zeros((6, 6), bool), np.zeros((6, 6), np.uint8)
    mask[0, :3] = mask[3, :2] = mask[5, 5] = True
    truth[0, 2] = truth[5, 0] = 1
    assert view.false_regions(mask, truth) == 2


def test_the_views_command_prints_three_ways(model, capsys):
    view.main([model, "phantoms?count=6&size=64&seed=0", "--split", "own", "--images", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 images, ") and [line[:16].strip() for line in lines[1:]] == [*view.WAYS]
