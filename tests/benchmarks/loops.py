"""The training loop with our loader and the plain one, the loaders alone, imports, and memory against images."""

import contextlib
import gc
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import albumentations
import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hub_unets.benchmarks.networks import our_network
from hub_unets.benchmarks.timing import anonymous_mb, compared, interleaved, peak_mb
from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.partition import leaks, make_partition
from hub_unets.training.data.phantoms import phantom_dataset
from hub_unets.training.data.reading import file_digest
from hub_unets.training.data.samples import EpochSampler, TrainingSamples, cached_samples, collate
from hub_unets.training.data.sources import load_source
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.fit.precision import depthwise_in_float32
from hub_unets.training.measure.columns import Column
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.records.results import write_tables
from hub_unets.training.settings.recipes import RECIPES

OURS, PLAIN = "ours", "plain"
RECIPE = RECIPES / "unet_mobilenetv2.yaml"
STARTS = {
    "hub-unets --help": "from hub_unets.hub_repos import cli; cli.main(['--help'])",
    "import torch": "import torch",
    "import transformers and timm": "import transformers, timm; transformers.PreTrainedModel",
    "import our published code": "import hub_unets.modeling.modeling_unet, hub_unets.modeling.image_processing_unet",
    "hub-unets predict of one image": (
        "import sys; from hub_unets.hub_repos import cli; cli.main(['predict', '.', 'image.png', sys.argv[1]])"
    ),
}


class PlainSamples(Dataset):
    """A dataset as tutorials write it: decode, resize and augment each image in each epoch."""

    def __init__(self, rows, augmentation, size):
        self.rows = rows
        transforms = [
            getattr(albumentations, name)(**options) for entry in augmentation for name, options in entry.items()
        ]
        normalize = albumentations.Normalize(mean=[0.5] * 3, std=[0.5] * 3)
        self.transform = albumentations.Compose([albumentations.Resize(size, size), *transforms, normalize])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image, mask = (Image.open(stored(self.rows[index][column])) for column in ("image", "annotation"))
        labels = (np.array(mask.convert("L")) > 127).astype(np.uint8)
        sample = self.transform(image=np.array(image.convert("RGB")), mask=labels)
        return {
            "pixel_values": torch.from_numpy(sample["image"].transpose(2, 0, 1)),
            "labels": torch.from_numpy(sample["mask"].astype(np.int64)),
        }


def stored(value):
    """A file that PIL opens, of a column's {"bytes", "path"}."""
    return value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])


def loaders(rows, size, batch_size, cache_folder, workers=0):
    """Endless batches of both ways, each from so many worker processes: {name: iterator}."""
    augmentation = yaml.safe_load(RECIPE.read_text())["augmentation"]
    processor = UNetImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    digests = [file_digest(row["image"]) for row in rows]
    samples = TrainingSamples(
        cached_samples(rows, digests, processor, 2, cache_folder), processor, Augmentation(augmentation, 0)
    )
    options = {"batch_size": batch_size, "drop_last": True, "collate_fn": collate}
    options |= {"num_workers": workers, "persistent_workers": workers > 0}
    cached_loader = DataLoader(samples, sampler=EpochSampler(len(samples), 0), **options)
    plain_loader = DataLoader(PlainSamples(rows, augmentation, size), shuffle=True, **options)
    return {OURS: endless(cached_loader), PLAIN: endless(plain_loader)}


def endless(loader):
    return itertools.chain.from_iterable(itertools.repeat(loader))


def measure(rows, backbone, size, rounds, batch_size=8):
    """Images a second of both loaders and of both loops; the same network, batch size, losses and augmentation."""
    with tempfile.TemporaryDirectory() as folder:
        batches = loaders(rows, size, batch_size, folder)
        calls = {name: partial(next, iterator) for name, iterator in batches.items()}
        loading = rates(interleaved(calls, rounds, 2, {PLAIN}), batch_size)
        steps = {
            OURS: partial(step, *prepared(backbone, True), True),
            PLAIN: partial(step, *prepared(backbone, False), False),
        }
        calls = {name: partial(lambda name: steps[name](next(batches[name])), name) for name in steps}
        training = rates(interleaved(calls, rounds, 1, {PLAIN}), batch_size)
    return {"size": size, "batch_size": batch_size, "loader": loading, "loop": training}


def rates(seconds, batch_size):
    """The result of `compared`, with images a second."""
    return {
        name: {**times, "images_per_second": round(1000 / times["ms"], 1)}
        for name, times in compared(seconds, PLAIN, batch_size).items()
    }


def prepared(backbone, as_trainer, device="cpu"):
    """(network in training mode, its optimiser); `as_trainer` sets it up as `UNetTrainer` does."""
    network = our_network("unet", backbone).train().to(device)
    if as_trainer:
        network.to(memory_format=torch.channels_last)
        depthwise_in_float32(network)
    return network, torch.optim.AdamW(network.parameters(), lr=1e-3, fused=as_trainer or None)  # Trainer's default


