"""Train one model: `accelerate launch training/run.py RECIPE.yaml [--any.field value]`.

Data, network, training, scoring of the best epoch, pictures; the folder it leaves is what hub_repos.build takes.
"""

import contextlib
import hashlib
import itertools
import logging
import math
import resource
import sys
from pathlib import Path

import datasets
import torch
import transformers
import yaml
from accelerate import PartialState

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.check_data import print_check
from hub_unets.training.data.further import further_images
from hub_unets.training.data.partition import PARTS, make_partition
from hub_unets.training.data.reading import check_boundary_width, read_image
from hub_unets.training.data.samples import (
    EvaluationSamples,
    TrainingSamples,
    cached_samples,
    growing_sides,
    require_foreground,
    without_labels,
)
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError, about_input, run_command
from hub_unets.training.fit.backbone_weights import load_backbone_weights
from hub_unets.training.fit.checkpoints import RunFolder, last_complete, naming_write_errors, remove_passed_over
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.fit.start import load_start
from hub_unets.training.fit.teacher import Teacher
from hub_unets.training.fit.threads import keep_freed_memory, require_processes, use_all_cores
from hub_unets.training.fit.trainer import UNetTrainer
from hub_unets.training.measure.calibration import calibrate, to_half
from hub_unets.training.measure.cost import end_to_end_milliseconds, gmacs
from hub_unets.training.measure.models import load_model
from hub_unets.training.measure.score import score
from hub_unets.training.measure.task import Task
from hub_unets.training.measure.weights import save_readable, save_tensors
from hub_unets.training.plan.planning import is_planned, plan_of, require_planned
from hub_unets.training.records import locks
from hub_unets.training.records.results import (
    data_record,
    environment_record,
    read_results,
    source_name,
    summary_lines,
    write_results,
)
from hub_unets.training.records.run_pictures import draw, draw_first_batch
from hub_unets.training.records.seen import refuse_seen
from hub_unets.training.settings.arguments import parse
from hub_unets.training.settings.publishable import command_of, publishable, without_folders

TIMED_IMAGES = 20

