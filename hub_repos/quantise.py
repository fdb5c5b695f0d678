"""Make a finished run's network in int8: `hub-unets quantise RUN DATA`.

RUN/model_int8.onnx gets the network, rounded for training images of the run's own split; then its masks of the
validation images are compared with RUN's. `hub-unets build` and `push` take the file along; FastSegmenter and the page
of `hub-unets browser --int8` run it.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers

from hub_unets.hub_repos.repository.int8 import INT8, OnnxNetwork, export_int8
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import read_image
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.measure.metrics import count_pixels, metrics_from_counts
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task
from hub_unets.training.records.results import read_results

IMAGES = 100  # training images that the network is rounded for


class Agreement(NamedTuple):
    """Of two networks' masks over images: Dice of either with the truth, of one with the other, and where it is least.

    Means over images; of several classes, over the classes too.
    """

    images: int
    plain: float
    int8: float
    between: float
    least: float
    name: str


def quantise(run, data, images=IMAGES, columns=(None, None)):
    """Write model_int8.onnx of a run.

    Args:
        run: its folder.
        data: the images and masks that it was trained on.
        images: how many training images the network is rounded for, taken evenly from all.
        columns: the image column and the mask column of `data`, where they can't be told.

    Returns:
        the Agreement of its masks with the run's on the validation images.

    Raises:
        UserError: `run` is no finished run, `data` has another split, or `images` is below 1.
    """
    if images < 1:
        raise UserError(f"--images must be 1 or more, got {images}.")
    model, processor = load_model(run)
    record = read_results(Path(run) / "results.json")["data"]
    rows, partition = make_partition(
        load_source(data, *columns, model.config.id2label), record["split"], record["split_seed"]
    )
    if partition.sha256 != record["sha256"]:
        raise UserError(f"{data} is not what {run} was trained on: its split {record['split']} has other images.")
    chosen = np.linspace(0, len(partition.train) - 1, min(images, len(partition.train))).astype(int)
    training = rows.select([partition.train[index] for index in chosen])
    content = export_int8(run, (read_image(row["image"], row["name"], processor) for row in training))
    (Path(run) / INT8).write_bytes(content)
    segments = Segmenter(model, processor), Segmenter(OnnxNetwork(content, model.config), processor)
    task = Task.of_run(model.config, record.get("boundary_width"))
    return compared(*segments, rows.select(partition.validation), task, processor)


def compared(plain, int8, rows, task, processor=None):
    """The Agreement of two Segmenters on rows, whose images `processor` reads as theirs does."""
    dices = []
    for row in rows:
        image, truth = read_image(row["image"], row["name"], processor), task.truth(row)
        masks = [segment([image])[0][0] for segment in (plain, int8)]
        found = sum(number * np.isin(masks[0], labels) for number, labels in enumerate(task.classes, start=1))
        dices.append([dice(masks[0], truth, task), dice(masks[1], truth, task), dice(masks[1], found, task)])
    worst = int(np.argmin(dices, axis=0)[2])
    return Agreement(len(rows), *np.mean(dices, axis=0), dices[worst][2], rows[worst]["name"])


def dice(mask, reference, task):
    return float(metrics_from_counts(count_pixels(mask, reference, task.classes))["dice"].mean())


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets quantise", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("data", metavar="DATA", help="the images and masks that it was trained on")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"training images to round for (default: {IMAGES})")
    parser.add_argument("--image_column", help="where DATA does not tell")
    parser.add_argument("--mask_column", help="where DATA does not tell")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    columns = arguments.image_column, arguments.mask_column
    found = quantise(arguments.run, arguments.data, arguments.images, columns)
    path = Path(arguments.run) / INT8
    print(f"Written: {path}, {path.stat().st_size / 1e6:.1f} MB.")
    print(
        f"{found.images} validation images: Dice {found.plain:.4f}, in int8 {found.int8:.4f}; the masks agree at a "
        f"mean Dice of {found.between:.4f}, at least {found.least:.4f} ({found.name})."
    )
    print(f"Next: hub-unets build {arguments.run} OUT")


if __name__ == "__main__":
    run_command(main)