def step(network, optimizer, bf16_and_channels_last, batch):
    """One optimiser step on a batch."""
    device = network.device
    pixels, labels = (batch[name].to(device, non_blocking=True) for name in ("pixel_values", "labels"))
    if bf16_and_channels_last:
        pixels = pixels.to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16) if bf16_and_channels_last else contextlib.nullcontext():
        logits = network(pixels).logits
    loss = WeightedSum({"bce": 1, "dice": 1})(logits, labels).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def start_seconds(rounds):
    """Median processor seconds of whole processes, each in every round; waiting for a busy machine is not counted."""
    seconds = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        UNetForSemanticSegmentation.save_pretrained(our_network("unet", "mobilenetv2_100"), folder)
        UNetImageProcessor(size=256).save_pretrained(folder)
        Image.open(stored(phantom_dataset(1, size=512)[0]["image"])).save(f"{folder}/image.png")
        for number in range(1 + rounds):  # the first one fills the system's cache of files
            for name, code in STARTS.items():
                before = os.times()
                subprocess.run([sys.executable, "-c", code, str(number)], cwd=folder, check=True, capture_output=True)
                after = os.times()
                spent = after.children_user + after.children_system - before.children_user - before.children_system
                seconds[name] += [spent] if number else []
    return {name: round(statistics.median(times), 3) for name, times in seconds.items()}


def data_seconds(counts, size=64):
    """Processor seconds of each step before a training, of folders of pairs; files are repeated by links."""
    results = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            linked_pairs(Path(folder), count, size)
            clock = [time.process_time()]
            source = load_source(folder)
            clock.append(time.process_time())
            rows, partition = make_partition(source, "80/10/10")
            clock.append(time.process_time())
            leaks(rows, partition)
            clock.append(time.process_time())
        spent = dict(zip(("load", "split", "leaks"), np.diff(clock).round(2).tolist(), strict=True))
        results.append({"rows": count, **spent})
    return results


def linked_pairs(folder, count, size, frames=16):
    """A folder with `count` images and masks, all of them links to a few files."""
    for column, name in (("image", "images"), ("annotation", "masks")):
        (folder / name).mkdir()
        files = [folder / f"{name}-{number}.png" for number in range(frames)]
        for file, row in zip(files, phantom_dataset(frames, size=size), strict=True):
            file.write_bytes(stored(row[column]).read())
        for number in range(count):
            os.link(files[number % frames], folder / name / f"{number:06d}.png")
        for file in files:
            file.unlink()


def loader_memory(rows, counts, size=64):
    """Megabytes, without files' pages, that an epoch adds for each count of cached images; rows are repeated."""
    results = []
    processor = UNetImageProcessor(size=size)
    for count in counts:
        repeated = rows.select([number % len(rows) for number in range(count)])
        digests = [str(number) for number in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            samples = TrainingSamples(
                cached_samples(repeated, digests, processor, 2, folder), processor, Augmentation([], 0)
            )
            del repeated, digests
            gc.collect()
            start, peak = anonymous_mb(), 0.0
            for number, _ in enumerate(DataLoader(samples, 8, sampler=EpochSampler(count, 0), collate_fn=collate)):
                peak = max(peak, anonymous_mb()) if number % 20 == 0 else peak
            results.append({"images": count, "added_mb": round(peak - start, 1)})
    return results


def evaluation_memory(counts, size=64, most=1000):
    """Peak megabytes of scoring each count of small frames, with the summary and the tables that are written.

    Frames are repeated. What is beyond `most` is not scored: the scores of those before come again, and are kept,
    summarised and written as if it were.
    """
    network = UNetForSemanticSegmentation(UNetConfig(base_channels=4, depth=2)).eval()
    processor = UNetImageProcessor(size=size)
    frames = phantom_dataset(16, size=size)
    results = []
    for count in [len(frames), *counts]:  # the first one warms up
        rows = frames.select([number % len(frames) for number in range(min(count, most))])
        score_rows = partial(score, network, processor, rows, Task(), crops=True)
        added = peak_mb(lambda score_rows=score_rows, count=count: keep(score_rows(), count))
        results.append({"images": count, "added_mb": added})
    return results[1:]


def keep(scores, count):
    """What an evaluation of `count` images does once they are scored; the scores given are repeated until then."""
    columns = [column for column in vars(scores).values() if isinstance(column, Column) and column]
    scored = len(scores.names)
    for number in range(scored, count):
        for column in columns:
            column.append(column[number % scored])
    scores.summary()
    with tempfile.TemporaryDirectory() as folder:
        write_tables(folder, {"test": scores})
