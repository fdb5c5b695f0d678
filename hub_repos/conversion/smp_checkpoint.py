"""A checkpoint of segmentation-models-pytorch (smp): its network's options and tensors, read without the library."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from hub_unets.training.errors import UserError
from hub_unets.training.fit.tensor_files import read_tensors

HEAD = "segmentation_head.0.weight"
ARCHITECTURES = {"Unet": "unet", "UnetPlusPlus": "unetplusplus"}
FIRST_BLOCKS = {"decoder.blocks.0.conv1.0.weight": "Unet", "decoder.blocks.x_0_0.conv1.0.weight": "UnetPlusPlus"}
RENAMED_BY_SMP = ("regnet", "res2", "resnest", "mobilenetv3", "gernet")  # `timm-` encoders that are `tu-` today
NORMS = (True, "batchnorm", False, "identity")  # as they stand in config.json
LEFT_OUT = ("encoder_weights", "aux_params", "_model_class")
CURE = "train it again with a setting that is taken"


class SmpCheckpoint(NamedTuple):
    """What smp's network was built with.

    Attributes:
        variant: our model_type.
        encoder: smp's name of the encoder.
        backbone: timm's name of it.
        tensors: {smp's name: tensor}, without a wrapper's prefix and the classification head.
        assumed: whether the options are smp's defaults because the file has none.
    """

    variant: str
    encoder: str
    backbone: str
    tensors: dict
    assumed: bool


def read_smp_checkpoint(source, encoder=None):
    """The checkpoint in a folder of `save_pretrained`, or in a file of a state dict.

    Args:
        source: the folder or file; a file has no options, so that smp's defaults are assumed.
        encoder: smp's name of the encoder, which a file does not tell.

    Raises:
        UserError: the files are missing or damaged, or our networks can't compute what this one does; says why.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"there is no {source}: give a folder of save_pretrained, or a file of a state dict (from the Hub: "
            "hf download ID --local-dir FOLDER)."
        )
    options = _read_options(path) if path.is_dir() else {}
    tensors = _network_tensors(read_tensors(_weights_file(path)), source)
    architecture = options.get("_model_class") or _architecture(tensors)
    if architecture not in ARCHITECTURES or _architecture(tensors) != architecture:
        raise UserError(
            f"{source} holds smp's {architecture or 'network of another architecture'}: "
            f"{' and '.join(ARCHITECTURES)} are converted."
        )
    encoder = _encoder(options, encoder, source)
    _require_expressible(options, tensors, source)
    return SmpCheckpoint(ARCHITECTURES[architecture], encoder, timm_name(encoder), tensors, not options)


def timm_name(encoder):
    """timm's name of smp's encoder.

    Raises:
        UserError: smp builds it from code of its own, whose maps are not timm's.
    """
    if encoder.startswith("tu-"):
        return encoder.removeprefix("tu-")
    name = encoder.removeprefix("timm-")
    if name != encoder and name.startswith(RENAMED_BY_SMP):
        return f"tf_{name}" if name.startswith("mobilenetv3") else name
    if re.fullmatch(r"resnet\d+|resnext\d+_32x\d+d", encoder):
        return encoder
    raise UserError(
        f"encoder {encoder!r} can't be converted: resnet*, resnext* and tu-* are, as their maps are timm's; smp "
        "builds the others from code of its own."
    )


def _read_options(folder):
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give a folder of smp's save_pretrained, or a file of weights.")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or UTF-8
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(options, dict) or not isinstance(options.get("_model_class"), str):
        raise UserError(f"{path} names no _model_class, as smp's save_pretrained does: is it another library's?")
    return options


def _weights_file(path):
    if not path.is_dir():
        return path
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    if not files:
        raise UserError(f"{path} has no model.safetensors: save the network again with smp's save_pretrained.")
    return files[0]


def _network_tensors(tensors, source):
    """Those of the segmentation network without the prefix of a wrapper, as Lightning's `state_dict.model.`."""
    prefixes = [name.removesuffix(HEAD) for name in tensors if name.endswith(HEAD)]
    if len(prefixes) != 1:
        raise UserError(f"{source} holds {len(prefixes)} tensors called {HEAD}, a network of smp has one.")
    (prefix,) = prefixes
    network = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in network.items() if not name.startswith("classification_head.")}


def _architecture(tensors):
    return next((name for key, name in FIRST_BLOCKS.items() if key in tensors), None)


def _encoder(options, encoder, source):
    stored = options.get("encoder_name") or encoder
    if stored is None:
        raise UserError(f"{source} does not tell its encoder: give smp's name of it, --encoder resnet34.")
    if encoder not in (None, stored):
        raise UserError(f"--encoder is {encoder}, config.json of {source} says {stored}: leave --encoder out.")
    return str(stored)


def _require_expressible(options, tensors, source):
    """Raise UserError for an option with which smp's network computes what ours can't."""
    norm = options.get("decoder_use_norm", options.get("decoder_use_batchnorm", True))
    norm = norm.get("type") if isinstance(norm, dict) and len(norm) == 1 else norm
    scse = any(".attention" in name for name in tensors)
    classes = len(tensors[HEAD])
    activations = (None, "identity", "sigmoid" if classes == 1 else "softmax2d")
    accepted = {
        "encoder_depth": (options.get("encoder_depth", 5), (5,), "our decoders start at stride 32"),
        "decoder_attention_type": (
            options.get("decoder_attention_type") or ("scse" if scse else None), (None,), "our decoders have no gates"
        ),
        "decoder_interpolation": (
            options.get("decoder_interpolation", "nearest"), ("nearest",), "ours changes the width with the others"
        ),
        "decoder_use_norm": (norm, NORMS, "our decoders have batch norm or none"),
        "activation": (options.get("activation"), activations, f"logits of {classes} channels are scored otherwise"),
        "in_channels": (options.get("in_channels", 3), (3,), "images are read as RGB"),
    }  # fmt: skip
    known = {*accepted, *LEFT_OUT, "encoder_name", "decoder_channels", "classes", "decoder_use_batchnorm"}
    for name, (value, choices, reason) in accepted.items():
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            names = " or ".join(map(str, choices))
            raise UserError(f"{source}: {name} is {value!r}, {names} is converted: {reason}; {CURE}.")
    for name in sorted(options.keys() - known):
        if options[name] is not None and not name.startswith("drop_"):  # of training alone
            raise UserError(f"{source}: the option {name}={options[name]!r} of its encoder is not known; {CURE}.")
