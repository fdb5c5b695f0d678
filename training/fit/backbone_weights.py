"""Pretrained weights for a model's backbone: from timm's Hub, or a local file; never silently none."""

import itertools
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from hub_unets.modeling.encoder import create_backbone
from hub_unets.training.errors import UserError, first_line
from hub_unets.training.fit.order_matching import AmbiguousOrderError, match_by_order
from hub_unets.training.fit.tensor_files import read_tensors, subtrees
from hub_unets.training.fit.torchvision_features import feature_difference

LEAST_SHARE = 0.95
MOST_DIFFERENCE = 1e-4  # of two networks' maps, as a share of a map's largest value
AVERAGED = ("teacher", "ema", "model_ema", "state_dict_ema", "encoder_q")  # the half that is meant, where two fit


class Match(NamedTuple):
    """A part of a file that fits a backbone.

    Attributes:
        prefix: before the names of its tensors in the file, `teacher.backbone.`.
        state: the backbone's state dict with its values.
        missing: names of the backbone's float tensors that it lacks.
        share: of the values of the backbone's float tensors, in 0..1.
        way: how the tensors were told apart.
    """

    prefix: str
    state: dict
    missing: list
    share: float
    way: str


def load_backbone_weights(model, source):
    """Copy pretrained weights into `model.encoder.backbone`.

    Args:
        model: one of our models with a timm backbone.
        source: "timm" downloads timm's default weights, "none" keeps the random ones, anything else is a local file
            (.safetensors, or a .pth of tensors) of the same network, or a folder that holds it under the backbone's
            name, `mobilenetv2_100.safetensors`. Its names may be timm's, those that timm converts, or others in the
            same order, all behind any prefix.

    Returns:
        A line on what a file's tensors were matched to; None where none was read.

    Raises:
        OSError: the download failed or there is no such file; says what else can be given.
        UserError: the file does not hold this backbone's weights.
    """
    if source == "none":
        return None
    name = model.config.backbone
    if source == "timm":
        model.encoder.backbone.load_state_dict(_download(name, model.config.num_channels))
        return None
    if Path(source).is_dir():
        source = str(Path(source) / f"{name}.safetensors")
    if not Path(source).is_file():
        raise UserError(f"backbone_weights: there is no file {source}; {_alternatives(name)}.")
    tensors = read_tensors(source)
    match = _best_match(tensors, source, name, model.config.num_channels)
    judged = "" if match.way == "name" else _judged_features(tensors, match, source, model.config)
    model.encoder.backbone.load_state_dict(match.state)
    return _summary(match, source, name, judged)


def _download(name, num_channels):
    random = _create(name, num_channels, pretrained=False).state_dict()
    try:
        loaded = _create(name, num_channels, pretrained=True).state_dict()
    except Exception as error:  # the Hub client, timm and safetensors each raise their own
        raise OSError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}); {_alternatives(name)}."
        ) from error
    # timm skips missing keys in silence; a matrix that is still the random one (same seed) was not in the file
    missing = [key for key in random if random[key].dim() > 1 and torch.equal(random[key], loaded[key])]
    if missing:
        raise OSError(f"timm's weights of {name} lack {_some(missing)}; {_alternatives(name)}.")
    return loaded


