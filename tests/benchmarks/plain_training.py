"""A training loop as tutorials write it: segmentation-models-pytorch's Unet, float32, every image decoded each epoch.

`python -m hub_unets.benchmarks.plain_training RECIPE --data FOLDER --backbone_weights FILE` prints a JSON line an
epoch. Encoder, weights, rates, augmentation, batch size and split are the recipe's, so that only the loop differs.
"""

import argparse
import json

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

from hub_unets.benchmarks.inference import SMP_ENCODER
from hub_unets.benchmarks.loops import PlainSamples
from hub_unets.benchmarks.networks import our_network
from hub_unets.benchmarks.smp_weights import renamed
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.sources import load_source
from hub_unets.training.fit.backbone_weights import load_backbone_weights
from hub_unets.training.settings.recipes import find_recipe, read_recipe


def create_network(backbone, weights):
    """smp's Unet with its default decoder on an encoder with pretrained weights."""
    ours = our_network("unet", backbone)
    load_backbone_weights(ours, weights)
    network = smp.Unet(SMP_ENCODER[backbone], encoder_weights=None)
    prefix = "model." if SMP_ENCODER[backbone].startswith("tu-") else ""
    network.encoder.load_state_dict(renamed(ours.encoder.backbone, (r"^", prefix)))
    return network


def train(rows, partition, recipe, weights, epochs, seed):
    """The mean Dice of the validation images after each epoch.

    Args:
        rows: a dataset of images and annotations.
        partition: of its rows.
        recipe: flat fields with a backbone of SMP_ENCODER.
        weights: of the backbone, as `--backbone_weights`.
        epochs, seed: of the run.
    """
    torch.manual_seed(seed)
    network = create_network(recipe["model.backbone"], weights)
    size, batch_size = recipe["image_size"], recipe["per_device_train_batch_size"]
    training = PlainSamples(rows.select(partition.train), recipe["augmentation"], size)
    validation = PlainSamples(rows.select(partition.validation), [], size)
    loader = DataLoader(training, batch_size, shuffle=True, drop_last=True)
    groups = [
        {"params": network.encoder.parameters(), "lr": recipe["encoder_learning_rate"]},
        {"params": [*network.decoder.parameters(), *network.segmentation_head.parameters()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    losses = [smp.losses.SoftBCEWithLogitsLoss(), smp.losses.DiceLoss("binary")]
    for _ in range(epochs):
        network.train()
        for batch in loader:
            logits, labels = network(batch["pixel_values"]), batch["labels"][:, None].float()
            optimizer.zero_grad()
            sum(loss(logits, labels) for loss in losses).backward()
            optimizer.step()
            scheduler.step()
        yield validation_dice(network, DataLoader(validation, batch_size))


@torch.inference_mode()
def validation_dice(network, loader):
    """The mean over images, at the size of the network's input."""
    network.eval()
    scores = []
    for batch in loader:
        predicted, labels = network(batch["pixel_values"])[:, 0] > 0, batch["labels"] == 1
        both, either = (predicted & labels).sum((1, 2)), predicted.sum((1, 2)) + labels.sum((1, 2))
        scores += torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0).tolist()
    return sum(scores) / len(scores)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone_weights", required=True)
    parser.add_argument("--num_train_epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    recipe = read_recipe(find_recipe(arguments.recipe))
    epochs = arguments.num_train_epochs or recipe["num_train_epochs"]
    rows, partition = make_partition(load_source(arguments.data), recipe["split"])
    scores = train(rows, partition, recipe, arguments.backbone_weights, epochs, arguments.seed)
    for number, dice in enumerate(scores, 1):
        print(json.dumps({"epoch": number, "dice": dice}), flush=True)


if __name__ == "__main__":
    main()
