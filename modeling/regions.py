"""Connected regions (8 neighbours) of a mask, found by the runs of its rows."""

from typing import NamedTuple

import numpy as np


class Regions(NamedTuple):
    """The runs of a mask's rows, from top to bottom: int64 arrays, one value a run.

    `regions` is each run's region, from 0 to `count` - 1; `lengths` are pixels; `rows` and `columns` are of its first.
    """

    regions: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    count: int

    def areas(self):
        """Pixels of each region, int64."""
        return np.bincount(self.regions, self.lengths, self.count).astype(np.int64)

    def boxes(self):
        """The box of each region, int64 count x 4: x, y, width, height."""
        if not self.count:
            return np.zeros((0, 4), np.int64)
        order = np.argsort(self.regions, kind="stable")  # runs of one region, from top to bottom
        first = np.flatnonzero(np.diff(self.regions[order], prepend=-1))
        last = np.append(first[1:], len(order)) - 1
        left = np.minimum.reduceat(self.columns[order], first)
        right = np.maximum.reduceat((self.columns + self.lengths)[order], first)
        top, bottom = self.rows[order[first]], self.rows[order[last]] + 1
        return np.stack([left, top, right - left, bottom - top], axis=1)


def connected_components(mask):
    """Number the connected regions of a boolean mask H x W: (int32 H x W from 1, count)."""
    regions = regions_of(mask)
    numbers = np.zeros(mask.shape, np.int32)
    numbers[mask] = np.repeat(regions.regions + 1, regions.lengths)
    return numbers, regions.count


def regions_of(mask):
    """The Regions of a boolean mask H x W.

    Each run hangs below the first run that it touches in the row above; where it touches further ones, their trees are
    joined by union-find.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), bool)  # so that no run goes over a row's end
    padded[:, 1:-1] = mask
    padded = padded.ravel()
    changes = np.flatnonzero(padded[1:] != padded[:-1])
    starts, ends = changes[::2], changes[1::2]  # ends exclusive
    # the runs of the row above that touch run i are first[i] .. last[i] - 1, diagonals included
    first = np.searchsorted(ends, starts - (width + 2), side="left")
    last = np.searchsorted(starts, ends - (width + 2), side="right")
    parents = _roots(np.where(last > first, first, np.arange(len(starts))))
    joined = parents.tolist()

    def root(run):
        while joined[run] != run:
            joined[run] = joined[joined[run]]
            run = joined[run]
        return run

    for run in np.flatnonzero(last - first > 1).tolist():
        for above in range(first[run] + 1, last[run]):
            low, high = sorted((root(run), root(above)))
            joined[high] = low
    roots, regions = np.unique(_roots(np.array(joined, np.int64)), return_inverse=True)
    return Regions(regions, ends - starts, starts // (width + 2), starts % (width + 2), len(roots))


def _roots(parents):
    """The root of each node of a forest of parent indices, halving every path until none is left."""
    while True:
        above = parents[parents]
        if np.array_equal(above, parents):
            return parents
        parents = above
