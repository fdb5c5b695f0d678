"""Checks of a built repository that only read it: its files, manifest, code, config and weights.

Each takes the folder and raises UserError for a fault. No code of the repository runs: this project's own classes
build config and network.
"""

import functools
import io
import json
import math
import re
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import torch
from PIL import Image

from hub_unets.hub_repos.checks.signatures import ATTESTATIONS, SIGNED
from hub_unets.hub_repos.checks.untrusted import open_file, parse_json, read_bytes, read_json, read_text
from hub_unets.hub_repos.repository.builder import MANIFEST, PICTURES, sha256
from hub_unets.hub_repos.repository.code import PROCESSOR_CODE, code_files, remote_code
from hub_unets.hub_repos.repository.eval_results import EVAL_RESULTS
from hub_unets.hub_repos.repository.eval_results import FOLDER as EVAL_FOLDER
from hub_unets.hub_repos.repository.example import EXAMPLE, EXAMPLE_VALUES, example_pixels
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.hub_repos.repository.licence import LICENCE
from hub_unets.hub_repos.repository.notebook import NOTEBOOK
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.processor_options import MOST_CHANNELS
from hub_unets.modeling.variants import config_fields, find_variant, variant_names
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.measure.cost import gmacs
from hub_unets.training.measure.weights import HALVES, read_shapes
from hub_unets.training.records.data_digests import DATA_DIGESTS

KB, MB = 2**10, 2**20
# every file that a repository may hold: its kind, and its largest size in bytes
KNOWN_FILES = {
    "README.md": ("text", 256 * KB),
    "config.json": ("json", 64 * KB),
    "preprocessor_config.json": ("json", 64 * KB),
    "results.json": ("json", 2 * MB),
    "manifest.json": ("json", 64 * KB),
    "per_image.csv": ("text", 4 * MB),
    "history.csv": ("text", 4 * MB),
    DATA_DIGESTS: ("text", 4 * MB),
    "model.safetensors": ("weights", 4096 * MB),
    "model.onnx": ("weights", 4096 * MB),
    INT8: ("weights", 4096 * MB),
    "requirements.txt": ("text", 64 * KB),
    **dict.fromkeys(SIGNED, ("text", 64 * KB)),
    LICENCE: ("text", 64 * KB),
    NOTEBOOK: ("json", 64 * KB),
    EVAL_RESULTS: ("text", 64 * KB),
    **dict.fromkeys((*PICTURES, EXAMPLE), ("picture", 16 * MB)),
    EXAMPLE_VALUES: ("values", 16 * MB),
    ".gitattributes": ("attributes", 64 * KB),
}
ATTESTATION = re.compile(rf"{ATTESTATIONS}/[0-9a-f]{{16}}-[0-9a-f]{{16}}\.(json|sig)")  # of a key and a manifest
MOST_ATTESTATIONS, ATTESTATION_BYTES = 200, 64 * KB  # files, and of each
CODE_BYTES = 256 * KB
MAX_HEADER = MB  # bytes of names and shapes
MAX_PIXELS = 50_000_000  # of a picture
NEEDED = ("README.md", "config.json", "preprocessor_config.json", "model.safetensors", "results.json", "per_image.csv")
NOT_IN_MANIFEST = {MANIFEST, ".gitattributes", *SIGNED}  # the Hub adds the second
ATTRIBUTES = re.compile(r"(\S+ filter=lfs diff=lfs merge=lfs -text\n)*")
FOREIGN = {b"PK\x03\x04": "a zip file", b"PK\x05\x06": "a zip file"} | {
    bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)
}
MANIFEST_SCHEMA, PREPROCESSOR_SCHEMA = (
    json.loads(Path(__file__).with_name(f"{name}.schema.json").read_text(encoding="utf-8"))
    for name in ("manifest", "preprocessor")
)
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
NO_DEFAULT = {  # fields of a config whose default is None, which does not tell the type
    "backbone": {"type": ["string", "null"], "pattern": r"^[a-z0-9_]+(\.[a-z0-9_]+)?$"},
    "decoder_channels": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 1}},
    "reduction_channels": {"type": ["integer", "null"], "minimum": 1},
    "binary_head": {"type": "boolean"},
    "id2label": {
        "type": "object",
        "propertyNames": {"pattern": r"^[0-9]{1,4}$"},
        "additionalProperties": {"type": "string", "pattern": r"^[\w .-]{1,80}$"},
    },
}
MOST = {"depth": {"maximum": 16}, "num_hidden_layers": {"maximum": 100}}  # more would be built without end
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
STORED = {"F32": {"F32", *HALVES}}  # in half the precision, perhaps; the config asks for float32


def copy_files(folder, copy):
    """Copy known files within their limits, so that nobody can change them between check and execution.

    Raises:
        UserError: the folder holds anything else.
    """
    copy.mkdir()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    for name in file_names(folder):
        if name == ATTESTATIONS and (folder / name).is_dir():  # which are read by themselves
            continue
        _, limit = known_file(name)
        (copy / name).parent.mkdir(exist_ok=True)
        with open_file(folder / name) as file, (copy / name).open("wb") as target:
            remaining = limit + 1
            while remaining and (chunk := file.read(min(remaining, MB))):
                target.write(chunk)
                remaining -= len(chunk)
        if not remaining:
            raise UserError(f"{name} is larger than {limit} bytes")


