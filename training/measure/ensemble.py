"""Several networks as one: the mean of their probabilities. A folder's ensemble.json names them and their sha256."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.reading import file_digest
from hub_unets.training.errors import UserError

ENSEMBLE = "ensemble.json"
CHECKPOINT = ("config.json", "preprocessor_config.json", "model.safetensors")
THRESHOLDS = ("mask_threshold", "score_threshold")
NOT_OURS = "an ensemble takes runs of hub-unets train and repositories of hub-unets build"


class Ensemble(nn.Module):
    """The mean probability of networks that may differ in variant, size and normalisation.

    Args:
        members: pairs of a model of ours, in eval mode, and its processor.
        mask_threshold, score_threshold: of the mean; see UNetImageProcessor.

    Attributes:
        processor: the UNetImageProcessor of the whole: images at the largest member's size, values 0 to 1. A smaller
            member's pixels are resized from these.

    Raises:
        UserError: members whose labels differ, or that are no models of ours.
    """

    def __init__(self, members, mask_threshold, score_threshold):
        super().__init__()
        models, self.processors = zip(*members, strict=True)
        require_alike(models, self.processors)
        self.models = nn.ModuleList(models)
        first = models[0].config
        self.config = SimpleNamespace(
            model_type="ensemble",
            num_channels=3,
            num_labels=first.num_labels,
            id2label=first.id2label,
            binary_head=first.binary_head,
        )
        self.size = tuple(max(processor.size[side] for processor in self.processors) for side in ("height", "width"))
        self.processor = UNetImageProcessor(
            size=self.size,
            image_mean=0.0,
            image_std=1.0,
            mask_threshold=mask_threshold,
            score_threshold=score_threshold,
            drop_outside_view=any(processor.drop_outside_view for processor in self.processors),
        )

    @property
    def device(self):
        return next(self.parameters()).device

    @property
    def dtype(self):
        return torch.float32

    def forward(self, pixel_values):
        """Pixels B x 3 x H x W, 0 to 1, to logits B x C x H x W whose probabilities are the members' mean."""
        pairs = zip(self.models, self.processors, strict=True)
        logits = torch.stack([self._logits(*pair, pixel_values) for pair in pairs])  # members x B x C x H x W
        if self.config.binary_head:
            polyp, background = (F.logsigmoid(sign * logits).logsumexp(dim=0) for sign in (1, -1))
            return SemanticSegmenterOutput(logits=polyp - background)
        return SemanticSegmenterOutput(logits=logits.log_softmax(dim=2).logsumexp(dim=0))

    def _logits(self, model, processor, pixel_values):
        """One member's logits, float32 at the ensemble's size."""
        size = pixel_values.shape[-2:]
        logits = model(pixel_values=self._inputs(processor, pixel_values).to(model.dtype))["logits"].float()
        if self.config.binary_head and logits.shape[1] == 2:  # with a channel for the background
            logits = logits[:, 1:] - logits[:, :1]
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size=size, mode="bilinear")

    def _inputs(self, processor, pixels):
        """Pixels as a member's own processor gives them."""
        own = processor.size["height"], processor.size["width"]
        if own != self.size:
            pixels = F.interpolate(pixels, size=own, mode="bilinear", antialias=True)
        pixels = pixels * (255 * processor.rescale_factor if processor.do_rescale else 255)
        if processor.do_normalize:
            mean, std = (
                pixels.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
            )
            pixels = (pixels - mean) / std
        margin = processor.mirror_margin
        return F.pad(pixels, [margin] * 4, mode="reflect") if margin else pixels


def require_alike(models, processors):
    """Raise UserError unless the mean of the models' probabilities has a meaning."""
    for model, processor in zip(models, processors, strict=True):
        is_ours = hasattr(model.config, "binary_head") and getattr(processor, "do_resize", False)
        if not is_ours or not getattr(processor, "takes_rgb", False):
            raise UserError(f"{NOT_OURS}, which resize RGB images; {type(model).__name__} is none.")
        for field in ("id2label", "binary_head"):
            pair = getattr(models[0].config, field), getattr(model.config, field)
            if pair[0] != pair[1]:
                raise UserError(f"members of an ensemble must have one {field}, got {pair[0]} and {pair[1]}.")


def write_ensemble(folder, members, thresholds):
    """Write ensemble.json into a folder.

    Args:
        folder: made if need be.
        members: folders of runs or built repositories.
        thresholds: `mask_threshold` and `score_threshold` of the mean probability.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{ENSEMBLE}"
    partial.write_text(json.dumps(describe(folder, members) | thresholds, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / ENSEMBLE)


def describe(folder, members):
    """The members as ensemble.json has them: paths from the folder, and the sha256 of each file of a checkpoint."""
    return {
        "members": [
            {
                "path": Path(os.path.relpath(Path(member).resolve(), Path(folder).resolve())).as_posix(),
                "sha256": {name: _sha256(Path(member) / name) for name in CHECKPOINT},
            }
            for member in members
        ]
    }


def load_ensemble(folder, load):
    """An Ensemble in eval mode and its processor.

    Args:
        folder: with an ensemble.json.
        load: a member's folder to its model and processor.

    Raises:
        UserError: the file is not one of `write_ensemble`, or a member is gone or has changed since.
    """
    path = Path(folder) / ENSEMBLE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        members = [(Path(folder, member["path"]), member["sha256"].items()) for member in fields["members"]]
        thresholds = [float(fields[name]) for name in THRESHOLDS]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the file of an ensemble ({type(error).__name__}: {error}).") from error
    if not members:
        raise UserError(f"{path} names no members.")
    for member, digests in members:
        for name, digest in digests:
            if not (member / name).is_file():
                raise UserError(f"{path}: {member} has no {name}: bring it back, or make the ensemble anew.")
            if _sha256(member / name) != digest:
                raise UserError(f"{path}: {member / name} has changed since: make the ensemble anew.")
    ensemble = Ensemble([load(str(member)) for member, _ in members], *thresholds).eval()
    return ensemble, ensemble.processor


def _sha256(path):
    return file_digest({"bytes": None, "path": str(path)})
