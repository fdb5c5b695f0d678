"""Score any segmentation model on any data at the original resolution: `hub-unets evaluate MODEL DATA`.

The path is the one a user of the published model takes: image file, processor, model, processor. Works for our built
repositories and for any semantic segmentation model with an image processor, from a folder or the Hub.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import transformers
from transformers import HfArgumentParser

from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.sources import load_frames, load_source
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.measure.cost import gmacs
from hub_unets.training.measure.ensemble import Ensemble
from hub_unets.training.measure.false_alarms import marked_on_frames, share_marked
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import score
from hub_unets.training.measure.segmenter import Segmenter
from hub_unets.training.measure.task import Task
from hub_unets.training.records import locks
from hub_unets.training.records.curves import reliability
from hub_unets.training.records.results import data_record, environment_record, write_results
from hub_unets.training.records.run_pictures import save_mask


def negatives_record(folder, segment, labels):
    """What results.json says of a folder of frames without a polyp; arguments as `marked_on_frames`."""
    pixels = marked_on_frames(
        segment, labels, load_frames(folder, segment.processor), progress="Score frames without a polyp"
    )
    return {"source": Path(folder).expanduser().resolve().name, **share_marked(pixels)}


def ensemble_record(model):
    """What results.json says of an ensemble: its cost is the sum of its members'."""
    return {
        "members": len(model.models),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(gmacs(model, max(model.size)), 4),
    }


@dataclass
class EvaluateArguments:
    """Score a segmentation model at the original resolution."""

    data: str = field(metadata={"help": "Folder, zip, COCO or parquet file, Hub id, or phantoms."})
    output: str = field(default="evaluation", metadata={"help": "Folder for results.json and per_image.csv."})
    split: str | None = field(default=None, metadata={"help": "Named split; the default scores every image as test."})
    split_seed: int = field(default=42, metadata={"help": "Seed of the split."})
    image_column: str | None = field(default=None, metadata={"help": "Column (or sub-folder) of the images."})
    mask_column: str | None = field(default=None, metadata={"help": "Column (or sub-folder) of the masks."})
    polyp_labels: list[int] = field(default=None, metadata={"help": "Labels of the model that mean polyp."})
    mask_labels: int | None = field(
        default=None,
        metadata={
            "help": "Number of labels in the masks when it is not the model's; every label above 0 counts as polyp."
        },
    )
    boundary_width: int | None = field(
        default=None,
        metadata={"help": "As the model was trained with: makes label 2 of 3 from black and white masks."},
    )
    threshold: float | None = field(default=None, metadata={"help": "Of a binary head; default: the processor's."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels that images are resized to; default: the processor's size."}
    )
    drop_outside_view: bool | None = field(
        default=None,
        metadata={"help": "Leave out marks wholly outside the endoscope's view; default: as the processor does."},
    )
    revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    batch_size: int = field(default=8, metadata={"help": "Images a forward pass."})
    score_test: bool = field(default=True, metadata={"help": "False scores the validation part alone."})
    negatives: str | None = field(
        default=None, metadata={"help": "Folder of frames without a polyp: in how many of them is one marked?"}
    )
    masks: str | None = field(
        default=None, metadata={"help": "Folder for every image's mask as NAME.png; the default keeps none."}
    )
    flips: bool = field(
        default=False, metadata={"help": "Score the mean logits of each image and its three mirror images."}
    )


def main(argv=None):
    transformers.logging.disable_progress_bar()
    parser = HfArgumentParser(EvaluateArguments, prog="hub-unets evaluate", usage="%(prog)s MODEL DATA ...")
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) >= 2 and not argv[1].startswith("-"):
        argv[1:2] = ["--data", argv[1]]
    parser.add_argument("model", help="Folder or Hub id of a segmentation model with an image processor.")
    arguments, positional = parser.parse_args_into_dataclasses(argv)
    started = time.perf_counter()
    model, processor = load_model(
        positional.model,
        arguments.trust_remote_code,
        arguments.revision,
        size=arguments.image_size and {"height": arguments.image_size, "width": arguments.image_size},
        drop_outside_view=arguments.drop_outside_view,
    )
    regrouped = arguments.polyp_labels is not None or arguments.mask_labels is not None
    multi_class = not regrouped and hasattr(model.config, "binary_head") and model.config.num_labels > 2
    id2label = model.config.id2label if multi_class else None
    source = load_source(arguments.data, arguments.image_column, arguments.mask_column, id2label)
    rows, partition = make_partition(source, arguments.split or "all", arguments.split_seed)
    if multi_class:
        task = Task.of_classes(model.config, arguments.boundary_width)
    else:
        task = Task.of_polyps(model.config, arguments.polyp_labels, arguments.mask_labels, arguments.boundary_width)
    segmenter_options = {"threshold": arguments.threshold, "flips": arguments.flips}
    options = {**segmenter_options, "batch_size": arguments.batch_size, "crops": True}
    if arguments.masks is not None:

        def keep(name, mask):
            labels = np.isin(mask, task.labels) if task.is_grouped else mask
            save_mask(Path(arguments.masks, f"{name}.png"), labels, 2 if task.is_grouped else task.num_labels)

        options["keep"] = keep
    settings = {name: value for name, value in vars(arguments).items() if name not in ("data", "output", "masks")}
    settings["drop_outside_view"] = getattr(processor, "drop_outside_view", False)
    run = {"name": Path(positional.model).name, "model_type": model.config.model_type, "settings": settings}
    run |= ensemble_record(model) if isinstance(model, Ensemble) else {}
    recipe = settings | {"model": run["name"]}
    lock = locks.make_lock(run["model_type"], recipe, None, partition.seed, partition.sha256)
    parts = {}
    for part in ("validation", "test") if arguments.score_test else ("validation",):
        indices = getattr(partition, part)
        if indices:
            locks.log_scoring(arguments.output, part, len(indices), lock=lock if part == "test" else None)
            progress = f"Score {part}"
            parts[part] = score(model, processor, rows.select(indices), task, **options, progress=progress)
    if not parts:
        raise UserError(f"score_test=False leaves nothing of split {partition.name!r} to score: leave it out.")
    results = {
        "run": run,
        "data": data_record(arguments.data, partition, arguments.boundary_width),
        **({"lock": locks.lock_record(arguments.output, lock)} if "test" in parts else {}),
        "environment": environment_record(model),
        "cost": {"evaluation_seconds": round(time.perf_counter() - started, 1)},
    }
    if arguments.negatives:
        segment = Segmenter(model, processor, **segmenter_options)
        results["negatives"] = negatives_record(arguments.negatives, segment, task.labels)
    print(write_results(arguments.output, results, parts, partition.twins))
    reliability(parts, Path(arguments.output) / "reliability.png")


if __name__ == "__main__":
    run_command(main)
