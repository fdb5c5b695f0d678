"""Every figure is a readable PNG with its colours where they belong, and every empty input says what is missing."""

import math

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.records import curves, drawing, pictures
from hub_unets.training.records.drawing import ERROR_COLOURS, GREEN, IGNORED_COLOUR, ORANGE, SKY, VERMILLION

SQUARE = np.s_[4:12, 4:12]  # the truth of the hand-made case
SHIFTED = np.s_[8:16, 4:12]  # its prediction


def mask(box=None, label=1, size=20):
    labels = np.zeros((size, size), int)
    if box is not None:
        labels[box] = label
    return labels


def case(truth, prediction, grey=90, name="case", dice=0.5):
    image = np.full((*truth.shape, 3), grey, np.uint8)
    return {"name": name, "image": image, "truth": truth, "prediction": prediction, "dice": dice}


def blend(kind, grey):
    """The overlay's colour for a kind of error over a grey of 0 to 255."""
    return [(grey + 2 * value) // 3 for value in ERROR_COLOURS[kind]]


def read(path):
    """The figure's pixels, uint8 H x W x 3, once it is known to be a PNG that is small and not blank."""
    with Image.open(path) as png:
        assert png.format == "PNG"
        pixels = np.asarray(png.convert("RGB"))
    assert path.stat().st_size < 1.5e6
    assert min(pixels.shape[:2]) >= 300 and max(pixels.shape[:2]) <= 2400
    assert (pixels[0] == 255).all() and pixels.std() > 5
    return pixels


def where(pixels, colour, tolerance=2):
    """Rows and columns, as fractions of the figure, of the pixels of that colour: float N x 2."""
    matches = np.abs(pixels.astype(int) - colour).max(-1) <= tolerance
    return np.argwhere(matches) / pixels.shape[:2]


def column(pixels, colour, number):
    """How many pixels of that colour lie in picture column `number` of a prediction grid, legend left out."""
    positions = where(pixels, colour)
    left = pictures.LABEL / (pictures.LABEL + 4 * pictures.CELL[0])
    inside = np.floor((positions[:, 1] - left) / (1 - left) * 4) == number
    return np.count_nonzero(inside & (positions[:, 0] < 0.85))


def train_log(epochs=5):
    return [
        {"loss": math.exp(-e), "learning_rate": 1e-3 * (1 - e / epochs), "epoch": float(e), "step": 10 * e}
        for e in range(1, epochs + 1)
    ]


def eval_log(dice):
    return [{"eval_loss": 1 - d, "eval_dice": d, "eval_iou": d / 2, "epoch": e} for e, d in enumerate(dice, 1)]


def texts(figure):
    return [label for ax in figure.axes for label in ax.get_legend_handles_labels()[1]]


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during a test, also written to their path."""
    saved, save = [], drawing.save_figure
    for module in (curves, pictures):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def test_error_overlay_has_the_exact_pixels():
    image = np.full((20, 20, 3), 90, np.uint8)
    overlay = pictures.error_overlay(image, mask(SQUARE), mask(SHIFTED))
    expected = np.full((20, 20, 3), 90)
    expected[4:8, 4:12] = blend("false negative", 90)
    expected[8:12, 4:12] = blend("true positive", 90)
    expected[12:16, 4:12] = blend("false positive", 90)
    assert overlay.dtype == np.uint8
    np.testing.assert_array_equal(overlay, expected)
    assert (image == 90).all()


def test_error_overlay_tells_wrong_classes_and_leaves_ignored_pixels_grey():
    truth = np.array([[1, 1, 1, 0, 0, 255, 255, 2]], np.uint8)
    prediction = np.array([[1, 2, 0, 2, 0, 0, 1, 2]], np.int64)
    overlay = pictures.error_overlay(np.zeros((1, 8, 3), np.uint8), truth, prediction)
    kinds = ["true positive", "wrong class", "false negative", "false positive", None, None, None, "true positive"]
    assert overlay[0].tolist() == [blend(kind, 0) if kind else [0, 0, 0] for kind in kinds]


def test_error_overlay_takes_the_colour_out_of_the_image():
    image = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    overlay = pictures.error_overlay(image, np.zeros((2, 2), bool), np.zeros((2, 2), bool))
    assert len(np.unique(overlay)) == 1 and 40 < overlay[0, 0, 0] < 200


def test_coloured_gives_each_class_its_colour():
    picture = pictures.coloured(np.array([[0, 1, 2, 3, 9, 255]], np.uint8))
    assert picture[0].tolist() == [[0, 0, 0], [*SKY], [*GREEN], [*ORANGE], [*SKY], [*IGNORED_COLOUR]]
    assert picture.dtype == np.uint8


def test_outlined_draws_the_edge_and_fills_a_quarter():
    image = np.full((20, 20, 3), 100, np.uint8)
    picture = pictures.outlined(image, mask(SQUARE))
    assert picture[4, 6].tolist() == picture[11, 11].tolist() == [*SKY]
    assert picture[8, 8].tolist() == [(300 + value) // 4 for value in SKY]
    assert (picture[:4] == 100).all() and (picture[12:] == 100).all() and (image == 100).all()


def test_training_curves_mark_the_first_best_epoch(tmp_path, drawn):
    repeated = {"eval_loss": 0.1, "eval_dice": 0.9, "epoch": 5}  # an evaluation of the best model after training
    log = [*train_log(), *eval_log([0.2, 0.5, 0.9, 0.9, 0.7]), {"train_loss": 0.3, "epoch": 5.0}, repeated]
    curves.training_curves(log, tmp_path / "runs" / "curves.png")
    read(tmp_path / "runs" / "curves.png")
    assert [ax.get_title() for ax in drawn[0].axes] == ["Loss", "Validation overlap", "Learning rate"]
    assert "best Dice 0.900, epoch 3" in texts(drawn[0])
    assert drawn[0].axes[1].lines[0].get_ydata().tolist() == [0.2, 0.5, 0.9, 0.9, 0.7]


def test_training_curves_without_evaluations(tmp_path, drawn):
    broken = [{"loss": math.nan, "learning_rate": 0.0, "epoch": 6.0}]
    curves.training_curves(train_log() + broken, tmp_path / "curves.png")
    pixels = read(tmp_path / "curves.png")
    assert [ax.get_title() for ax in drawn[0].axes] == ["Loss", "Learning rate"]
    assert texts(drawn[0]) == ["training"]
    assert len(where(pixels, VERMILLION)) == 0


@pytest.mark.parametrize("log", [train_log(1), eval_log([0.0]), train_log(1) + eval_log([0.3])])
def test_training_curves_of_a_single_entry(tmp_path, log):
    curves.training_curves(log, tmp_path / "curves.png")
    read(tmp_path / "curves.png")


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_training_curves_leave_a_gap_where_a_value_is_missing(tmp_path, drawn, missing):
    log = train_log(3) + eval_log([0.2, 0.9, 0.4])
    log[1] |= {"loss": missing}
    log[4] |= {"eval_loss": missing, "eval_dice": missing, "eval_iou": missing}
    curves.training_curves(log, tmp_path / "curves.png")
    read(tmp_path / "curves.png")
    assert drawn[0].axes[0].lines[0].get_xdata().tolist() == [1.0, 3.0]
    assert "best Dice 0.400, epoch 3" in texts(drawn[0])


@pytest.mark.parametrize("log", [[], [{"epoch": 1.0, "learning_rate": 0.1}], [{"loss": math.nan, "epoch": 1.0}]])
def test_training_curves_of_nothing(tmp_path, log):
    curves.training_curves(log, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 5, 12])
def test_first_batch_outlines_each_mask(tmp_path, drawn, count):
    images = np.full((count, 40, 40, 3), (150, 60, 50), np.uint8)
    masks = np.stack([mask(np.s_[8:32, 8:32], size=40)] * count)
    masks[0] = 0
    pictures.first_batch(images, masks, tmp_path / "batch.png")
    pixels = read(tmp_path / "batch.png")
    titles = [ax.get_title() for ax in drawn[0].axes if ax.get_title()]
    assert titles == ["mask 0.0 % of pixels"] + ["mask 36.0 % of pixels"] * (min(count, 8) - 1)
    assert (len(where(pixels, SKY)) > 0) == (count > 1)
    assert len(where(pixels, (150, 60, 50))) > 10000


def test_first_batch_names_what_is_wrong(tmp_path):
    image, path = np.zeros((8, 8, 3), np.uint8), tmp_path / "batch.png"
    with pytest.raises(ValueError, match="got 0 and 0"):
        pictures.first_batch([], [], path)
    with pytest.raises(ValueError, match="got 1 and 2"):
        pictures.first_batch([image], [mask()] * 2, path)
    with pytest.raises(ValueError, match="image 0: image must be uint8 H x W x 3, got float64"):
        pictures.first_batch([image / 255], [mask(size=8)], path)
    with pytest.raises(ValueError, match="image 0: mask must have its image's size"):
        pictures.first_batch([image], [mask(size=9)], path)


def test_threshold_curves_mark_the_best_and_the_chosen(tmp_path, drawn):
    curves.threshold_curves([0.7, 0.1, 0.5, 0.3], [0.6, 0.4, 0.8, 0.9], [0.9] * 4, [0.8] * 4, tmp_path / "t.png", 0.4)
    pixels = read(tmp_path / "t.png")
    assert texts(drawn[0])[3:] == ["best Dice 0.900 at 0.3", "chosen 0.4: Dice 0.850"]
    assert drawn[0].axes[0].lines[0].get_xdata().tolist() == [0.1, 0.3, 0.5, 0.7]
    assert len(where(pixels, VERMILLION)) > 100


@pytest.mark.parametrize(
    ("dice", "label"),
    [([0.4, None, 0.9], ["best Dice 0.900 at 0.5", "chosen 0.3: Dice 0.650"]), ([None] * 3, ["chosen 0.3"])],
)
def test_threshold_curves_with_missing_values(tmp_path, drawn, dice, label):
    curves.threshold_curves([0.1, 0.3, 0.5], dice, [0.9, math.nan, 0.9], [None] * 3, tmp_path / "t.png", 0.3)
    assert texts(drawn[0])[3:] == label


def test_threshold_curves_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="'thresholds': 0"):
        curves.threshold_curves([], [], [], [], tmp_path / "t.png", 0.5)
    with pytest.raises(ValueError, match="'recall': 1"):
        curves.threshold_curves([0.1, 0.2], [1, 1], [1, 1], [1], tmp_path / "t.png", 0.5)


def test_prediction_grid_colours_each_column(tmp_path):
    pictures.prediction_grid([case(mask(SQUARE), mask(SHIFTED))], tmp_path / "grid.png", "One case")
    pixels = read(tmp_path / "grid.png")
    assert [column(pixels, SKY, number) > 2000 for number in range(4)] == [False, True, True, False]
    assert column(pixels, (90, 90, 90), 0) > 30000
    for kind in ("true positive", "false positive", "false negative"):
        assert [column(pixels, blend(kind, 90), number) > 2000 for number in range(4)] == [False] * 3 + [True]
    truth, prediction = (where(pixels, SKY)[:, 0], where(pixels, blend("true positive", 90))[:, 0])
    assert truth.min() < prediction.min()  # the truth begins above its overlap with the prediction


def test_prediction_grid_names_its_colours(tmp_path, drawn):
    pictures.prediction_grid([case(mask(SQUARE), mask(SHIFTED))], tmp_path / "grid.png", "One class")
    two, ignored = mask(SQUARE, label=2), mask(np.s_[:2], label=255)
    pictures.prediction_grid([case(mask(SQUARE), two), case(ignored, mask())], tmp_path / "grid.png", "Two classes")
    names = [[text.get_text() for legend in figure.legends for text in legend.get_texts()] for figure in drawn]
    assert names[0] == ["true positive", "false positive", "false negative"]
    assert names[1] == [*ERROR_COLOURS, "class 1", "class 2", "ignored"]
    class_names = {0: "background", 1: "polyp", 2: "boundary"}
    pictures.prediction_grid([case(mask(SQUARE), two)], tmp_path / "named.png", "Two classes", class_names)
    labels = [text.get_text() for legend in drawn[-1].legends for text in legend.get_texts()]
    assert labels == [*ERROR_COLOURS, "polyp", "boundary"]
    pictures.prediction_grid([case(two, two)], tmp_path / "named.png", "One of two classes", class_names)
    labels = [text.get_text() for legend in drawn[-1].legends for text in legend.get_texts()]
    assert labels == [*names[0], "boundary"]
    pixels = read(tmp_path / "grid.png")
    assert (
        column(pixels, SKY, 1) > 2000 and column(pixels, GREEN, 2) > 2000 and column(pixels, IGNORED_COLOUR, 1) > 500
    )
    assert column(pixels, blend("wrong class", 90), 3) > 2000


def test_prediction_grid_says_where_a_mask_is_empty(tmp_path, drawn):
    cases = [case(mask(), mask()), case(mask(SQUARE), mask()), case(mask(), mask(SQUARE))]
    pictures.prediction_grid(cases, tmp_path / "grid.png", "Empty masks")
    pixels = read(tmp_path / "grid.png")
    assert [sum(text.get_text() == "empty" for text in ax.texts) for ax in drawn[0].axes] == [
        *(0, 1, 1, 0),
        *(0, 0, 1, 0),
        *(0, 1, 0, 0),
    ]
    assert (
        column(pixels, blend("false negative", 90), 3) > 2000 and column(pixels, blend("false positive", 90), 3) > 2000
    )
    assert len(where(pixels, blend("true positive", 90))) == 0


def test_prediction_grid_keeps_aspect_and_shrinks_large_images(tmp_path, drawn):
    shapes = [(1000, 300), (90, 900), (16, 16)]
    cases = [case(np.ones(shape, int), np.ones(shape, int), name="n" * 40) for shape in shapes]
    pictures.prediction_grid(cases, tmp_path / "grid.png", "Sizes")
    read(tmp_path / "grid.png")
    stored = [ax.images[0].get_array().shape[:2] for ax in drawn[0].axes[::4]]
    assert stored == [(240, 72), (24, 240), (16, 16)]
    drawn[0].canvas.draw()
    for ax, (height, width) in zip(drawn[0].axes[::4], shapes, strict=True):
        box = ax.get_window_extent()
        assert box.width / box.height == pytest.approx(width / height, rel=0.02)
    labels = [text.get_text() for text in drawn[0].texts]
    assert labels.count("nnnnnnnn…nnnnnnn\nDice 0.500") == 3


def test_many_rows_stay_within_a_screenful_of_pixels(tmp_path):
    pictures.prediction_grid([case(mask(SQUARE), mask(SHIFTED))] * 14, tmp_path / "grid.png", "Many")
    pixels = read(tmp_path / "grid.png")
    assert pixels.shape[1] < 900


def test_prediction_grid_names_what_is_wrong(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(ValueError, match="cases is empty"):
        pictures.prediction_grid([], path, "None")
    with pytest.raises(ValueError, match="scan-8: prediction holds 255"):
        pictures.prediction_grid([case(mask(), mask(SQUARE, label=255), name="scan-8")], path, "Labels")
    with pytest.raises(ValueError, match="scan-7: prediction must have its image's size"):
        pictures.prediction_grid([case(mask(), mask(size=10), name="scan-7")], path, "Sizes")


def test_the_same_data_gives_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        pictures.prediction_grid([case(mask(SQUARE), mask(SHIFTED))], tmp_path / name, "Same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_colours_differ_in_brightness_where_they_meet():
    brightness = {kind: np.dot(colour, (0.299, 0.587, 0.114)) for kind, colour in ERROR_COLOURS.items()}
    values = sorted(brightness[kind] for kind in ("true positive", "false positive", "false negative"))
    assert min(np.diff(values)) > 30  # of 255
    assert len(np.unique(drawing.CLASS_COLOURS, axis=0)) == len(drawing.CLASS_COLOURS)


def test_pick_cases_takes_the_middle_and_the_lowest():
    dice = [number / 100 for number in range(101)]
    names = [f"n{number}" for number in range(101)]
    typical, worst = pictures.pick_cases(dice[::-1], names[::-1])
    assert typical == ["n40", "n47", "n53", "n60"]
    assert worst == [f"n{number}" for number in range(10)]
    assert pictures.pick_cases(dice, names, typical=1, worst=0) == (["n50"], [])


def test_pick_cases_of_few_images_repeats_none():
    assert pictures.pick_cases([0.9, 0.1, 0.5], ["a", "b", "c"]) == (["b", "c", "a"], ["b", "c", "a"])
    assert pictures.pick_cases([0.5], ["a"]) == (["a"], ["a"])
    assert pictures.pick_cases([], []) == ([], [])
    for count in range(1, 40):
        typical, worst = pictures.pick_cases(np.linspace(0, 1, count), [f"n{i:02d}" for i in range(count)])
        assert (len(set(typical)), len(set(worst))) == (min(4, count), min(10, count))
        assert typical == sorted(typical)


def test_pick_cases_settles_ties_by_name_whatever_the_order():
    names = ["d", "a", "c", "b"]
    assert pictures.pick_cases([0.5] * 4, names, 2, 2) == pictures.pick_cases([0.5] * 4, names[::-1], 2, 2)
    assert pictures.pick_cases([0.5] * 4, names, 2, 2) == (["b", "c"], ["a", "b"])


def test_a_missing_dice_is_among_the_worst_and_has_a_dash(tmp_path):
    assert pictures.pick_cases([0.5, None, 0.0, math.nan], list("abcd"), 1, 3)[1] == ["b", "d", "c"]
    for dice in (None, math.nan):
        pictures.prediction_grid([case(mask(), mask(), dice=dice)], tmp_path / "grid.png", "A title")
        assert "–" in pictures._row_label({"name": "a", "dice": dice})


def test_pick_cases_wants_one_dice_a_name():
    with pytest.raises(ValueError, match="got 2 and 1"):
        pictures.pick_cases([0.1, 0.2], ["a"])


def test_leaderboard_opens_the_dots_that_are_really_behind(tmp_path, drawn):
    def row(name, group, low):
        dice = {"value": 0.8, "low": 0.7, "high": 0.9}
        difference = None if low is None else {"value": low + 0.1, "low": low, "high": low + 0.2, "real": low > 0}
        return {"name": name, "group": group, "validation_dice": 0.81, "dice": dice, "difference": difference}

    rows = [row("first", "x", None), row("behind", "x", 0.01), row("alike", "x", -0.1), row("other", "y", None)]
    curves.leaderboard(rows, tmp_path / "board.png", "A title")
    assert Image.open(tmp_path / "board.png").width > 400
    panels = drawn[-1].axes
    assert [panel.get_title(loc="left") for panel in panels] == ["x", "y"]
    labels = [[tick.get_text() for tick in panel.get_yticklabels()] for panel in panels]
    assert labels == [["first", "behind", "alike"], ["other"]]
    dots = [line.get_markerfacecolor() for line in panels[0].lines if line.get_marker() == "o"]
    assert [colour == "white" for colour in dots] == [False, True, False]


def test_leaderboard_of_missing_values(tmp_path):
    dice = {"value": None, "low": None, "high": math.nan}
    row = {"name": "a", "group": "x", "validation_dice": None, "dice": dice, "difference": None}
    curves.leaderboard([row], tmp_path / "board.png", "A title")
    assert Image.open(tmp_path / "board.png").width > 400
