"""What the endoscope's view is worth at inference: `python -m hub_unets.benchmarks.view MODEL DATA [--images N]`.

The same images three times: as they are, with marks outside the view dropped (`drop_outside_view`), and cropped to the
view's box before the network sees them, which nothing else in the project does.
"""

import argparse

import numpy as np
from tqdm import tqdm

from hub_unets.modeling.regions import connected_components
from hub_unets.modeling.view import view_of
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import read_image
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.false_alarms import MIN_SIDE
from hub_unets.training.measure.metrics import count_pixels, mean_with_interval, metrics_from_counts
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task

WAYS = ("as they are", "dropped outside", "cropped to view")


def in_box(segment, image):
    """The mask of a PIL image, H x W, of which the network sees the box of its view alone."""
    left, top, right, bottom = box_of(view_of(np.asarray(image)))
    (inside,), _ = segment([image.crop((left, top, right, bottom))])
    mask = np.zeros((image.height, image.width), inside.dtype)
    mask[top:bottom, left:right] = inside
    return mask


def box_of(view):
    """(left, top, right, bottom) of the True pixels of a view, bool H x W."""
    rows, columns = np.flatnonzero(view.any(axis=1)), np.flatnonzero(view.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def false_regions(mask, truth):
    """How many connected regions of a mask H x W overlap no true polyp."""
    numbers, count = connected_components(mask > 0)
    return count - len(np.unique(numbers[(truth == 1) & (numbers > 0)]))


def measure(name, rows, task):
    """{way: (per-image Dice, false regions of each image, whether its polyp-free crop is marked)}, and a share.

    The share is of the images whose view is smaller than the frame.
    """
    model, processor = load_model(name, trust_remote_code=True)
    _, dropping = load_model(name, trust_remote_code=True, drop_outside_view=True)
    whole, inside = Segmenter(model, processor), Segmenter(model, dropping)
    ways = [
        lambda image: whole([image])[0][0],
        lambda image: inside([image])[0][0],
        lambda image: in_box(whole, image),
    ]
    figures, narrow = {way: ([], [], []) for way in WAYS}, []
    for row in tqdm(rows, unit="image"):
        image, truth = read_image(row["image"], row["name"]), task.truth(row)
        crop = largest_free_crop(image, truth, MIN_SIDE)
        narrow.append(not view_of(np.asarray(image)).all())
        for way, (dice, regions, alarms) in figures.items():
            segment = ways[WAYS.index(way)]
            mask = np.isin(segment(image), task.labels)
            dice.append(metrics_from_counts(count_pixels(mask, truth, ((1,),)))["dice"][0])
            regions.append(false_regions(mask, truth))
            alarms += [] if crop is None else [np.isin(segment(crop), task.labels).any()]
    return figures, np.mean(narrow)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m hub_unets.benchmarks.view", description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="all", help="a named split gives its validation part")
    parser.add_argument("--mask_labels", type=int)
    parser.add_argument("--images", type=int, help="so many, evenly spread; the default is all")
    arguments = parser.parse_args(argv)
    rows, partition = make_partition(load_source(arguments.data), arguments.split)
    indices = partition.validation or partition.test
    count = min(arguments.images or len(indices), len(indices))
    rows = rows.select([indices[len(indices) * number // count] for number in range(count)])
    config = load_model(arguments.model, trust_remote_code=True)[0].config
    figures, narrow = measure(arguments.model, rows, Task.of_polyps(config, mask_labels=arguments.mask_labels))
    print(f"{count} images, {narrow:.0%} with a view smaller than the frame")
    for way, (dice, regions, alarms) in figures.items():
        interval = "{value:.4f} ({low:.4f}-{high:.4f})".format(**mean_with_interval(dice))
        marked = f"{np.mean(alarms):.3f} of {len(alarms)} crops" if alarms else "no crops"
        print(
            f"{way:16} Dice {interval}   {sum(regions)} false regions in {np.count_nonzero(regions)} images   {marked}"
        )


if __name__ == "__main__":
    main()
