"""Models and rows whose scores are known by hand, and random ones."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from hub_unets.configuration.configuration_unet import UNetConfig
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation

PROCESSOR = UNetImageProcessor(size=16)
FEATURES = datasets.Features(
    name=datasets.Value("string"), image=datasets.Image(decode=False), annotation=datasets.Image(decode=False)
)
SHAPES = [(20, 30), (17, 16), (30, 24)]


def png(array):
    stored = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def rows_of(masks):
    """One noisy image for each mask."""
    rng = np.random.default_rng(0)
    rows = []
    for number, mask in enumerate(masks):
        files = {"image": png(rng.integers(0, 256, (*np.shape(mask), 3))), "annotation": png(mask)}
        rows.append({"name": f"f{number}", **{key: {"bytes": value, "path": None} for key, value in files.items()}})
    return datasets.Dataset.from_list(rows, features=FEATURES)


def box(shape, height, width, value=255):
    """A mask with `height` x `width` pixels of `value` in one corner."""
    mask = np.zeros(shape, np.uint8)
    mask[:height, :width] = value
    return mask


def random_model(**fields):
    torch.manual_seed(0)
    return UNetForSemanticSegmentation(UNetConfig(base_channels=4, depth=2, **fields)).eval()


def constant_model(*logits, **fields):
    """A model that gives `logits` at every pixel."""
    model = random_model(**fields)
    torch.nn.init.zeros_(model.head.classifier.weight)
    model.head.classifier.bias.data = torch.tensor(logits, dtype=torch.float32)
    return model
