"""A figures' record of several images, with a twin, of two classes, and how a test changes it."""

import json
from pathlib import Path

import numpy as np

from hub_unets.training.measure.reliability import TABLE_BINS
from hub_unets.training.measure.score import Scores
from hub_unets.training.records.results import write_results

HUB_REPOS = Path(__file__).parents[3] / "hub_repos"
COMMITTED = sorted(HUB_REPOS.glob("**/results.json"))


def write(folder, classes=1, twins=("c",), max_samples=None, absent=False, report=False, masks=False):
    """results.json and per_image.csv of one validation and three test images, 10 x 20; the last class may lack.

    `report` adds polyps, outlines and tables; `masks` counts random masks, the background too.
    """
    rng = np.random.default_rng(0)
    scores = {}
    for part, names in (("validation", ["v"]), ("test", ["a", "b", "c"])):
        counts = [rng.integers(1, 50, (classes, 4)) for _ in names]
        for image_counts in counts if absent else ():
            image_counts[-1, [0, 2]] = 0
        losses = rng.uniform(0.1, 1, len(names)).tolist()
        class_names = [f"class {number}" for number in range(1, classes + 1)]
        scores[part] = Scores(names, [(10, 20)] * len(names), counts, losses, class_names=class_names)
        if masks:
            scores[part] = Scores(losses=losses, class_names=class_names)
            labels = range(1, classes + 1)
            for name in names:
                pair = rng.integers(-2 * classes, classes + 1, (2, 10, 20)).clip(0)  # mostly background
                scores[part].add_mask(name, *pair, [(label,) for label in labels])
        if report:
            _add_report(scores[part], rng)
    labels = {str(number): name for number, name in enumerate(["background", *class_names])}
    settings = {"model.id2label": json.dumps(labels)}
    settings |= {} if max_samples is None else {"max_samples": str(max_samples)}
    sizes = {"train": 9, "validation": 1, "test": 3 if max_samples is None else 8}
    results = {
        "run": {"name": "x", "model_type": "unet", "settings": settings, "command": "accelerate launch '[1]'"},
        "data": {"source": "x", "split": "own", "split_seed": 42, "sizes": sizes, "sha256": "0" * 64}
        | {"twins": list(twins)},
        "environment": {"device": "cpu: x (R)", "cores": 2, "python": "3", "torch": "2", "transformers": "5"},
        "cost": {},
    }
    write_results(folder, results, scores, twins)
    (folder / "config.json").write_text(json.dumps({"model_type": "unet", "id2label": labels}))
    return folder


def _add_report(scores, rng):
    """Polyps 3, 2 of them found and touched, 1 false; outlines; all pixels in the bin around the probability .3."""
    for counts in scores.counts:
        true_positives, false_positives, false_negatives, true_negatives = counts[0]
        polyp, background = true_positives + false_negatives, false_positives + true_negatives
        table = np.zeros((3, TABLE_BINS))
        table[:, 6] = background, polyp, 0.3025 * (background + polyp)
        scores.tables.append(table)
        scores.polyps.append(np.array((3, 2, 2, 1)))
        scores.boundaries.append((rng.uniform(0.1, 0.9), rng.uniform(1, 9)))
        scores.crops.append([None, 0, 7][len(scores.crops) % 3])


def change(folder, old, new):
    text = (folder / "per_image.csv").read_text()
    assert text.count(old) == 1
    (folder / "per_image.csv").write_text(text.replace(old, new))


def change_results(folder, value, *keys):
    results = json.loads((folder / "results.json").read_text())
    inner = results
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "results.json").write_text(json.dumps(results))
