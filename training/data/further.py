"""What is trained on besides the data: images and masks of another data set, and frames without a mask."""

from typing import NamedTuple

import datasets

from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import file_digest
from hub_unets.training.data.rows import stored_files
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError


class Further(NamedTuple):
    """Rows to train on, their images' sha256, and of another data set what results.json says of it."""

    rows: datasets.Dataset
    digests: list
    record: dict | None = None


def load_further(field, folder, partition, processor):
    """Frames without a mask; `field` is what names them in a recipe, `processor` what will read them.

    Raises:
        UserError: one of them is a validation or test image.
    """
    frames = load_frames(folder, processor)
    further = Further(frames, list(map(file_digest, stored_files(frames, "image"))))
    refuse_held_out(field, folder, further, partition)
    return further


def load_extra(data, split, split_seed, id2label, partition):
    """Images and masks of another data set: all but its test part; of split "all" every image.

    Raises:
        UserError: it can't be loaded or split so, or one of the images is a validation or test image.
    """
    rows, extra = make_partition(load_source(data, id2label=id2label), split, split_seed)
    indices = extra.test if split == "all" else sorted((*extra.train, *extra.validation))
    record = {"split": split, "images": len(indices), "sha256": extra.sha256}
    further = Further(rows.select(indices), [extra.digests[index] for index in indices], record)
    refuse_held_out("extra_data", data, further, partition)
    return further


def refuse_held_out(field, source, further, partition):
    """Raise UserError where an image to train on is one that the run is chosen or tested by."""
    held_out = {partition.digests[index] for index in (*partition.validation, *partition.test)}
    for name, digest in zip(further.rows["name"][:], further.digests, strict=True):
        if digest in held_out:
            raise UserError(f"{field}: {name} in {source} is a validation or test image of data: take it away.")
