"""Which pretrained encoder a plan can have: by the weights that are there, and the hardware."""

from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import HfApi, try_to_load_from_cache
from timm.models import get_pretrained_cfg

from hub_unets.training.errors import UserError, first_line

LIGHT = (  # for a CPU, best first: measured on Kvasir-SEG with the recipe unet_polyps as far as tf_efficientnet_lite2
    "mobilenetv2_100", "tf_efficientnet_lite2", "tf_efficientnet_lite0", "mobilenetv3_large_100", "efficientnet_b0",
    "resnet18", "resnet34", "resnet50", "convnext_tiny",
)  # fmt: skip
LARGE = (  # for a GPU: larger encoders gain more than larger decoders
    "convnext_tiny", "resnet50", "resnet34", "tf_efficientnet_lite2", "efficientnet_b0", "mobilenetv2_100", "resnet18",
    "tf_efficientnet_lite0", "mobilenetv3_large_100",
)  # fmt: skip
HALVES = (0.5, 0.5, 0.5)
SECONDS = 5  # for the Hub to answer


class Encoder(NamedTuple):
    """An encoder and where its weights come from.

    Attributes:
        backbone: timm's name; None is the plain path from scratch.
        weights: as `backbone_weights` in a recipe: "timm", "none", a file or a folder.
        image_mean, image_std: what the weights take, for each of three channels.
        reason: why this one.
    """

    backbone: str | None
    weights: str
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    reason: str

    @property
    def pretrained(self) -> bool:
        """Whether it starts from weights."""
        return self.weights != "none"


def choose_encoder(weights: str, is_given: bool, device: str, backbone: str | None = None) -> Encoder:
    """The best encoder whose weights are there.

    Args:
        weights: `backbone_weights`: "timm", "none", a file or a folder.
        is_given: whether the user said so; if not, "timm" may turn out not to be reachable.
        device: torch's type; a CPU gets a light one.
        backbone: timm's name, where the user said which.

    Raises:
        UserError: nothing at `weights`, or not what it is of.
    """
    order = LIGHT if device == "cpu" else LARGE
    if weights == "none":
        reason = "backbone_weights none: trained from scratch"
        return Encoder(backbone, "none", HALVES, HALVES, reason)
    if weights == "timm":
        return _from_the_hub(backbone or order[0], is_given or backbone is not None, device)
    name = backbone or _of_local(Path(weights), order, device)
    reason = f"its weights are in {Path(weights).name}, and it suits a {_kind(device)} best of those there"
    return Encoder(name, weights, HALVES, HALVES, reason if backbone is None else "its weights are to be had")


def _from_the_hub(name, is_given, device):
    config = get_pretrained_cfg(name) if timm.is_model(name) else None
    missing = None if is_given or config is None else _not_reachable(config.hf_hub_id)
    if missing is None:
        mean, std = (config.mean, config.std) if config else (HALVES, HALVES)
        return Encoder(
            name, "timm", tuple(mean), tuple(std), f"ImageNet weights from timm's Hub; suits a {_kind(device)}"
        )
    reason = (
        f"no pretrained weights: the Hub is not reachable ({missing}); --backbone_weights FOLDER gives local ones, "
        "which are worth 3 to 28 points of Dice"
    )
    return Encoder(None, "none", HALVES, HALVES, reason)


def _not_reachable(repo_id):
    """Why a repository's weights can't be had; None where they can."""
    if isinstance(try_to_load_from_cache(repo_id, "model.safetensors"), str):
        return None
    try:
        HfApi().model_info(repo_id, timeout=SECONDS)
    except Exception as error:  # the client's and its HTTP library's own, of many classes
        return first_line(error)[:80]
    return None


def _of_local(path, order, device):
    """The name of the encoder whose weights a file, or the best file of a folder, holds, by the file's name."""
    if not path.exists():
        raise UserError(f"backbone_weights: there is no file or folder {path}: give one, timm, or none.")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    names = [file.stem for file in files if timm.is_model(file.stem)]
    if not names:
        raise UserError(
            f"backbone_weights: no file name in {path} is that of a network of timm, as mobilenetv2_100.safetensors "
            "is: rename it, or say which it is, as in --model.backbone resnet50."
        )
    return next((name for name in order if name in names), names[0 if device == "cpu" else -1])


def _kind(device):
    return "CPU" if device == "cpu" else "GPU"
