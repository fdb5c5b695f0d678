"""Values of many images: a column is the list that was appended, and holds little of it in memory."""

import tracemalloc

import numpy as np
import pytest

from hub_unets.training.data.digests import PairDigests
from hub_unets.training.measure import columns
from hub_unets.training.measure.columns import Column, Texts
from hub_unets.training.measure.score import Scores

DIGESTS = PairDigests(*(f"{number:064x}" for number in (1, 2**255, 7, 16**63)))
ROWS = {
    "names": ["a", "b/ä\n\ud800", "", *"cdefgh"],
    "sizes": [(number, 30) for number in range(9)],
    "counts": [np.full((2, 4), number) for number in range(9)],
    "losses": [number / 7 for number in range(9)],
    "digests": [DIGESTS, DIGESTS._replace(mask="f" * 64)] * 4 + [DIGESTS],
    "boundaries": [(number / 3, 4.5) for number in range(9)],
    "crops": [None, 0, 7] * 3,
}


@pytest.mark.parametrize("field", ROWS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_a_column_is_the_list_that_was_appended(field, count, monkeypatch):
    monkeypatch.setattr(columns, "CHUNK", 3)
    column, rows = getattr(Scores(), field), ROWS[field][:count]
    for row in rows:
        column.append(row)
    assert len(column) == count and bool(column) == bool(rows)
    for number in (*range(count), *range(-count, 0)):
        assert np.array_equal(column[number], rows[number])
    assert all(map(np.array_equal, column, rows)) and all(map(np.array_equal, column[1:], rows[1:]))
    with pytest.raises(IndexError):
        column[count]


def test_equal_rows_are_equal(monkeypatch):
    monkeypatch.setattr(columns, "CHUNK", 2)
    column = Column(unpack=int)
    column += [1, 2, 3]
    assert column == [1, 2, 3] and column != [1, 2] and column != [1, 2, 4] and column != 3


def test_as_an_array(monkeypatch):
    monkeypatch.setattr(columns, "CHUNK", 4)
    rows = np.random.default_rng(0).integers(0, 9, (11, 2, 4))
    column, names = Column(), Texts()
    column.extend(rows[:6])
    assert np.array_equal(np.asarray(column), rows[:6])
    column.extend(rows[6:])  # after a read
    assert np.array_equal(np.asarray(column), rows) and np.asarray(column, float).dtype == float
    names.extend("abcdefgh")
    assert np.asarray(names).tolist() == list("abcdefgh")


def filled(count):
    scores = Scores()
    for number in range(count):
        scores.names.append(f"frame-{number:06d}")
        scores.digests.append(DIGESTS)
        scores.tables.append(np.full((3, 20), 0.5))
        scores.counts.append(np.array([[5, 1, 2, number]]))
    return scores


def test_memory_does_not_grow_with_the_images():
    kept = []
    for count in (2 * columns.CHUNK, 8 * columns.CHUNK):
        tracemalloc.start()
        scores = filled(count)
        assert sum(scores.tables)[0, 0] == count / 2 and np.asarray(scores.counts)[-1, 0, 3] == count - 1
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert kept[1] < kept[0] + 20_000  # a list of the same takes 900 bytes an image, 5 MB
