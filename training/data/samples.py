"""From rows to tensors: decoded and resized once into an Arrow cache, so that an epoch costs augmentation only."""

import contextlib
import errno
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from hub_unets.training.data.reading import IGNORE, read_pair
from hub_unets.training.errors import UserError

NOT_WRITTEN = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
}
STRIDE = 32  # of the deepest map of most encoders
VERSION = "version 2"  # of how masks are read; a new one rebuilds every cache

_FEATURES = datasets.Features(
    {
        "name": datasets.Value("string"),
        "pixels": datasets.Value("binary"),  # uint8 H x W x 3, or float32 H x W x C, at the processor's size
        "labels": datasets.Value("binary"),  # uint8, H x W at the processor's size
        "native_labels": datasets.Value("binary"),  # PNG at the original size
    }
)


def cached_samples(rows, digests, processor, num_labels, cache_folder=None, boundary_width=None):
    """The rows decoded and resized, as a memory-mapped `datasets.Dataset` on disk.

    Args:
        rows: Dataset with name, image, annotation (encoded).
        digests: the images' sha256, in row order; part of the cache's key.
        processor: a UNetImageProcessor; all but its normalisation is used.
        num_labels: how masks are read; see `training.data.reading.read_labels`.
        cache_folder: default: a folder in the cache of `datasets`.
        boundary_width: as `num_labels`.

    Raises:
        UserError: a bad file, by its name.
        OSError: the cache can't be written.
    """
    folder = Path(cache_folder or Path(datasets.config.HF_DATASETS_CACHE) / "hub_unets")
    path = folder / f"{_cache_key(rows, digests, processor, num_labels, boundary_width)}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet_bars(path.exists()):
            return rows.map(
                _sample,
                fn_kwargs={"processor": processor, "num_labels": num_labels, "boundary_width": boundary_width},
                features=_FEATURES,
                remove_columns=rows.column_names,
                cache_file_name=str(path),
                new_fingerprint=path.stem[:64],
                writer_batch_size=50,
                desc="Decode and resize",
            )
    except OSError as error:
        if error.errno not in NOT_WRITTEN:  # of reading an image, say
            raise
        raise OSError(
            f"the cache {path} can't be written ({error}): make room, or set HF_DATASETS_CACHE to another folder."
        ) from error


def require_foreground(samples):
    """Raises UserError unless a pixel of some sample has a label that is neither background nor ignored."""
    if not any(set(sample["labels"]) - {0, IGNORE} for sample in samples.select_columns("labels")):
        raise UserError(
            f"none of the {len(samples)} training masks has a foreground pixel, so there is nothing to learn: look at "
            "the masks (check_data=True lists what they hold), or give training images that show a polyp"
        )


def _sample(row, processor, num_labels, boundary_width):
    image, labels = read_pair(row, num_labels, boundary_width, processor)
    native = io.BytesIO()
    Image.fromarray(labels).save(native, format="PNG", compress_level=1)
    return {
        "name": row["name"],
        "pixels": processor.resized(image).tobytes(),
        "labels": processor.resize_labels(labels).tobytes(),
        "native_labels": native.getvalue(),
    }


def without_labels(samples):
    """Cached samples with every pixel ignored, as of frames whose masks are not known."""
    return samples.map(_ignore, features=samples.features, desc="Leave labels out")


def _ignore(sample):
    return {"labels": bytes([IGNORE]) * len(sample["labels"])}


def _cache_key(rows, digests, processor, num_labels, boundary_width):
    fields = (VERSION, processor.size, processor.resample, num_labels, boundary_width)
    fields += () if processor.takes_rgb else (processor.num_channels, processor.intensity)
    hashed = hashlib.sha256(repr(fields).encode())
    for row, digest in zip(rows.select_columns(["name", "annotation"]), digests, strict=True):
        hashed.update(f"{row['name']}\t{digest}\t".encode())
        hashed.update(_mask_stamp(row["annotation"]))
    return hashed.hexdigest()


def _mask_stamp(value):
    if value.get("bytes") is not None:
        return hashlib.sha256(value["bytes"]).digest()
    return hashlib.sha256(Path(value["path"]).read_bytes()).digest()


