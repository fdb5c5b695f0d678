"""A model and its processor to be scored, and which of its labels mean polyp."""

import inspect
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant, variant_names
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.measure.ensemble import ENSEMBLE, load_ensemble
from hub_unets.training.measure.weights import CURE, load_weights, read_shapes

MASK_CLASSIFIERS = "maskformer", "mask2former"  # model types that give masks with classes, not classes of pixels


@about_input()
def load_model(name, trust_remote_code=False, revision=None, **changes):
    """A model in eval mode and its image processor.

    It is a run's own checkpoint, whatever AutoModelForSemanticSegmentation can load, or one of MASK_CLASSIFIERS.
    A folder with an ensemble.json is the Ensemble of its members.

    Args:
        name: folder or Hub id.
        trust_remote_code, revision: as transformers'.
        changes: fields of the image processor, of each member's in an ensemble, by name; those that are None are left
            as they are.

    Raises:
        UserError: the repository's code would have to be run and `trust_remote_code` is not given; another kind of
            model; damaged weights; a field that the processor does not have.
        OSError: nothing can be loaded from `name`.
    """
    changes = {field: value for field, value in changes.items() if value is not None}
    if (Path(name) / ENSEMBLE).is_file():
        return load_ensemble(name, lambda member: load_model(member, trust_remote_code, **changes))
    local = Path(name) / "config.json"
    if local.is_file() and "auto_map" not in (fields := _read(local)) and fields.get("model_type") in variant_names():
        _, model_class = find_variant(fields["model_type"])
        return load_weights(model_class, name), UNetImageProcessor.from_pretrained(name, **changes)
    for path in sorted(Path(name).glob("*.safetensors")):
        read_shapes(path)
    options = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"model {name}: no folder with a config.json, nor loadable from the Hub ({reason})") from error
    is_mask_classifier = config.model_type in MASK_CLASSIFIERS
    auto_class = AutoModelForUniversalSegmentation if is_mask_classifier else AutoModelForSemanticSegmentation
    try:
        model = auto_class.from_pretrained(name, config=config, **options)
    except SafetensorError as error:
        raise UserError(f"the weights of {name} are damaged: {error}; {CURE}.") from error
    except ValueError as error:
        if not str(error).startswith("Unrecognized configuration class"):
            raise
        raise UserError(
            f"model {name} is of the type {config.model_type}, which is not scored: models for semantic segmentation "
            "are (SegFormer, UperNet, BEiT, DPT, MobileViT and the like), and MaskFormer and Mask2Former."
        ) from error
    processor = of_whole_images(AutoImageProcessor.from_pretrained(name, **options, **changes), changes.get("size"))
    if "drop_outside_view" in changes and "drop_outside_view" not in inspect.signature(type(processor)).parameters:
        raise UserError(f"drop_outside_view: the image processor of {name} does not have it: leave it out.")
    return model.eval(), processor


def of_whole_images(processor, size=None):
    """A foreign processor that shows a network all of an image: without a crop of the centre, at the crop's size.

    A `size` that is asked for, {"height", "width"}, stands instead of the crop's.

    Masks are stretched to the image; where the network saw its centre alone, a perfect one would score below 1.

    Raises:
        UserError: it pads images, which a mask does not show.
    """
    if getattr(processor, "do_pad", False):
        raise UserError(
            f"{type(processor).__name__} pads images (do_pad), and masks would be shifted: set do_pad to false in "
            "preprocessor_config.json."
        )
    if getattr(processor, "do_center_crop", False):
        side = processor.crop_size
        processor.do_center_crop = False
        processor.size = size or {"height": side["height"], "width": side["width"]}
    return processor


def pixel_values(model, processor, images):
    """What a model takes of images that `read_image` gave, B x C x H x W, on its device and in its precision.

    transformers 5 loads a model in the precision that it was saved in.

    Raises:
        UserError: the processor has padded them.
    """
    inputs = processor(images, return_tensors="pt", **getattr(processor, "read_options", {}))
    if "pixel_mask" in inputs and not inputs["pixel_mask"].all():
        raise UserError(
            f"{type(processor).__name__} pads images (pad_size), and masks would be shifted: remove pad_size from "
            "preprocessor_config.json."
        )
    return inputs["pixel_values"].to(model.device, model.dtype)


def gives_one_size(processor):
    """Whether images of different sizes make one batch, none of them padded to the size of another."""
    size = getattr(processor, "size", None)
    is_fixed = hasattr(size, "keys") and set(size.keys()) == {"height", "width"}
    return is_fixed and getattr(processor, "do_resize", True) and not getattr(processor, "keep_aspect_ratio", False)


def class_logits(outputs):
    """The logits of a model's output, B x C x h x w.

    Mask classification (Cheng et al. 2021, "MaskFormer"; 2022, "Mask2Former") has masks with classes instead. There
    they are the logarithms of the classes' scores, float32, from which transformers makes the semantic mask: the sum
    over the masks of class probability times pixel probability.
    """
    if "class_queries_logits" not in outputs:
        return outputs["logits"]
    classes = outputs["class_queries_logits"].float().log_softmax(dim=-1)[..., :-1]  # the last one is no object
    pixels = F.logsigmoid(outputs["masks_queries_logits"].float())
    labels = classes[..., None, None].unbind(dim=2)  # one label at a time: all of them would take gigabytes
    return torch.stack([(label + pixels).logsumexp(dim=1) for label in labels], dim=1)


def read_variant(folder):
    """The config class and the model class of a checkpoint of ours, by its config.json.

    Raises:
        UserError: the file is none of a variant.
    """
    path = Path(folder) / "config.json"
    with about_input():
        return find_variant(_read(path).get("model_type"))


def _read(path):
    """The fields of a config.json."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} must map names to values, got {str(fields)[:60]}.")
    return fields


def polyp_labels_of(config):
    """Which labels of a model mean polyp.

    Those called polyp, and a boundary beside them; where none is, all but one called background; else 1 of two.

    Raises:
        UserError: the names do not tell.
    """
    names = {int(label): str(name).lower() for label, name in config.id2label.items()}
    if polyps := [label for label in names if "polyp" in names[label]]:
        return tuple(label for label in sorted(names) if label in polyps or names[label] == "boundary")
    if "background" in names.values():
        return tuple(label for label in sorted(names) if names[label] != "background")
    if len(names) == 2:
        return (1,)
    raise UserError(f"which of the labels {list(names.values())[:8]} mean polyp? Name their numbers: --polyp_labels.")
