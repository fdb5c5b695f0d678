"""A value of each scored image, for any number of images: all but the last thousand lie in a temporary file."""

import itertools
import json
import tempfile
import weakref
from collections.abc import Sequence

import numpy as np

CHUNK = 1024  # rows that are kept in memory


class Column(Sequence):
    """A list that is only appended to, of numbers or of arrays of one shape; `np.asarray` gives all as one array.

    Args:
        pack: turns a row into such a number or array.
        unpack: turns a stored number or array back into the row.
    """

    def __init__(self, pack=np.asarray, unpack=lambda row: row):
        self.pack, self.unpack = pack, unpack
        self._last_rows, self._starts, self._file, self._read = [], [], None, (None, [])

    def append(self, row):
        self._last_rows.append(row)
        if len(self._last_rows) == CHUNK:
            self._store()

    def extend(self, rows):
        for row in rows:
            self.append(row)

    def __iadd__(self, rows):
        self.extend(rows)
        return self

    def __len__(self):
        return CHUNK * len(self._starts) + len(self._last_rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        chunk, row = divmod(range(len(self))[index], CHUNK)
        return self._rows(chunk)[row]

    def __iter__(self):
        return itertools.chain.from_iterable(self._rows(chunk) for chunk in range(len(self._starts) + 1))

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)

    def __array__(self, dtype=None, copy=None):
        first = self._packed(0)
        values = np.empty((len(self), *first.shape[1:]), first.dtype)
        for start in range(0, len(self), CHUNK):
            values[start : start + CHUNK] = self._packed(start // CHUNK)
        return values if dtype is None else values.astype(dtype, copy=False)

    def _store(self):
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the column
            weakref.finalize(self, self._file.close)
        self._starts.append(self._file.seek(0, 2))
        self._dump(self._last_rows, self._file)
        self._last_rows = []

    def _rows(self, chunk):
        """The rows of one chunk; the last that was read is kept, as rows are mostly read in order."""
        if chunk == len(self._starts):
            return self._last_rows
        if self._read[0] != chunk:
            self._file.seek(self._starts[chunk])
            self._read = chunk, self._load(self._file)
        return self._read[1]

    def _packed(self, chunk):
        """One chunk as an array, rows x the shape of each."""
        if chunk < len(self._starts):
            self._file.seek(self._starts[chunk])
            return np.load(self._file)
        return np.array([self.pack(row) for row in self._last_rows])

    def _dump(self, rows, file):
        np.save(file, np.array([self.pack(row) for row in rows]))

    def _load(self, file):
        return [self.unpack(row) for row in np.load(file)]


class Texts(Column):
    """The same of texts of any length."""

    def _dump(self, rows, file):
        file.write(json.dumps(rows).encode() + b"\n")

    def _load(self, file):
        return json.loads(file.readline())

    def __array__(self, dtype=None, copy=None):
        return np.array(list(self), dtype)