NOT_SETTINGS = ("output_dir", "plan_only", "dataloader_num_workers", "disable_tqdm")  # may differ in a resumed run


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    logging.captureWarnings(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    keep_freed_memory()
    argv, planned = with_plan(argv)
    arguments, model_fields, loss_weights, settings = parse(argv)
    if planned and arguments.plan_only:
        return
    state = PartialState()
    require_processes(state)
    with about_input():
        config = find_variant(arguments.variant)[0](**model_fields)
    check_boundary_width(arguments.boundary_width, config.num_labels)
    processor = create_processor(arguments, config, arguments.image_size)
    if arguments.calibrate and not config.binary_head:
        raise UserError(
            f"calibrate=True needs a binary head, got num_labels={config.num_labels} and binary_head=False: leave it "
            "out."
        )
    source = load_source(arguments.data, arguments.image_column, arguments.mask_column, config.id2label)
    rows, partition = make_partition(source, arguments.split, arguments.split_seed)
    if state.is_main_process:
        say_split(partition)
    if arguments.check_data:
        print_check(rows, partition, config.num_labels, arguments.boundary_width, processor)
        return
    further = further_images(arguments, config.id2label, rows, partition, processor)
    for field, names in {"start_from": [arguments.start_from], "teacher": arguments.teacher}.items():
        for name in filter(None, names or []):
            refuse_seen(field, name, arguments.data, source, partition)
    fixed = kept_settings(settings, partition, state.num_processes, further)
    with RunFolder(arguments.output_dir, fixed) if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()
        settings = publishable(settings)
        if is_finished(arguments.output_dir):
            state.print(f"{arguments.output_dir} is finished: remove it or choose another output_dir to train again.")
        else:
            command = command_of("run", argv)
            train_and_score(arguments, model_fields, loss_weights, settings, command, rows, partition, further)
    if state.is_main_process:
        say_results(arguments.output_dir)


def kept_settings(settings, partition, processes, further):
    """What must stay as it is when a run is resumed: its settings, its data, and the number of its processes."""
    fixed = {name: text for name, text in settings.items() if name not in NOT_SETTINGS}
    fixed |= {"split_sha256": partition.sha256, "files_sha256": partition.files_sha256, "processes": str(processes)}
    for name, more in further.items():
        pairs = map("".join, itertools.zip_longest(more.digests, more.mask_digests, fillvalue=""))
        fixed[f"{name}_sha256"] = hashlib.sha256("".join(sorted(pairs)).encode()).hexdigest()
    return fixed


def train_and_score(arguments, model_fields, loss_weights, settings, command, rows, partition, further):
    """Everything between the data and results.json."""
    folder = Path(arguments.output_dir)
    lock = locks.make_lock(arguments.variant, settings, arguments.seed, partition.seed, partition.sha256)
    model, processor = build(arguments, model_fields)
    start = None if arguments.start_from is None else load_start(model, arguments.start_from)
    if start is not None:
        PartialState().print(start.summary)
    loss = WeightedSum(loss_weights)
    indices = {part: getattr(partition, part)[: arguments.max_samples] for part in PARTS}
    training, validation = make_samples(arguments, rows, partition, indices, model, processor, further)
    teacher = None if not arguments.teacher else load_teacher(arguments, training.processor, model.config)
    trainer = UNetTrainer(model, arguments, training, validation, loss, processor, teacher=teacher)
    checkpoint, passed_over = last_complete(folder)
    if trainer.is_world_process_zero():
        say_resumed(checkpoint, passed_over)
        remove_passed_over(passed_over)
        with naming_write_errors(folder / "first_batch.png"):
            draw_first_batch(training, processor, folder / "first_batch.png")
    PartialState().wait_for_everyone()
    trainer.train_from(checkpoint)
    best = trainer.load_best()
    if not trainer.is_world_process_zero():
        return
    history = finite(trainer.state.log_history)
    model = as_published(model, processor, arguments)
    calibration, scores = {}, {}
    if arguments.calibrate:
        log_scoring(folder, "validation", len(indices["validation"]), "to calibrate")
        fitted = calibrate(model, processor, rows.select(indices["validation"]), arguments.half_precision)
        calibration, scores = {"calibration": fitted.record}, {"validation": fitted.scores}
        model = as_published(model, processor, arguments)
    parts = ("validation", "test") if arguments.score_test else ("validation",)
    unscored = {part: indices[part] for part in parts if part not in scores}
    scores |= score_parts(model, processor, rows, unscored, folder, lock, arguments.boundary_width)
    results = {
        "run": run_record(arguments, settings, command, model, best) | {"started_from": start and start.record},
        "data": data_record(arguments.data, partition, arguments.boundary_width) | extra_record(arguments, further),
        **({"lock": locks.lock_record(folder, lock)} if "test" in scores else {}),
        **calibration,
        "environment": environment_record(model) | {"processes": arguments.world_size},
        "cost": {
            "training_seconds": history[-1]["seconds"],
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "latency": measure_latency(model, processor, rows.select(indices[parts[-1]][:TIMED_IMAGES])),
        },
    }
    with naming_write_errors(folder / "results.json"):
        draw(folder, history, scores, rows, model, processor, arguments.boundary_width)
        write_results(folder, results, scores, partition.twins, history)


def make_samples(arguments, rows, partition, indices, model, processor, further):
    """Training and validation samples; the first process decodes, the others find its cache."""
    augmentation = Augmentation(yaml.safe_load(arguments.augmentation) or [], arguments.seed)
    if not processor.takes_rgb:
        augmentation.require_channels(processor.num_channels)
    train_processor = create_processor(arguments, model.config, arguments.train_size or arguments.image_size)
    options = {"num_labels": model.config.num_labels, "boundary_width": arguments.boundary_width}
    with PartialState().main_process_first():
        validation = cached_samples(rows, partition.digests, processor, **options).select(indices["validation"])
        training = cached_samples(rows, partition.digests, train_processor, **options).select(indices["train"])
        for field, more in further.items():
            samples = cached_samples(more.rows, more.digests, train_processor, **options)
            samples = without_labels(samples) if field == "unlabelled" else samples
            samples = samples.select(range(len(samples))[: arguments.max_samples])
            training = datasets.concatenate_datasets([training, samples])
    require_images(arguments, training, validation)
    require_foreground(training)
    sides = training_sides(arguments, model.config)
    return TrainingSamples(training, train_processor, augmentation, sides), EvaluationSamples(validation, processor)


def training_sides(arguments, config):
    """The side of the training samples in each draw of the sampler, where they grow."""
    if arguments.first_train_size is None:
        return []
    last = arguments.train_size or arguments.image_size
    sides = growing_sides(arguments.first_train_size, last, math.ceil(arguments.num_train_epochs))
    with about_input():
        for side in sides:
            config.check_valid_size(side + 2 * config.valid_margin)
    return [side for side in sides for _ in range(arguments.copies)]


def extra_record(arguments, further):
    """What results.json says of a further data set that was trained on."""
    if "extra_data" not in further:
        return {}
    record = further["extra_data"].record
    images = len(range(record["images"])[: arguments.max_samples])
    return {"extra": [{"source": source_name(arguments.extra_data), **record, "images": images}]}


def load_teacher(arguments, processor, config):
    options = arguments.teacher_flips, arguments.trust_remote_code, arguments.device
    return Teacher(arguments.teacher, processor, config, *options)


def run_record(arguments, settings, command, model, best):
    return {
        "name": Path(arguments.output_dir).name,
        "model_type": model.config.model_type,
        "settings": settings,
        "command": command,
        "teacher": [without_folders(name) for name in arguments.teacher or []],
        "seed": arguments.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(gmacs(model, arguments.image_size + 2 * model.config.valid_margin), 4),
        "best": best,
    }


def build(arguments, model_fields):
    """The network with its encoder's ImageNet weights, unless a checkpoint gives all of them, and its processor.

    Raises:
        UserError: a field that the network refuses, or weights that do not fit.
    """
    config_class, model_class = find_variant(arguments.variant)
    transformers.set_seed(arguments.seed)
    config = config_class(**model_fields)
    with about_input():
        model = model_class(config)
    if config.backbone is not None and arguments.start_from is None:
        summary = load_backbone_weights(model, arguments.backbone_weights)
        if summary is not None:
            PartialState().print(summary)
    return model, create_processor(arguments, config, arguments.image_size)


def create_processor(arguments, config, size):
    """The run's image processor for images of this side.

    Raises:
        UserError: a size that `valid` padding can't map.
    """
    with about_input():
        config.check_valid_size(size + 2 * config.valid_margin)
        return UNetImageProcessor(
            size=size,
            image_mean=arguments.image_mean,
            image_std=arguments.image_std,
            mirror_margin=config.valid_margin,
            num_channels=config.num_channels,
            intensity=arguments.intensity,
        )


def require_images(arguments, training, validation):
    if not len(training) or not len(validation):
        raise UserError(
            f"split {arguments.split!r} leaves {len(training)} training and {len(validation)} validation images of "
            f"{arguments.data}: training needs both."
        )


def score_parts(model, processor, rows, indices, folder, lock, boundary_width=None):
    """Scores of each part of `indices`, as a user of the published model would get them; each scoring is logged."""
    task, scores = Task.of_run(model.config, boundary_width), {}
    for part, part_indices in indices.items():
        log_scoring(folder, part, len(part_indices), lock=lock if part == "test" else None)
        progress = f"Score {part}"
        scores[part] = score(model, processor, rows.select(part_indices), task, crops=True, progress=progress)
    return scores


def log_scoring(folder, *line, **options):
    """A line of scorings.log; arguments as `records.locks.log_scoring`."""
    with naming_write_errors(folder / locks.SCORINGS):
        locks.log_scoring(folder, *line, **options)


def measure_latency(model, processor, rows):
    """Milliseconds from image to mask, one image at a time, as the model is scored."""
    images = [read_image(row["image"], row["name"], processor) for row in rows]
    return {name: round(value, 2) for name, value in end_to_end_milliseconds(model, processor, images).items()}


def as_published(model, processor, arguments):
    """Save the checkpoint, and return the model as its users load it: the Trainer's computes in its precision."""
    folder = Path(arguments.output_dir)
    with naming_write_errors(folder / "model.safetensors"):
        save_checkpoint(model, processor, folder, arguments.half_precision)
    return load_model(folder)[0].to(arguments.device)


def save_checkpoint(model, processor, folder, half_precision=False):
    """What hub_repos.build and from_pretrained take, in the run's folder; the config asks for float32 in any case."""
    model.float().to(memory_format=torch.contiguous_format)
    save_readable(model, folder)
    processor.save_pretrained(folder)
    if half_precision:
        state = model.state_dict()
        weights = {name: to_half(tensor) for name, tensor in state.items()}
        if wide := [name for name, tensor in weights.items() if tensor.dtype == torch.float32]:
            print(f"Kept in float32, as float16 ends at 65504: {', '.join(wide)}")
        save_tensors(weights, folder / "model.safetensors")


def is_finished(folder):
    return (Path(folder) / "results.json").exists()


def with_plan(argv):
    """The command line with the recipe that was planned for it, where it leaves that open; and whether it does."""
    if not is_planned(argv):
        require_planned(argv)
        return argv, False
    require_processes(PartialState())
    path, folder = plan_of(argv, prepare_trial)
    return [str(path), *argv, "--output_dir", str(folder)], True


def prepare_trial(arguments, model_fields, rows, digests):
    """The network with its weights, and training samples of a few rows, in one process whatever others do."""
    model, _ = build(arguments, model_fields)
    processor = create_processor(arguments, model.config, arguments.train_size or arguments.image_size)
    options = {"num_labels": model.config.num_labels, "boundary_width": arguments.boundary_width}
    augmentation = Augmentation(yaml.safe_load(arguments.augmentation) or [], arguments.seed)
    return model, TrainingSamples(cached_samples(rows, digests, processor, **options), processor, augmentation)


def say_split(partition):
    sizes = ", ".join(f"{count} {part}" for part, count in partition.sizes.items())
    print(f"Split {partition.name}: {sizes}; sha256 {partition.sha256}")
    if partition.twins:
        print(
            f"{len(partition.twins)} test images have a twin in training or validation: the score without them stands "
            "beside the other."
        )


def say_resumed(checkpoint, passed_over):
    for folder in passed_over:
        print(f"Passed over {folder}: it is half written or damaged.", flush=True)
    if checkpoint is not None:
        print(f"Resumed from {checkpoint}.", flush=True)


def say_results(folder):
    print("\n".join(summary_lines(read_results(Path(folder) / "results.json"))))
    print(f"Results, weights and pictures: {folder}")
    print(f"Next: hub-unets build {folder} {folder}/repository")


def finite(history):
    """The log history with None for what is not finite, as JSON has no NaN."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        for entry in history
    ]


def peak_memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    run_command(main)