def _create(name, num_channels, **options):
    """The backbone from one seed; timm's warning about unused classification weights is silenced."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create_backbone(name, num_channels, **options)
    finally:
        logger.setLevel(level)


def _best_match(tensors, source, name, num_channels):
    """The Match of the file's part that fits the backbone.

    Raises:
        UserError: none does, or two do.
    """
    random = _create(name, num_channels, pretrained=False).state_dict()
    parts = subtrees(tensors, LEAST_SHARE * sum(tensor.numel() for tensor in _floats(random).values()))
    by_name = [_match_names(prefix, part, random, name, num_channels) for prefix, part in parts.items()]
    fitting = [match for match in by_name if _fits(match)]
    fitting = fitting or _order_matches(parts, random, source, name)
    if not fitting:
        raise UserError(_refusal(by_name, source, name))
    return _chosen(fitting, source)


def _match_names(prefix, tensors, random, name, num_channels):
    """The Match by timm's own names, or those that timm's filter for this backbone renames."""
    try:
        reached = _create_from(_noise_like(tensors), name, num_channels)
        state = _create_from(tensors, name, num_channels)
    except Exception:  # timm and its filters raise what they like about tensors of another network
        return Match(prefix, random, list(_floats(random)), 0.0, "name")
    missing = [key for key, value in _floats(random).items() if torch.equal(value, reached[key])]
    return Match(prefix, state, missing, _share(random, missing), "name")


def _noise_like(tensors):
    """Tensors whose arrival in a network can be seen, also where the file has the initial value."""
    with torch.random.fork_rng():
        return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in tensors.items()}


def _create_from(tensors, name, num_channels):
    """The state of timm's backbone after it has read these tensors; what they lack is random from one seed."""
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    return _create(name, num_channels, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def _order_matches(parts, random, source, name):
    """The matches by order and shape.

    Raises:
        UserError: there is none, but one part fits in several orders.
    """
    matches, ambiguous = [], None
    for prefix, tensors in parts.items():
        try:
            names = match_by_order(tensors, random)
        except AmbiguousOrderError as error:
            ambiguous = error
            continue
        if names is not None:
            values = {key: tensors[names[key]].reshape(random[key].shape) for key in names}
            matches.append(Match(prefix, random | values, [], 1.0, "order and shape"))
    if ambiguous and not matches:
        raise UserError(
            f"backbone_weights: the shapes in {source} fit {name}, but which tensor is which is not clear: "
            f"{ambiguous} are alike. Save them under timm's names."
        ) from ambiguous
    return matches


def _fits(match):
    statistics = [key for key in match.missing if key.endswith(("running_mean", "running_var"))]
    return match.share >= LEAST_SHARE and not statistics


def _chosen(matches, source):
    """The longest prefix's match, of several different ones the averaged network's.

    Raises:
        UserError: the file holds several networks that fit.
    """
    prefixes = [match.prefix for match in matches]
    inner = [not any(other != prefix and other.startswith(prefix) for other in prefixes) for prefix in prefixes]
    matches = list(itertools.compress(matches, inner))  # a wrapper's part is its network's, too
    if len(matches) > 1:
        averaged = [match for match in matches if set(AVERAGED) & set(match.prefix.split("."))]
        matches = averaged if len(averaged) == 1 else matches
    if len(matches) > 1:
        prefixes = " and ".join(repr(match.prefix) for match in matches)
        raise UserError(
            f"backbone_weights: {source} holds {len(matches)} networks that fit, under {prefixes}: save the one that "
            "you mean in a file of its own."
        )
    return matches[0]


def _judged_features(tensors, match, source, config):
    """What is known of the maps that a match by shapes gives, as text.

    Raises:
        UserError: they are not those of the network that the file is of.
    """
    name = config.backbone
    backbone = _create(name, config.num_channels)
    backbone.load_state_dict(match.state)
    compared = feature_difference(tensors, backbone, name)
    if compared is None:
        return "; what shapes do not tell (activation, padding, epsilon) is timm's"
    network, difference = compared
    if difference > MOST_DIFFERENCE:
        raise UserError(
            f"backbone_weights: {source} holds torchvision's {network}, which computes other maps than timm's {name} "
            f"from the same values (padding, epsilon or activation differ; by {difference:.1g} of the largest): "
            f"{_alternatives(name)}."
        )
    return f"; its maps are those of torchvision's {network}"


def _floats(state):
    return {key: value for key, value in state.items() if value.is_floating_point()}


def _share(state, missing):
    counts = {key: value.numel() for key, value in _floats(state).items()}
    return 1 - sum(counts[key] for key in missing) / sum(counts.values())


def _some(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _summary(match, source, name, judged):
    count = len(_floats(match.state))
    prefix = f" behind {match.prefix!r}" if match.prefix else ""
    lacking = f"; the others are random: {_some(match.missing)}" if match.missing else ""
    return (
        f"Backbone weights: {count - len(match.missing)} of {count} tensors of {name}, {match.share:.1%} of its "
        f"values, from {source}{prefix}, matched by {match.way}{lacking}{judged}."
    )


def _refusal(matches, source, name):
    best = max(matches, key=lambda match: match.share, default=None)
    if best is None or best.share == 0:
        return (
            f"backbone_weights: {source} is not {name}'s: neither names nor order and shapes of its tensors fit; "
            f"{_alternatives(name)}."
        )
    return (
        f"backbone_weights: {source} lacks {len(best.missing)} tensors of {name}, {_some(best.missing)}: it holds "
        f"{best.share:.1%} of the values, {LEAST_SHARE:.0%} and all batch-norm statistics are needed; "
        f"{_alternatives(name)}."
    )


def _alternatives(name):
    return (
        f"give a local file with the weights of {name} (--backbone_weights FILE.safetensors), or train from scratch "
        "(--backbone_weights none)"
    )
