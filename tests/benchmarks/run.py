"""Measure speed: `hub-unets bench [--data FOLDER] [--model RUN] [--quick]`; writes results.json.

Without data the images are generated; without a model its weights are random, and Dice then says nothing.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import datasets
import torch
import transformers

from hub_unets.benchmarks import inference, loop_profile, loops, networks, page
from hub_unets.benchmarks.timing import hardware
from hub_unets.hub_repos.repository.int8 import INT8, export_int8
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.reading import read_image
from hub_unets.training.data.sources import load_source
from hub_unets.training.fit.threads import usable_cores
from hub_unets.training.records.results import without_folder

HERE = Path(__file__).parent
PHANTOMS = "phantoms?count=60&size=512&seed=0"
FULL = {
    "images": 88, "rounded_for": 8, "rounds": 21, "backbones": ["mobilenetv2_100", "resnet18"],
    "sizes": [256, 352, 512], "network_rounds": 7, "training_rounds": 3, "loop_rounds": 12, "size": 256,
    "growth_sizes": [128, 256, 512, 1024], "growth_batches": [2, 4, 8, 16], "import_rounds": 5,
    "loader_images": [1000, 10000], "evaluation_images": [1000, 100000],
    "data_rows": [1000, 100000], "profile_rounds": 5,
}  # fmt: skip
QUICK = FULL | {
    "backbones": ["mobilenetv2_100"], "images": 24, "rounds": 11, "sizes": [256],
    "network_rounds": 5, "training_rounds": 1, "loop_rounds": 5, "growth_sizes": [128, 256, 512],
    "growth_batches": [4, 8], "import_rounds": 3, "loader_images": [200, 1000], "evaluation_images": [200, 1000],
    "data_rows": [200, 1000], "profile_rounds": 3,
}  # fmt: skip


def measure(data, model, profile):
    """All figures as one dictionary.

    Args:
        data: a folder with a split "official", or phantoms.
        model: a run's or repository's folder; None: random weights.
        profile: as FULL.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(usable_cores())
    torch.manual_seed(0)
    name = "own" if data.startswith("phantoms") else "official"
    rows, partition = make_partition(load_source(data), name)
    training, validation = rows.select(partition.train), rows.select(partition.validation)
    results = {"hardware": hardware(), "data": {"name": without_folder(data), "split": name}, "profile": profile}
    with tempfile.TemporaryDirectory() as folder:
        results["inference"] = say(
            inference.measure,
            model or save_random(folder, profile, training),
            validation.select(range(min(len(validation), profile["images"]))),
            profile["rounds"],
        )
    results["inference"]["weights"] = without_folder(str(Path(model).resolve())) if model else "random"
    rounds = profile["network_rounds"]
    results["networks"] = say(
        networks.measure, profile["backbones"], profile["sizes"], rounds, profile["training_rounds"]
    )
    few_rows = training.select(range(min(len(training), 64)))
    backbone = profile["backbones"][0]
    results["training"] = say(loops.measure, few_rows, backbone, profile["size"], profile["loop_rounds"])
    results["step_profile"] = say(loop_profile.measure, backbone, profile["size"], profile["profile_rounds"])
    results["growth"] = say(
        networks.growth, backbone, profile["growth_sizes"], profile["growth_batches"], min(3, rounds)
    )
    results["loader_memory"] = say(loops.loader_memory, few_rows, profile["loader_images"])
    results["evaluation_memory"] = say(loops.evaluation_memory, profile["evaluation_images"])
    results["data_seconds"] = say(loops.data_seconds, profile["data_rows"])
    results["import_seconds"] = say(loops.start_seconds, profile["import_rounds"])
    return results


def say(part, *arguments):
    """Run one part and tell how long it took."""
    started = time.perf_counter()
    result = part(*arguments)
    print(f"{part.__module__.rpartition('.')[2]}.{part.__name__}: {time.perf_counter() - started:.0f} s", flush=True)
    return result


def save_random(folder, profile, rows):
    """A repository's folder with random weights, also in int8, rounded for images of `rows`."""
    network = networks.our_network("unet", profile["backbones"][0])
    UNetForSemanticSegmentation.save_pretrained(network, folder)
    UNetImageProcessor(size=profile["size"]).save_pretrained(folder)
    rows = rows.select(range(min(len(rows), profile["rounded_for"])))
    (Path(folder) / INT8).write_bytes(export_int8(folder, (read_image(row["image"], row["name"]) for row in rows)))
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets bench", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=PHANTOMS, help="Folder of Kvasir-SEG; default: generated frames.")
    parser.add_argument("--model", help="Folder of a run or repository; default: random weights.")
    parser.add_argument("--quick", action="store_true", help="A few minutes, fewer rounds.")
    parser.add_argument("--output", type=Path, default=HERE, help="Folder for results.json, speed.md and speed.png.")
    arguments = parser.parse_args(argv)
    words = [without_folder(word) for word in (sys.argv[1:] if argv is None else argv)]
    results = measure(arguments.data, arguments.model, QUICK if arguments.quick else FULL)
    results["command"] = shlex.join(["hub-unets", "bench", *words])
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / page.RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.main([str(arguments.output)])


if __name__ == "__main__":
    main()
