"""The check before any training: are the pairs sound, what do the masks hold, does the split leak?

`check` reads every pair once and never stops at a bad one; `format_check` writes the result as text.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from hub_unets.training.data.files import first_few
from hub_unets.training.data.partition import Partition, leaks
from hub_unets.training.data.reading import labels_of, read_image, read_mask, require_same_size
from hub_unets.training.errors import UserError

QUANTILES = {"5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
SMALLEST_POLYP = 0.0005  # of the image: what is smaller is a speck of the annotation or of its compression
WHITE = 255


class Pair(NamedTuple):
    """Width and height in pixels, the polyps' share of the image, and how many polyps there are."""

    width: int
    height: int
    area: float
    polyps: int


def check(
    rows: datasets.Dataset,
    partition: Partition,
    num_labels: int = 2,
    boundary_width: int | None = None,
    processor: object = None,
) -> dict:
    """Reads every pair and reports what was found, as plain numbers and names.

    Keys: pairs, bad (name and reason each), sizes (width and height in pixels: min, median, max), mask_values,
    empty_masks (names), polyp_area (quantiles of the share of the image, 0 where empty), several_polyps (names),
    split, leaks. What a bad pair holds is not counted.
    """
    histogram = np.zeros(WHITE + 1, np.int64)
    bad, empty, several = [], [], []
    widths, heights, areas = array("I"), array("I"), array("d")
    for row in tqdm(rows, desc="checking pairs", disable=None):
        try:
            pair = _measure(row, num_labels, boundary_width, processor, histogram)
        except (UserError, OSError) as error:
            bad.append({"name": row["name"], "reason": str(error)})
            continue
        for values, value in (widths, pair.width), (heights, pair.height), (areas, pair.area):
            values.append(value)
        empty += [row["name"]] if pair.area == 0 else []
        several += [row["name"]] if pair.polyps > 1 else []
    return {
        "pairs": len(rows),
        "bad": bad,
        "sizes": {"width": _spread(widths), "height": _spread(heights)},
        "mask_values": _mask_values(histogram),
        "empty_masks": empty,
        "polyp_area": _quantiles(areas),
        "several_polyps": several,
        "split": _split(partition),
        "leaks": _leaks(rows, partition),
    }


def format_check(report: dict) -> str:
    """The report of `check` in lines for a person."""
    values, split, leaked = report["mask_values"], report["split"], report["leaks"]
    sizes = [
        f"{side} {' / '.join(f'{number:g}' for number in bounds.values())}" for side, bounds in report["sizes"].items()
    ]
    area = ", ".join(f"{quantile} {share:.1%}" for quantile, share in report["polyp_area"].items())
    pixels = f"0 {values['zero']:.1%}, 255 {values['white']:.1%}, between {values['between']:.1%} of the pixels"
    lines = [
        f"pairs           {report['pairs']}, of them bad: {len(report['bad'])}",
        f"sizes           {', '.join(sizes)} (min / median / max, pixels)",
        f"mask values     {len(values['distinct'])} distinct ({_ranges(values['distinct'])}); {pixels}",
        f"empty masks     {_counted(report['empty_masks'])}",
        f"polyp area      {area or 'no sound pair'}",
        f"several polyps  {_counted(report['several_polyps'])}",
        f"split           {split['name']} (split_seed {split['seed']}): "
        + ", ".join(f"{part} {size}" for part, size in split["sizes"].items()),
        f"split sha256    {split['sha256']}",
        f"stems in two parts   {_counted(leaked['stems'])}",
        f"identical images     {_counted([' = '.join(names) for names in leaked['identical']])}",
        f"test images with a twin in train or validation   {_counted(split['twins'])}",
    ]
    return "\n".join(lines + [f"BAD  {pair['reason']}" for pair in report["bad"]])


def print_check(*arguments: object, **options: object) -> dict:
    """`check`, printed; returns the report."""
    report = check(*arguments, **options)
    print(format_check(report))
    return report


def _measure(row: dict, num_labels: int, boundary_width: int | None, processor: object, histogram: np.ndarray) -> Pair:
    """What is measured of one pair; adds its mask's values to `histogram`."""
    image, mask = read_image(row["image"], row["name"], processor), read_mask(row["annotation"], row["name"])
    labels = labels_of(mask, row["name"], num_labels, boundary_width)
    require_same_size(image, labels, row["name"])
    histogram += np.bincount(mask.values.astype(np.uint8).ravel(), minlength=WHITE + 1)
    polyp = (labels > 0) & (labels < WHITE)
    return Pair(labels.shape[1], labels.shape[0], float(polyp.mean()), _count_polyps(polyp))


def _count_polyps(polyp: np.ndarray) -> int:
    """The number of 8-connected regions of at least SMALLEST_POLYP of the image in a boolean H x W mask."""
    regions, _ = ndimage.label(polyp, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())[1:]
    return int((sizes >= SMALLEST_POLYP * polyp.size).sum())


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _quantiles(areas: Sequence[float]) -> dict[str, float]:
    return {name: float(np.quantile(areas, share)) for name, share in QUANTILES.items()} if areas else {}


def _mask_values(histogram: np.ndarray) -> dict:
    zero, white = (float(histogram[value] / max(1, histogram.sum())) for value in (0, WHITE))
    between = float(histogram[1:WHITE].sum() / max(1, histogram.sum()))
    return {"distinct": np.flatnonzero(histogram).tolist(), "zero": zero, "white": white, "between": between}


def _split(partition: Partition) -> dict:
    return {
        "name": partition.name,
        "seed": partition.seed,
        "sizes": partition.sizes,
        "sha256": partition.sha256,
        "twins": list(partition.twins),
    }


def _leaks(rows: datasets.Dataset, partition: Partition) -> dict:
    leaked = leaks(rows, partition)
    return {
        "stems": list(leaked.stems),
        "identical": [list(names) for names in leaked.identical],
        "twins": [list(pair) for pair in leaked.twins],
    }


def _counted(names: list[str]) -> str:
    return f"{len(names)} ({first_few(names)})" if names else "0"


def _ranges(values: list[int]) -> str:
    """0, 1, 2, 9 as "0-2, 9"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1) if values else []
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
