"""A screen shows the whole view and no polyp but the view's, and depends on its draws alone."""

import albumentations
import cv2
import numpy as np
import pytest

from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.screen import Screen, _box_of, _shape

POLYP = 200, 40, 40


@pytest.fixture
def frame():
    """Green mucosa with a black margin at the left; the polyp, a tenth of it, is red."""
    image = np.zeros((100, 120, 3), np.uint8)
    image[:, 20:] = 40, 160, 40
    mask = np.zeros((100, 120), np.uint8)
    mask[30:60, 50:80] = 1
    image[mask > 0] = POLYP
    return image, mask


def transformed(transform, image, mask, seed=0, **data):
    compose = albumentations.Compose([transform])
    compose.set_random_seed(seed)
    result = compose(image=image, mask=mask, **data)
    return result["image"], result["mask"]


def reddish(image):
    return (image[..., 0] > 120) & (image[..., 1] < 100)


BARE = {"second_picture": 0, "boxes": 0, "lines": 0, "p": 1}


@pytest.mark.parametrize("seed", range(6))
def test_the_view_without_its_margin_fills_the_drawn_part(frame, seed):
    image, mask = transformed(Screen(width=(0.5, 0.5), height=(0.8, 0.8), **BARE), *frame, seed)
    assert image.shape == (100, 120, 3) and mask.shape == (100, 120) and mask.dtype == np.uint8
    rows, columns = _box_of(image.max(axis=2) > 24)
    assert rows.stop - rows.start <= 80 and columns.stop - columns.start <= 60
    assert rows.stop - rows.start >= 75 and columns.stop - columns.start >= 55
    share = mask.mean() / (0.5 * 0.8)
    assert share == pytest.approx(900 / 10000, abs=0.01)  # the polyp's of the view, as before
    assert (reddish(image) == (mask > 0)).mean() > 0.99


def test_at_full_size_only_its_shape_changes_a_view(frame):
    image = np.ascontiguousarray(frame[0][:, 20:])
    mask = np.ascontiguousarray(frame[1][:, 20:])
    for seed in range(6):
        screen, labels = transformed(Screen(width=(1, 1), height=(1, 1), **BARE), image, mask, seed)
        view = screen.max(axis=2) > 24
        assert np.array_equal(screen[view], image[view]) and np.array_equal(labels[view], mask[view])
        assert not labels[~view].any() and view.mean() > 0.7


def test_shapes():
    shapes = [_shape(np.random.default_rng(seed), 40, 60) for seed in range(30)]
    for shape in shapes:
        assert shape[20].all() or shape[20].mean() > 0.9
        assert np.array_equal(shape, shape[::-1]) and np.array_equal(shape, shape[:, ::-1])
    corners = sum(bool(shape[0, 0]) for shape in shapes)
    assert 3 <= corners <= 20  # one in three is a rectangle
    assert min(shape.mean() for shape in shapes) > 0.75  # an ellipse: pi / 4


class TestFurniture:
    @pytest.mark.parametrize("seed", range(8))
    def test_a_second_picture_is_another_frame_and_its_polyp_background(self, frame, seed):
        image, mask = frame[0].copy(), np.zeros_like(frame[1])
        image[:, 20:] = 40, 160, 40
        frames = [(np.full_like(image, POLYP), np.ones_like(mask))]
        screen = Screen(width=(0.4, 0.4), height=(0.6, 0.6), second_picture=1, boxes=0, lines=0, p=1)
        image, labels = transformed(screen, image, mask, seed, frames=frames)
        assert reddish(image).mean() > 0.005
        assert not labels.any()

    def test_without_frames_it_is_the_frame_itself(self, frame):
        screen = Screen(width=(0.4, 0.4), height=(0.6, 0.6), second_picture=1, boxes=0, lines=0, p=1)
        image, mask = transformed(screen, *frame)
        repeated, labels = transformed(screen, *frame, frames=[frame])
        assert np.array_equal(image, repeated) and np.array_equal(mask, labels)
        assert cv2.connectedComponents(reddish(image).astype(np.uint8))[0] == 3  # the polyp twice, and the rest

    @pytest.mark.parametrize("seed", range(10))
    def test_what_a_box_or_picture_covers_is_no_polyp(self, seed):
        image = np.full((100, 100, 3), 120, np.uint8)
        polyp = np.ones((100, 100), np.uint8)
        screen = Screen(width=(1, 1), height=(1, 1), second_picture=1, boxes=4, lines=0, p=1)
        frames = [(np.full_like(image, 250), polyp)]
        image, labels = transformed(screen, image, polyp, seed, frames=frames)
        assert not labels[(image == 250).all(axis=2)].any()
        assert (image[labels > 0] == 120).all(axis=1).mean() > 0.97  # outlines are painted over the polyp

    def test_text_leaves_the_labels(self):
        image = np.full((100, 100, 3), 120, np.uint8)
        polyp = np.ones((100, 100), np.uint8)
        screen = Screen(width=(1, 1), height=(1, 1), second_picture=0, boxes=0, lines=8, p=1)
        written = [transformed(screen, image, polyp, seed) for seed in range(8)]
        assert any((image[labels > 0] != 120).any() for image, labels in written)
        assert all((image[labels == 0] != 120).any(axis=1).all() for image, labels in written)


def test_pure_function_of_seed_epoch_and_index(frame):
    spec = [{"Screen": {"p": 0.7}}]
    frames = [(np.full_like(frame[0], value), frame[1]) for value in (50, 100, 150)]
    samples = [Augmentation(spec, 1)(*frame, 0, index, frames) for index in range(8)]
    augmentation = Augmentation(spec, 1)
    for index in reversed(range(8)):
        assert all(map(np.array_equal, augmentation(*frame, 0, index, frames), samples[index]))
    assert len({image.tobytes() for image, _ in samples}) > 4


def test_arguments_are_not_changed(frame):
    before = [part.copy() for part in frame]
    transformed(Screen(p=1), *frame, frames=[frame])
    assert all(map(np.array_equal, before, frame))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": [0, 1]}, "width must be two shares in 0..1, the lower first, got"),
        ({"height": [0.9, 0.5]}, "height must be two shares"),
        ({"second_picture": 2}, "second_picture must lie in 0..1, .* got 2"),
        ({"lines": -1}, "must not be negative"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation([{"Screen": arguments}], 0)


def test_an_enlarged_view_is_smooth_and_not_blocks():
    ramp = np.repeat(np.linspace(60, 200, 40).astype(np.uint8)[None], 100, axis=0)
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, 30:70] = ramp[..., None]
    enlarged, _ = transformed(Screen(width=(1, 1), height=(1, 1), **BARE), image, np.zeros((100, 100), np.uint8))
    steps = np.diff(enlarged[50, :, 0].astype(int))
    assert (steps[10:90] != 0).mean() > 0.8  # 40 columns become 90: as blocks, half of the steps were 0
