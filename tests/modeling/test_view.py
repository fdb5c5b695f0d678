"""The view is the largest bright region's hull; marks wholly outside it go, and none that touches it."""

import numpy as np
import pytest
import torch

from hub_unets.modeling.view import _hull, view_of, without_marks_outside


@pytest.fixture
def screen():
    """A view with a cut corner and a dark lumen, and a second picture beside it, on nearly black."""
    image = np.full((100, 160, 3), 8, np.uint8)
    image[10:90, 60:150] = 150, 60, 50
    image[40:60, 90:110] = 5  # the lumen
    for row in range(10, 30):  # the upper left corner, cut
        image[row, 60 : 60 + 30 - row] = 8
    image[70:90, 10:35] = 120, 60, 60
    return image


class TestViewOf:
    def test_the_lumen_is_in_it_and_margins_and_the_second_picture_are_not(self, screen):
        view = view_of(screen)
        assert view.shape == (100, 160) and view.dtype == bool
        assert view[30:90, 60:150].all()
        assert not view[:, :55].any() and not view[:5].any() and not view[:12, :66].any()

    @pytest.mark.parametrize("factor", [1, 3, 8])
    def test_at_any_size_it_keeps_every_bright_pixel_of_the_view(self, screen, factor):
        large = screen.repeat(factor, 0).repeat(factor, 1)
        view = view_of(large)
        bright = large.max(axis=2) > 24
        bright[:, : 40 * factor] = False
        assert view[bright].all()
        assert view.mean() < 1.25 * (80 * 90) / (100 * 160)

    @pytest.mark.parametrize("level", [0, 255])
    def test_a_frame_without_a_margin_or_all_black_is_all_view(self, level):
        assert view_of(np.full((40, 60, 3), level, np.uint8)).all()

    def test_small_pictures_alone_are_no_view(self):
        image = np.zeros((100, 100, 3), np.uint8)
        image[:25, :25] = image[60:80, 60:80] = 200  # 6 % and 4 % of the frame
        assert view_of(image).all()

    def test_lines_of_text_do_not_join_the_second_picture_to_the_view(self, screen):
        screen[75, 20:100] = 255
        assert not view_of(screen)[70:90, 10:35].any()

    def test_one_pixel(self):
        assert view_of(np.full((1, 1, 3), 200, np.uint8)).tolist() == [[True]]


def test_hull_by_hand():
    region = np.array([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    # from (1, 1) to (3, 3) the right side is the line 1, 2, 3
    expected = [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert _hull(region, 0).astype(int).tolist() == expected
    assert _hull(region, 1)[:, :3].all() and not _hull(region, 1)[0, 3:].any()


class TestWithoutMarksOutside:
    def test_only_marks_wholly_outside_go(self):
        view = np.zeros((6, 8), bool)
        view[:, 4:] = True
        mask = torch.zeros(6, 8, dtype=torch.int64)
        mask[0, 0:2] = 1  # outside
        mask[2, 1:5] = 1  # reaches into the view
        mask[4, 5:7] = 2  # inside
        mask[5, 0] = 2  # outside
        mask[3, 0] = 1  # touches the second by a corner
        cleaned = without_marks_outside(mask, view)
        expected = mask.clone()
        expected[0, 0:2] = 0
        expected[5, 0] = 0
        assert torch.equal(cleaned, expected) and cleaned.dtype == torch.int64
        assert mask[0, 0] == 1  # the argument is left as it is

    def test_nothing_to_do(self):
        mask = torch.ones(3, 3, dtype=torch.int64)
        assert torch.equal(without_marks_outside(mask, np.ones((3, 3), bool)), mask)
        empty = torch.zeros(3, 3, dtype=torch.int64)
        assert torch.equal(without_marks_outside(empty, np.zeros((3, 3), bool)), empty)

    def test_the_second_picture_s_mark_goes_and_the_view_s_stays(self, screen):
        mask = torch.zeros(100, 160, dtype=torch.int64)
        mask[75:85, 15:25] = 1
        mask[45:55, 95:105] = 1  # in the lumen
        cleaned = without_marks_outside(mask, view_of(screen))
        assert cleaned.sum() == 100 and cleaned[45:55, 95:105].all()
