"""What is trained on besides the data: images and masks of another data set, and frames without a mask."""

from typing import NamedTuple

import datasets

from hub_unets.training.data.digests import pixel_sha256
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import file_digest, header_size, read_image
from hub_unets.training.data.rows import stored_files
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError


class Further(NamedTuple):
    """Rows to train on, the sha256 of their images' and masks' files, and of another data set what results.json says.

    Frames without a mask have no digests of masks.
    """

    rows: datasets.Dataset
    digests: list
    mask_digests: list
    record: dict | None = None


def further_images(arguments, id2label, rows, partition, processor):
    """What a run with these RunArguments is trained on besides its data, as {field that names it: Further}.

    `partition` is of `rows`, the data; `id2label` and `processor` are the network's.

    Raises:
        UserError: as `load_further` and `load_extra`.
    """
    fields = [field for field in ("negatives", "unlabelled") if getattr(arguments, field)]
    if arguments.extra_split != "all" and not arguments.extra_data:
        raise UserError(f"extra_split={arguments.extra_split} is a split of extra_data, which is missing: name it.")
    further = {field: load_further(field, getattr(arguments, field), rows, partition, processor) for field in fields}
    if arguments.extra_data:
        extra = arguments.extra_data, arguments.extra_split, arguments.split_seed
        further["extra_data"] = load_extra(*extra, id2label, rows, partition, processor)
    return further


def load_further(field, folder, rows, partition, processor):
    """Frames without a mask; `field` is what names them in a recipe, `processor` what will read them.

    `partition` is of `rows`, the data.

    Raises:
        UserError: one of them is a validation or test image.
    """
    frames = load_frames(folder, processor)
    further = Further(frames, list(map(file_digest, stored_files(frames, "image"))), [])
    refuse_held_out(field, folder, further, rows, partition, processor)
    return further


def load_extra(data, split, split_seed, id2label, rows, partition, processor):
    """Images and masks of another data set: all but its test part; of split "all" every image.

    `partition` is of `rows`, the data.

    Raises:
        UserError: it can't be loaded or split so, or one of the images is a validation or test image.
    """
    extra_rows, extra = make_partition(load_source(data, id2label=id2label), split, split_seed)
    indices = extra.test if split == "all" else sorted((*extra.train, *extra.validation))
    record = {"split": split, "images": len(indices), "sha256": extra.sha256}
    digests = [[values[index] for index in indices] for values in (extra.digests, extra.mask_digests)]
    further = Further(extra_rows.select(indices), *digests, record)
    refuse_held_out("extra_data", data, further, rows, partition, processor)
    return further


def refuse_held_out(field, source, further, rows, partition, processor):
    """Raise UserError where an image to train on is one that the run is chosen or tested by, or has its pixels.

    So it is found in another format too. Only images of the same size are decoded.
    """
    indices = [*partition.validation, *partition.test]
    held_out = {partition.digests[index] for index in indices}
    names = further.rows["name"][:]
    for name, digest in zip(names, further.digests, strict=True):
        if digest in held_out:
            _refuse(field, source, name)
    of_size = {}
    for index, value in zip(indices, stored_files(rows.select(indices), "image"), strict=True):
        of_size.setdefault(header_size(value), []).append((partition.names[index], value))
    pixels_of_size = {}
    for name, value in zip(names, stored_files(further.rows, "image"), strict=True):
        size = header_size(value)
        if size not in of_size:
            continue
        if size not in pixels_of_size:
            pixels_of_size[size] = {pixel_sha256(read_image(*pair[::-1], processor)) for pair in of_size[size]}
        if pixel_sha256(read_image(value, name, processor)) in pixels_of_size[size]:
            _refuse(field, source, name)


def _refuse(field, source, name):
    raise UserError(f"{field}: {name} in {source} is a validation or test image of data: take it away.")
