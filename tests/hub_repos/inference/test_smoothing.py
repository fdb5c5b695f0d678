"""What a frame's logits become beside those of the frames before."""

import numpy as np
import pytest
import torch
from PIL import Image

from hub_unets.hub_repos.inference.items import Place
from hub_unets.hub_repos.inference.smoothing import HOLD, LEAST, Smoother
from hub_unets.modeling.image_processing_unet import UNetImageProcessor

IMAGE = Image.new("RGB", (2, 1), (200, 80, 80))


def smoothed(frames, smoothing=0.5, first=0, **options):
    """Logits of each frame, H x W or C x H x W, smoothed."""
    smoother = Smoother(smoothing, UNetImageProcessor(**options))
    arrays = [torch.tensor(frame, dtype=torch.float32) for frame in frames]
    arrays = [array[None, None] if array.ndim == 2 else array[None] for array in arrays]
    return [smoother(logits, Place("clip", first + n), IMAGE)[0] for n, logits in enumerate(arrays)]


def marks(values, smoothing=0.6, **options):
    """Whether one pixel is marked in each frame, from its logits."""
    return [
        bool(logits[0, 0, 0] > 0) for logits in smoothed([[[value, -9.0]] for value in values], smoothing, **options)
    ]


def test_the_mean_by_hand():
    results = smoothed([[[2.0, -4.0]], [[-8.0, -4.0]], [[-2.0, -4.0]]])
    assert results[0][0, 0].tolist() == [2, -4]
    assert results[1][0, 0].tolist() == pytest.approx([(0.5 * 2 - 8) / 1.5, -4])
    assert results[2][0, 0].tolist() == pytest.approx([(0.25 * 2 - 0.5 * 8 - 2) / 1.75, -4])


def test_frames_of_little_weight_are_forgotten():
    smoother = Smoother(0.6, UNetImageProcessor())
    assert 0.6**smoother.memory <= LEAST < 0.6 ** (smoother.memory - 1) and smoother.reach == 2 * smoother.memory
    last = smoothed([[[100.0, 100.0]], *[[[-1.0, -1.0]]] * (smoother.memory + 1)], 0.6)[-1]
    torch.testing.assert_close(last, torch.full((1, 1, 2), -1.0))


def test_a_flash_of_one_frame_is_not_marked_and_a_gap_of_one_is_closed():
    assert marks([-3, -3, -3, 3, -3, -3]) == [False] * 6
    assert marks([3, 3, 3, -3, 3, 3]) == [True] * 6
    assert marks([-3] * 6 + [3] * 3) == [False] * 7 + [True] * 2  # what stays is found a frame later


def test_a_mark_is_held_below_the_threshold_for_a_while_and_a_new_one_is_not():
    memory = Smoother(0.1, UNetImageProcessor()).memory
    weak = -0.5 * HOLD
    assert marks([3, *[weak] * (memory + 2)], 0.1) == [True] * (memory + 1) + [False] * 2
    assert marks([weak] * 4, 0.1) == [False] * 4
    assert marks([3, -2 * HOLD, weak, weak], 0.1) == [True, False, False, False]  # once below, it does not come back


def test_a_held_mark_needs_the_thresholds_that_are_set():
    frames = [[[1.0, -9.0]], [[0.2, -9.0]]]
    options = {"mask_threshold": 0.6}  # a logit of .405
    held = smoothed(frames, 0.05, **options)[1][0, 0, 0]
    assert held == pytest.approx((0.05 * 1 + 0.2) / 1.05 + HOLD)
    alone = smoothed(frames[1:], 0.05, **options)[0][0, 0, 0]
    assert alone == pytest.approx(0.2)


def test_a_region_that_scores_too_low_for_a_frame_stays():
    processor = UNetImageProcessor(score_threshold=0.7, mask_threshold=0.4)
    smoother = Smoother(0.05, processor)

    def regions(value, position):
        logits = smoother(torch.tensor([[[[value, -9.0]]]]), Place("clip", position), IMAGE)
        return processor.post_process_instance_segmentation(logits)[0]["segments_info"]

    assert regions(0.5, 0) == []  # a score of .62
    (seen,), (kept,) = regions(2.0, 1), regions(0.5, 2)
    assert seen["score"] == pytest.approx(torch.tensor((0.05 * 0.5 + 2) / 1.05).sigmoid().item())
    assert kept["score"] > 0.7


@pytest.mark.parametrize("channels", [1, 3])
def test_it_depends_on_the_frames_in_reach_alone(channels):
    frames = np.random.default_rng(0).normal(0, 2, (40, channels, 1, 2)).astype(np.float32)
    whole, reach = smoothed(frames, 0.6), Smoother(0.6, UNetImageProcessor()).reach
    start = 40 - 5 - reach
    part = smoothed(frames[start:], 0.6, first=start)
    assert all(torch.equal(*pair) for pair in zip(whole[-5:], part[-5:], strict=True))
    assert any(not torch.equal(logits, torch.tensor(frame)) for logits, frame in zip(whole, frames, strict=True))


def test_of_several_classes_the_most_probable_is_held():
    results = smoothed([[[[0.0]], [[3.0]], [[-5.0]]], [[[0.0]], [[-0.4]], [[-5.0]]]], 0.05)
    assert results[1].argmax(dim=0).item() == 1
    assert smoothed([[[[0.0]], [[-0.4]], [[-5.0]]]], 0.05)[0].argmax(dim=0).item() == 0


def test_two_channels_are_their_difference():
    frames = np.random.default_rng(1).normal(0, 1, (6, 2, 1, 2)).astype(np.float32)
    pairs = zip(smoothed(frames), smoothed([frame[1:] - frame[:1] for frame in frames]), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("change", ["video", "size", "position"])
def test_another_video_and_another_size_start_anew(change):
    smoother = Smoother(0.6, UNetImageProcessor())
    smoother(torch.full((1, 1, 1, 2), 9.0), Place("clip", 0), IMAGE)
    place = Place("other" if change == "video" else "clip", 0 if change == "position" else 1)
    image = IMAGE.resize((4, 2)) if change == "size" else IMAGE
    logits = torch.full((1, 1, 1, 2), -1.0)
    assert torch.equal(smoother(logits, place, image), logits)


@pytest.mark.parametrize("smoothing", [0, -0.5, 0.96, float("nan")])
def test_a_weight_out_of_range(smoothing):
    with pytest.raises(ValueError, match="smoothing must be 0, which is none, or up to 0.95, got"):
        Smoother(smoothing, UNetImageProcessor())
