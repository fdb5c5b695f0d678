"""Trainers of this process for the tests: a small network on small phantoms."""

import torch

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.augmentation import Augmentation
from hub_unets.training.data.samples import EvaluationSamples, TrainingSamples, cached_samples
from hub_unets.training.fit.losses import WeightedSum
from hub_unets.training.fit.trainer import UNetTrainer
from hub_unets.training.settings.run_arguments import RunArguments
from tests.variants import small_model

SIZE = 32
IMAGES = 11
VALIDATION = 4


def make(cache, table, model, output_dir, trainer=UNetTrainer, loss=None, **fields):
    """A Trainer whose first IMAGES rows are trained on; keyword arguments are fields of RunArguments."""
    defaults = {"precision": "fp32", "disable_tqdm": True, "report_to": "none", "num_train_epochs": 1}
    args = RunArguments(
        output_dir=str(output_dir),
        **{**defaults, "per_device_train_batch_size": 4, "learning_rate": 0.01, **fields},
    )
    config = model.config
    processor = UNetImageProcessor(size=SIZE, mirror_margin=config.valid_margin)
    digests = [f"{table[0]['name']} {len(table)} {number}" for number in range(len(table))]
    samples = cached_samples(table, digests, processor, config.num_labels, cache)
    training = TrainingSamples(samples.select(range(IMAGES)), processor, Augmentation([], 0))
    validation = EvaluationSamples(samples.select(range(IMAGES, len(table))), processor)
    return trainer(model, args, training, validation, WeightedSum(loss or {"bce": 1, "dice": 1}), processor)


def plain_model(**fields):
    torch.manual_seed(0)
    return small_model(**{"base_channels": 4, "depth": 2, "batch_norm": False, **fields})
