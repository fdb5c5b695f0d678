"""The reliability picture shows the table: a panel a part, a point a bin that holds pixels."""

import numpy as np
import pytest
from PIL import Image

from hub_unets.training.measure.reliability import TABLE_BINS, reliability_table
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.records.curves import _draw_curve, reliability
from hub_unets.training.records.drawing import BLUE
from tests.training.measure.made_models import PROCESSOR, box, constant_model, random_model, rows_of

ROWS = rows_of([box((20, 30), 12, 15), box((17, 16), 9, 9)])


@pytest.mark.parametrize("parts", [("test",), ("validation", "test")])
def test_a_panel_for_each_part(tmp_path, parts):
    scores = score(random_model(), PROCESSOR, ROWS, Task())
    reliability(dict.fromkeys(parts, scores), tmp_path / "reliability.png")
    picture = Image.open(tmp_path / "reliability.png")
    assert picture.width == 440 * len(parts)
    blue = (np.asarray(picture) == BLUE).all(axis=2)
    assert all(blue[:, 440 * number : 440 * (number + 1)].any() for number in range(len(parts)))


def test_no_picture_without_tables(tmp_path):
    model = constant_model(0.0, 0.0, 1.0, num_labels=3)
    scores = score(model, PROCESSOR, ROWS, Task.of_classes(model.config))
    reliability({"test": scores}, tmp_path / "reliability.png")
    assert not (tmp_path / "reliability.png").exists()


def test_the_points_are_the_bins():
    from matplotlib.figure import Figure

    pooled = np.zeros((3, TABLE_BINS))
    pooled[:, 0] = 30, 10, 40 * 0.028
    pooled[:, 15] = 1, 3, 4 * 0.753
    ax = Figure().subplots()
    _draw_curve(ax, reliability_table(pooled))
    (line,) = [line for line in ax.lines if line.get_label() == "observed"]
    assert line.get_xydata() == pytest.approx(np.array([[0.028, 0.25], [0.753, 0.75]]))
