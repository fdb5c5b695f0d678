"""The reliability table and ECE, by hand."""

import numpy as np
import pytest

from hub_unets.training.measure.reliability import TABLE_BINS, expected_calibration_error, reliability_table


def table_of(*images):
    """Each image's pixels as (probability, background, polyp)."""
    tables = np.zeros((len(images), 3, TABLE_BINS))
    for table, pixels in zip(tables, images, strict=True):
        for probability, background, polyp in pixels:
            index = int(probability * TABLE_BINS)
            table[:, index] += (background, polyp, probability * (background + polyp))
    return reliability_table(sum(tables))


def test_rows():
    table = table_of([(0.011, 90, 10), (0.041, 100, 0)], [(0.973, 1, 9)])
    assert [row["up_to"] for row in table] == pytest.approx(np.arange(1, TABLE_BINS + 1) / TABLE_BINS)
    assert [row["above"] for row in table] == pytest.approx(np.arange(TABLE_BINS) / TABLE_BINS)
    assert table[0] | {"probability": None} == {
        "above": 0, "up_to": 0.05, "pixels": 200, "polyp_pixels": 10, "probability": None
    }  # fmt: skip
    assert table[0]["probability"] == pytest.approx((0.011 + 0.041) / 2)
    assert (table[19]["pixels"], table[19]["polyp_pixels"]) == (10, 9)
    assert {row["probability"] for row in table[1:19]} == {None}


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        ([(0.251, 749, 251)], 0),
        ([(0.251, 500, 500)], 0.249),
        ([(0.251, 500, 500), (0.751, 1500, 1500)], 0.25 * 0.249 + 0.75 * 0.251),
        ([(0.021, 100, 0), (0.031, 0, 100)], abs(0.026 - 0.5)),  # one bin of the table
        ([(0.048, 100, 0), (0.052, 0, 100)], (0.048 + 0.948) / 2),  # two
    ],
)
def test_expected_calibration_error(pixels, error):
    assert expected_calibration_error(table_of(pixels)) == pytest.approx(error)


def test_pixels_are_pooled():
    assert expected_calibration_error(table_of([(0.5, 100, 0)], [(0.5, 0, 300)])) == pytest.approx(0.25)