@contextlib.contextmanager
def _quiet_bars(quiet):
    were_on = datasets.are_progress_bars_enabled() if hasattr(datasets, "are_progress_bars_enabled") else True
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet and were_on:
            datasets.enable_progress_bars()


class Frames(Sequence):
    """Cached samples as arrays: index to (uint8 H x W x 3 or float32 H x W x C in 0..1, uint8 H x W)."""

    def __init__(self, samples, processor):
        self.samples, self.processor = samples, processor

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return _arrays(self.samples[index], self.processor)


class TrainingSamples(Dataset):
    """Augmented samples: `(epoch, index)` to `pixel_values` float32 C x H x W and `labels` int64 H x W.

    Args:
        samples: from `cached_samples`.
        processor: mirrors and normalises after the augmentation.
        augmentation: an `Augmentation`.
        sides: in pixels, of the square samples of each draw of the sampler; later ones, or all, have the cache's size.
    """

    def __init__(self, samples, processor, augmentation, sides=()):
        self.frames, self.processor, self.augmentation = Frames(samples, processor), processor, augmentation
        self.sides = sides

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, key):
        draw, index = key
        pixels, labels = self.augmentation(*self.frames[index], draw, index, self.frames)
        if draw < len(self.sides):
            size = self.sides[draw], self.sides[draw]
            pixels = _shrunk(pixels, size)
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return _tensors(pixels, labels, self.processor)


def _shrunk(pixels, size):
    """Pixels H x W x C at (width, height); OpenCV takes four channels at most, and leaves out a dimension of 1."""
    if pixels.shape[-1] == 3:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    channels = (np.ascontiguousarray(channel) for channel in np.moveaxis(pixels, -1, 0))
    return np.stack([cv2.resize(channel, size, interpolation=cv2.INTER_AREA) for channel in channels], axis=-1)


def growing_sides(first, last, epochs):
    """The side of the training samples in each epoch: even steps from `first` to `last` in three quarters of them.

    The last epoch's is `last`.

    Progressive learning (Tan & Le 2021, arXiv:2104.00298, section 4). Sides between the two are multiples of 32.
    """
    if epochs < 2:
        raise UserError("first_train_size needs num_train_epochs of 2 or more: samples grow over them; leave it out.")
    growth = min(epochs - 1, math.ceil(epochs * 3 / 4))
    sides = [first + (last - first) * epoch / growth for epoch in range(1, growth)]
    return [first, *(min(last, max(first, round(side / STRIDE) * STRIDE)) for side in sides)]


class EvaluationSamples(Dataset):
    """Samples as they are: `pixel_values`, `labels`, the mask at the original size and the row's number."""

    def __init__(self, samples, processor):
        self.samples, self.processor = samples, processor

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        native = np.array(Image.open(io.BytesIO(sample["native_labels"])))
        return {**_tensors(*_arrays(sample, self.processor), self.processor), "native": native, "row": index}


def collate(items):
    """A batch: tensors stacked; masks at the original size, which differ, stay a list of arrays."""
    batch = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "labels")}
    if "native" in items[0]:
        batch["native"] = [item["native"] for item in items]
        batch["row"] = torch.tensor([item["row"] for item in items])
    return batch


class EpochSampler(Sampler):
    """Keys (draw, index) in an order that depends on seed and epoch alone.

    An epoch shows each of `count` images `copies` times; no draw, epoch x copies + copy, comes twice, so each copy is
    augmented anew.
    """

    def __init__(self, count, seed, copies=1):
        self.count, self.seed, self.copies, self.epoch = count, seed, copies, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count * self.copies

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self))
        first = self.epoch * self.copies
        return iter([(first + int(number) // self.count, int(number) % self.count) for number in order])


def _arrays(sample, processor):
    shape = processor.size["height"], processor.size["width"]
    pixels = np.frombuffer(sample["pixels"], np.uint8 if processor.takes_rgb else np.float32).reshape(*shape, -1)
    return pixels, np.frombuffer(sample["labels"], np.uint8).reshape(shape)


def _tensors(pixels, labels, processor):
    return {
        "pixel_values": torch.from_numpy(processor.normalize(pixels[None])[0]),
        "labels": torch.from_numpy(processor.mirror(labels).astype(np.int64)),
    }