def file_names(folder):
    """Sorted paths, relative to a folder, of all in it; of its own folders only `.eval_results` is looked into."""
    names = []
    for path in folder.iterdir():
        is_opened = path.name == EVAL_FOLDER and path.is_dir() and not path.is_symlink()
        names += [f"{path.name}/{inner.name}" for inner in path.iterdir()] if is_opened else [path.name]
    return sorted(names)


def known_file(name):
    """(kind, most bytes) of a file's name.

    Raises:
        UserError: a repository has no file of this name.
    """
    if ATTESTATION.fullmatch(name):
        return "attestation", ATTESTATION_BYTES
    entry = ("code", CODE_BYTES) if name in _published_code() else KNOWN_FILES.get(name)
    if entry is None:
        raise UserError(f"{name[:80]} is no file that hub-unets builds")
    return entry


@functools.cache
def _published_code():
    return {path.name for variant in variant_names() for path in code_files(variant)}


def check_files(folder):
    """The folder holds plain files with known names only, and each has the content that its name says."""
    for name in NEEDED:
        open_file(folder / name).close()
    pictures = set()
    for relative in file_names(folder):
        path = folder / relative
        with open_file(path) as file:
            start = file.read(8)
        for magic, description in FOREIGN.items():
            if start.startswith(magic):
                raise UserError(f"{path.name} is {description}")
        kind, _ = known_file(relative)
        _check_content(path, kind)
        pictures |= {path.name} if kind == "picture" else set()
    if unjudged := sorted(pictures - {EXAMPLE}):
        return f"nothing tells whether {', '.join(unjudged)} show this model's work"
    return ""


def _check_content(path, kind):
    if kind == "json":
        read_json(path)
    elif kind == "picture":
        _check_picture(path)
    elif kind == "values":
        _check_values(path)
    elif kind != "weights":
        text = read_text(path)
        if kind == "attributes" and not ATTRIBUTES.fullmatch(f"{text.rstrip()}\n" if text.strip() else ""):
            raise UserError(f"{path.name} holds more than the Hub's lines")


def _check_picture(path):
    """The picture is a whole, valid PNG; the example is the frame that the builder draws."""
    content = read_bytes(path)
    if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")):
        raise UserError(f"{path.name} is not a PNG picture from its first to its last byte")
    try:
        with warnings.catch_warnings(action="error"), Image.open(path, formats=["PNG"]) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise UserError(f"{path.name} has more than {MAX_PIXELS} pixels")
            pixels = np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # an untrusted file can raise anything in a decoder
        raise UserError(f"{path.name} is a damaged picture: {str(error)[:200]}") from error
    if path.name == EXAMPLE and not any(np.array_equal(pixels, example_pixels(count)) for count in (3, 1)):
        raise UserError(f"{path.name} is not the generated frame that the release draws")


def _check_values(path):
    """The example of a network of other channels is, byte for byte, the frame that the builder draws."""
    num_channels, frame = read_json(path.with_name("config.json")).get("num_channels"), io.BytesIO()
    if type(num_channels) is not int or not 1 <= num_channels <= MOST_CHANNELS:
        raise UserError(f"config.json: num_channels must be 1 to {MOST_CHANNELS}, got {str(num_channels)[:80]}")
    np.save(frame, example_pixels(num_channels))
    if read_bytes(path) != frame.getvalue():
        raise UserError(f"{path.name} is not the generated frame that the release draws")


def check_manifest(folder):
    """The manifest has its form, and names every file in the folder with its sha256 and size."""
    listed = read_manifest(folder)["files"]
    present = set(file_names(folder)) - NOT_IN_MANIFEST
    for names, problem in ((listed.keys() - present, "is missing"), (present - listed.keys(), "is not listed")):
        if names:
            raise UserError(f"{MANIFEST}: {min(names)[:80]} {problem}")
    for name, entry in listed.items():
        open_file(folder / name).close()
        if entry != {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}:
            raise UserError(f"{name} has another size or sha256 than {MANIFEST} says")


def read_manifest(folder):
    """manifest.json, by its schema."""
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema_version") == 1:
        raise UserError(
            f"{MANIFEST} is of an earlier release, {str(manifest.get('release'))[:80]!r}: install that one to verify, "
            "or build the repository again"
        )
    check_schema(manifest, MANIFEST_SCHEMA, MANIFEST)
    return manifest


def check_auto_map(folder):
    """config.json and preprocessor_config.json name the code files and classes that the builder writes, no others."""
    config, processor = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    code = remote_code(*find_variant(read_model_type(folder)))
    for name, fields, expected in (
        ("config.json", config, code),
        ("preprocessor_config.json", processor, {"auto_map": PROCESSOR_CODE}),
    ):
        for field, value in expected.items():
            if fields.get(field) != value:
                raise UserError(f"{name}: {field} must be {value}, got {fields.get(field)}")


