"""A named split of a source into train, validation and test, exactly reproducible.

A split is published ("official", "official-halved", "pranet": lists of stems in splits/), the source's own ("own"), or
drawn here from the sorted names by `split_seed` ("80/10/10", "half-validation", and "fold-1-of-5" to "fold-5-of-5",
whose test parts are every image once). What is drawn here keeps twins, byte-identical images and the frames of one
sequence (sequences.csv) on one side; a published list keeps its twins, and they are listed. Two lists have no
validation part: "clinicdb", whose test part is the last three of CVC-ClinicDB's 29 sequences, and "cvc-300", the 60
frames of CVC-ColonDB that the literature calls so.
"""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np

from hub_unets.training.data.files import first_few
from hub_unets.training.data.reading import file_digest
from hub_unets.training.data.rows import has_stems, stored_files, stored_paths
from hub_unets.training.data.sequences import sequences_of
from hub_unets.training.errors import UserError

SPLITS = Path(__file__).with_name("splits")
PARTS = "train", "validation", "test"
PUBLISHED = {  # the lists of training and of test stems
    "official": ("official_train", "official_val"),
    "official-halved": ("official_train", "official_val"),
    "pranet": ("pranet_train", "pranet_test"),
    "clinicdb": ("clinicdb_train", "clinicdb_test"),
    "cvc-300": ("cvc-300_train", "cvc-300_test"),
}
WITHOUT_VALIDATION = "clinicdb", "cvc-300"
WHOLE = {"clinicdb": "CVC-ClinicDB", "cvc-300": "CVC-ColonDB"}  # what a list is of; the others are Kvasir-SEG's
DRAWN = {"80/10/10": 0.1, "half-validation": 0.053}  # the share of validation, and of test
FOLD = re.compile(r"fold-(\d+)-of-(\d+)")
HELD_OUT = 0.1  # of a training part that is given, for validation
OTHER_SPLITS = f'use "own" (the source\'s own parts) or one of {", ".join(DRAWN)}'


@dataclasses.dataclass(frozen=True)
class Partition:
    """A split: the indices of each part's rows, sorted by name. Row i is called `names[i]`.

    `digests[i]` is the sha256 of its image file, `mask_digests[i]` that of its mask.
    `twins` are the test names that show the same frame or lesion as a name in train or validation.
    """

    name: str
    seed: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    names: tuple[str, ...] = dataclasses.field(repr=False)
    digests: tuple[str, ...] = dataclasses.field(repr=False)
    mask_digests: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    twins: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The number of rows in train, validation and test."""
        return {part: len(getattr(self, part)) for part in PARTS}

    @property
    def sha256(self) -> str:
        """The digest of the split: the sorted lines "part<tab>name"."""
        lines = sorted(f"{part}\t{name}\n" for part in PARTS for name in self.names_of(part))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def files_sha256(self) -> str:
        """The digest of the files' contents: the sorted lines "name<tab>image's sha256<tab>mask's sha256"."""
        lines = sorted("\t".join(row) + "\n" for row in zip(self.names, self.digests, self.mask_digests, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def names_of(self, part: str) -> list[str]:
        """The sorted names of train, validation or test."""
        return [self.names[index] for index in getattr(self, part)]


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What two parts share: the same stem, a byte-identical image, or a twin (test name, other name)."""

    stems: tuple[str, ...]
    identical: tuple[tuple[str, ...], ...]
    twins: tuple[tuple[str, str], ...]


def make_partition(
    source: datasets.DatasetDict, split: str, split_seed: int = 42
) -> tuple[datasets.Dataset, Partition]:
    """All rows of the source, one part after the other, and the split of them that `split` names; "all" is all test.

    Raises UserError for an unknown split, for one that the source can't serve (a published one without its stems, an
    own one without a test part), and where a stem or a file is in two parts.
    """
    fold = FOLD.fullmatch(split)
    if split not in (*PUBLISHED, *DRAWN, "own", "all") and not fold:
        known = ", ".join((*PUBLISHED, *DRAWN, "fold-1-of-5", "own", "all"))
        raise UserError(f"split must be one of {known}, got {split!r}")
    if split_seed < 0:
        raise UserError(f"split_seed must be 0 or more, got {split_seed}")
    rows = datasets.concatenate_datasets(list(source.values()))
    names, digests = tuple(rows["name"][:]), tuple(map(file_digest, stored_files(rows, "image")))
    origin = [part for part, part_rows in source.items() for _ in range(len(part_rows))]
    _refuse_repeated_names(names, origin)
    groups = _groups(names, digests, sequences_of(names, stored_paths(rows, "image")))
    rng = np.random.default_rng(split_seed)
    if split in PUBLISHED:
        parts = _published(split, names, groups, rng)
    elif fold:
        parts = _fold(*map(int, fold.groups()), groups, rng)
    elif split == "all":
        parts = [[], [], range(len(names))]
    elif split == "own":
        parts = _own(origin, groups, rng)
    else:
        parts = _drawn(split, groups, rng)
    parts = [tuple(sorted(part, key=names.__getitem__)) for part in parts]
    masks = tuple(map(file_digest, stored_files(rows, "annotation")))
    partition = Partition(split, split_seed, *parts, names=names, digests=digests, mask_digests=masks)
    leaked = leaks(rows, partition)
    _refuse_leaks(leaked, split)
    return rows, dataclasses.replace(partition, twins=tuple(sorted({test for test, _ in leaked.twins})))


def leaks(rows: datasets.Dataset, partition: Partition, digests: Iterable[str] | None = None) -> Leaks:
    """What leaks between the parts; `digests` are the images' sha256 in row order, else the partition's are taken."""
    digests = list(digests or partition.digests)
    names, by_name, by_digest = rows["name"][:], {}, {}
    for part in PARTS:
        for index in getattr(partition, part):
            by_name.setdefault(names[index], {}).setdefault(part, index)
            by_digest.setdefault(digests[index], {}).setdefault(part, names[index])
    twins = [pair for a, b in near_duplicates() for pair in ((a, b), (b, a))]
    test = set(partition.names_of("test"))
    learned = set(partition.names_of("train")) | set(partition.names_of("validation"))
    return Leaks(
        stems=tuple(sorted(name for name, parts in by_name.items() if len(parts) > 1)),
        identical=tuple(sorted(tuple(parts.values()) for parts in by_digest.values() if len(parts) > 1)),
        twins=tuple(sorted((a, b) for a, b in twins if a in test and b in learned)),
    )


def near_duplicates() -> list[tuple[str, str]]:
    """The known pairs of stems that show the same frame or lesion, Kvasir-SEG's."""
    with (SPLITS / "near_duplicates.csv").open(newline="") as file:
        return [(row["a"], row["b"]) for row in csv.DictReader(file)]


def published_names(name: str) -> list[str]:
    """The stems of the list splits/`name`.txt."""
    return (SPLITS / f"{name}.txt").read_text().split()


def _published(split: str, names: tuple[str, ...], groups: list[list[int]], rng: np.random.Generator) -> list[list]:
    train, test = map(published_names, PUBLISHED[split])
    _refuse_other_names(split, names, train + test)
    index_of = {name: index for index, name in enumerate(names)}
    train, test = [index_of[name] for name in train], [index_of[name] for name in test]
    if split in WITHOUT_VALIDATION:
        validation = []
    elif split == "official-halved":
        test, validation = _cut(_within(groups, test), [len(test) // 2], rng)
    else:
        train, validation = _cut(_within(groups, train), [round(HELD_OUT * len(train))], rng)
    return [train, validation, test]


def _own(origin: list[str], groups: list[list[int]], rng: np.random.Generator) -> list[list]:
    present = sorted(set(origin))
    if not {"train", "test"} <= set(present) <= set(PARTS):
        raise UserError(
            f'split "own" needs a train and a test part, and besides only validation; the source has '
            f"{', '.join(present) or 'no rows'}: use one of {', '.join((*DRAWN, *PUBLISHED))}"
        )
    train, validation, test = ([index for index, part in enumerate(origin) if part == name] for name in PARTS)
    if not validation:
        train, validation = _cut(_within(groups, train), [max(1, round(HELD_OUT * len(train)))], rng)
    return [train, validation, test]


def _drawn(split: str, groups: list[list[int]], rng: np.random.Generator) -> list[list]:
    size = max(1, round(DRAWN[split] * sum(map(len, groups))))
    train, test, validation = _cut(groups, [size, size], rng)
    return [train, validation, test]


def _fold(number: int, count: int, groups: list[list[int]], rng: np.random.Generator) -> list[list]:
    if not 1 <= number <= count or count < 2:
        raise UserError(f'split "fold-{number}-of-{count}" must be one of 2 or more folds, counted from 1')
    folds = [[] for _ in range(count)]
    for group in sorted((groups[number] for number in rng.permutation(len(groups))), key=len, reverse=True):
        min(folds, key=len).extend(group)
    test = folds.pop(number - 1)
    if not test:
        raise UserError(f"{len(groups)} images, or groups that stay together, are too few for {count} folds")
    remaining = _within(groups, sum(folds, []))
    size = max(round(HELD_OUT * sum(map(len, remaining))), min(map(len, remaining)))
    train, validation = _cut(remaining, [size], rng)
    return [train, validation, test]


def _cut(groups: list[list[int]], sizes: list[int], rng: np.random.Generator) -> list[list[int]]:
    """The rest and one list per size: whole groups in random order, each going where it still fits."""
    parts = [[] for _ in sizes]
    remainder = []
    for number in rng.permutation(len(groups)):
        fits = (part for part, size in zip(parts, sizes, strict=True) if len(part) + len(groups[number]) <= size)
        next(fits, remainder).extend(groups[number])
    if not all([remainder, *parts]):
        count = sum(map(len, groups))
        raise UserError(
            f"{count} images ({len(groups)} when twins and identical files count once) are too few for parts of "
            f"{', '.join(map(str, sizes))} and a rest to train on: add images, or give a source with its own parts"
        )
    return [remainder, *parts]


def _groups(names: tuple[str, ...], digests: tuple[str, ...], sequences: dict[str, str]) -> list[list[int]]:
    """The indices by what must stay together, in the order of the first name: most groups hold one image."""
    order = sorted(range(len(names)), key=names.__getitem__)
    index_of = {name: index for index, name in enumerate(names)}
    same_file = {digests[index]: index for index in reversed(order)}
    ties = [(same_file[digests[index]], index) for index in order]
    ties += [(index_of[a], index_of[b]) for a, b in near_duplicates() if a in index_of and b in index_of]
    first_of = {sequences[names[index]]: index for index in reversed(order)} if sequences else {}
    ties += [(first_of[sequences[names[index]]], index) for index in order if sequences]
    parents = list(range(len(names)))  # a forest: the rows of one tree are a group
    for a, b in ties:
        parents[_root(parents, b)] = _root(parents, a)
    groups = {}
    for index in order:
        groups.setdefault(_root(parents, index), []).append(index)
    return list(groups.values())


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]  # halves the way for the next time
        index = parents[index]
    return index


def _within(groups: list[list[int]], indices: list[int]) -> list[list[int]]:
    members = set(indices)
    restricted = ([index for index in group if index in members] for group in groups)
    return [group for group in restricted if group]


def _refuse_repeated_names(names: tuple[str, ...], origin: list[str]) -> None:
    parts_by_name = {}
    for name, part in zip(names, origin, strict=True):
        parts_by_name.setdefault(name, []).append(part)
    twice = [f"{name} ({' and '.join(parts)})" for name, parts in sorted(parts_by_name.items()) if len(parts) > 1]
    if twice:
        raise UserError(
            f"{len(twice)} stems are twice in the source: {first_few(twice)}: keep each image in one part, "
            "or rename files that only share their name"
        )


def _refuse_other_names(split: str, names: tuple[str, ...], listed: list[str]) -> None:
    if not has_stems(names):
        raise UserError(
            f'split "{split}" is a list of file stems and the source has none (only row numbers): {OTHER_SPLITS}'
        )
    missing, extra = sorted(set(listed) - set(names)), sorted(set(names) - set(listed))
    if missing or extra:
        details = f"{len(missing)} of its {len(listed)} stems are missing"
        details += f" ({first_few(missing)})" if missing else ""
        whole = WHOLE.get(split, "Kvasir-SEG")
        details += f", {len(extra)} images are in no list ({first_few(extra)})" if extra else ""
        raise UserError(
            f'split "{split}" does not fit the source: {details}: give the whole of {whole}, or {OTHER_SPLITS}'
        )


def _refuse_leaks(leaked: Leaks, split: str) -> None:
    if leaked.stems:
        raise UserError(f'split "{split}": stems in two parts: {first_few(leaked.stems)}: keep each in one part')
    if leaked.identical:
        pairs = first_few(" = ".join(names) for names in leaked.identical)
        raise UserError(
            f'split "{split}": {len(leaked.identical)} byte-identical images are in two parts: {pairs}: '
            f"take them out of one part, or draw the split anew with {', '.join(DRAWN)}"
        )