def check_config(folder):
    """config.json has known fields of the right types, and our own class takes them."""
    read_config(folder)


def read_config(folder):
    """config.json as an object of our own class, without the code that it names."""
    fields = read_json(folder / "config.json")
    config_class, model_class = find_variant(read_model_type(folder))
    check_schema(fields, config_schema(config_class, model_class), "config.json")
    numbers = {name: int(number) for number, name in fields["id2label"].items()}
    if numbers != fields.get("label2id", {}):
        raise UserError("config.json: label2id must be id2label the other way round")
    known = config_fields(config_class).keys() | {"label2id"}
    with about_input():
        return config_class.from_dict({name: value for name, value in fields.items() if name in known})


def config_schema(config_class, model_class):
    """JSON schema of a variant's config.json, from the fields and defaults of its config class."""
    config_properties = {
        name: NO_DEFAULT[name] if default is None else {"type": TYPES[type(default)], **MOST.get(name, {})}
        for name, default in config_fields(config_class).items()
    }
    saved_properties = {
        "architectures": {"const": [model_class.__name__]},
        "model_type": {"const": config_class.model_type},
        "dtype": {"const": "float32"},
        "transformers_version": {"type": "string", "pattern": r"^[\w.]{1,40}$"},
        "auto_map": {"type": "object"},
        "custom_pipelines": {"type": "object"},
        "label2id": {"type": "object", "additionalProperties": {"type": "integer"}},
    }
    return {
        "type": "object",
        "required": ["architectures", "model_type", "dtype", "auto_map", "custom_pipelines", "id2label", "label2id"],
        "additionalProperties": False,
        "properties": {**config_properties, **saved_properties},
    }


def check_preprocessor(folder):
    """preprocessor_config.json has every field of our processor, of the right type, and our own class takes them."""
    fields = read_json(folder / "preprocessor_config.json")
    check_schema(fields, PREPROCESSOR_SCHEMA, "preprocessor_config.json")
    known = vars(UNetImageProcessor())
    try:
        processor = UNetImageProcessor(**{name: value for name, value in fields.items() if name in known})
    except ValueError as error:
        raise UserError(f"preprocessor_config.json: {str(error)[:300]}") from error
    num_channels = read_config(folder).num_channels
    if processor.num_channels != num_channels:
        raise UserError(
            f"preprocessor_config.json: num_channels is {processor.num_channels}, the network's is {num_channels}"
        )
    if min(processor.size.values()) <= processor.mirror_margin:
        raise UserError("preprocessor_config.json: mirror_margin must be smaller than size")


def check_weights(folder):
    """model.safetensors is well formed, and holds nothing but its tensors."""
    path = folder / "model.safetensors"
    read_shapes(path)
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise UserError(f"{path.name}: a header of {length} bytes holds more than names and shapes")
        header = parse_json(file.read(length).decode("utf-8"), f"{path.name}: the header")
    if header.pop("__metadata__", None) != {"format": "pt"}:
        raise UserError(f'{path.name}: the header\'s metadata is not {{"format": "pt"}}')
    for name, entry in header.items():
        if entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise UserError(f"{path.name}: tensor {name[:80]!r} needs dtype, shape and data_offsets, and nothing else")


def check_network(folder):
    """The weights fit the config's network in every name and shape, and results.json counts them right."""
    _, model_class = find_variant(read_model_type(folder))
    config = read_config(folder)
    with about_input(), torch.device("meta"):
        model = model_class(config)
    expected = {name: (DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    stored = read_shapes(folder / "model.safetensors")
    for name in sorted(expected.keys() ^ stored.keys()):
        problem = "is missing" if name in expected else "is not part of the network"
        raise UserError(f"model.safetensors: tensor {name[:80]!r} {problem}")
    for name, form in expected.items():
        dtype, shape = stored[name]
        if shape != form[1] or dtype not in STORED.get(form[0], form[:1]):
            raise UserError(f"model.safetensors: tensor {name!r} must be {form}, got {stored[name]}")
    count, stated_count = model.num_parameters(), read_json(folder / "results.json")["run"].get("parameters")
    if stated_count != count:
        raise UserError(f"results.json: run.parameters is {stated_count}, the network has {count}")
    _check_gmacs(model, folder)


def _check_gmacs(model, folder):
    """The multiply-accumulates of an image at the processor's size, where results.json has them."""
    stated = read_json(folder / "results.json")["run"].get("gmacs")
    if stated is None:
        return
    size = read_json(folder / "preprocessor_config.json")["size"]
    count = gmacs(model, size["height"] + 2 * model.config.valid_margin)
    if not math.isclose(stated, count, rel_tol=1e-3, abs_tol=1e-4):
        raise UserError(f"results.json: run.gmacs is {stated}, the network takes {count:.4f}")


def check_schema(value, schema, name):
    """Raise UserError, naming the field, unless the value fits the schema."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        field = ".".join(map(str, error.absolute_path))
        raise UserError(f"{name}: {f'{field}: ' if field else ''}{error.message[:300]}")


def read_model_type(folder):
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in variant_names():
        raise UserError(f"config.json: model_type {str(model_type)[:80]!r} is no variant of this release")
    return model_type
