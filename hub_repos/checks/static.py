"""Checks of a built repository that only read it: its files, manifest, code, config and weights.

Each takes the folder and raises UserError with what is wrong. None of the repository's code is run: config and
network are built by this project's own classes.
"""

import ast
import json
import re
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jsonschema
import torch

from hub_unets.hub_repos.checks.untrusted import open_file, read_bytes, read_json, read_tensors, read_text
from hub_unets.hub_repos.repository.builder import MANIFEST, sha256
from hub_unets.hub_repos.repository.code import PROCESSOR_CODE, code_files, copy_code, remote_code
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import config_fields, find_variant, variant_names
from hub_unets.training.errors import UserError

# every file that a repository may hold (a new kind is one line here), and what its bytes must be
KNOWN_FILES = {
    r"README\.md": "text",
    r"config\.json": "json",
    r"preprocessor_config\.json": "json",
    r"results\.json": "json",
    r"manifest\.json": "json",
    r"(per_image|history)\.csv": "text",
    r"model\.(safetensors|onnx)": "weights",
    r"requirements\.txt": "text",
    r"[a-z0-9_]+\.png": "picture",
    r"[a-z0-9_]+\.py": "code",
    r"\.gitattributes": "attributes",
}
NEEDED = ("README.md", "config.json", "preprocessor_config.json", "model.safetensors", "results.json", "per_image.csv")
NOT_IN_MANIFEST = {MANIFEST, ".gitattributes"}  # the Hub adds the second
ATTRIBUTES = re.compile(r"(\S+ filter=lfs diff=lfs merge=lfs -text\n?)*")
FOREIGN = {b"PK\x03\x04": "a zip file", b"PK\x05\x06": "a zip file"} | {
    bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)
}
RELEASE = re.compile(
    r"(\d+\.\d+\.\d+(?:(?:a|b|rc|\.dev|\.post)\d+)?|unreleased)(?:, commit [0-9a-f]{40}(?:\+changes)?)?", re.ASCII
)
MANIFEST_SCHEMA, PREPROCESSOR_SCHEMA = (
    json.loads(Path(__file__).with_name(f"{name}.schema.json").read_text(encoding="utf-8"))
    for name in ("manifest", "preprocessor")
)
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
NO_DEFAULT = {  # fields of a config whose default, None, does not tell the type
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


def check_files(folder):
    """Known names only, plain files, and in each what its name says."""
    for name in NEEDED:
        open_file(folder / name).close()
    published = {path.name for variant in variant_names() for path in code_files(variant)}
    for path in sorted(folder.iterdir()):
        with open_file(path) as file:
            start = file.read(8)
        for magic, what in FOREIGN.items():
            if start.startswith(magic):
                raise UserError(f"{path.name} is {what}")
        kind = next((kind for pattern, kind in KNOWN_FILES.items() if re.fullmatch(pattern, path.name)), None)
        if kind is None or (kind == "code" and path.name not in published):
            raise UserError(f"{path.name} is no file that hub-unets builds")
        _check_content(path, kind)


def _check_content(path, kind):
    if kind == "json":
        read_json(path)
    elif kind == "code":
        ast.parse(read_text(path), path.name)
    elif kind == "picture":
        content = read_bytes(path)
        if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")):
            raise UserError(f"{path.name} is not a PNG picture from its first to its last byte")
    elif kind != "weights":
        text = read_text(path)
        if kind == "attributes" and not ATTRIBUTES.fullmatch(text):
            raise UserError(f"{path.name} holds more than the Hub's lines")


def check_manifest(folder):
    """Its form, and for every file in the folder its sha256 and size."""
    listed = _read_manifest(folder)["files"]
    found = {path.name for path in folder.iterdir()} - NOT_IN_MANIFEST
    for names, what in ((listed.keys() - found, "is missing"), (found - listed.keys(), "is not in the manifest")):
        if names:
            raise UserError(f"{min(names)} {what}")
    for name, entry in listed.items():
        open_file(folder / name).close()
        if entry != {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}:
            raise UserError(f"{name} has another size or sha256 than the manifest says")


def _read_manifest(folder):
    manifest = read_json(folder / MANIFEST)
    check_schema(manifest, MANIFEST_SCHEMA, MANIFEST)
    return manifest


def check_release(folder):
    """Code and requirements, byte for byte, are what the release that the manifest names builds for this variant."""
    release = _read_manifest(folder)["release"]
    match = RELEASE.fullmatch(release)
    if not match:
        raise UserError(f"{MANIFEST}: release {release[:80]!r} has no form of a release")
    if match[1] != installed_version():
        raise UserError(f"built by {match[1]}, this is {installed_version()}: install that release to verify")
    with tempfile.TemporaryDirectory() as built:
        copy_code(_model_type(folder), Path(built), of_release=release)
        ours = {path.name: path.read_bytes() for path in Path(built).iterdir()}
    theirs = {path.name for pattern in ("*.py", "requirements.txt") for path in folder.glob(pattern)}
    for name in sorted(ours.keys() ^ theirs):
        raise UserError(f"{name} is {'missing' if name in ours else 'not part of this variant'}")
    for name, content in ours.items():
        if read_bytes(folder / name) != content:
            raise UserError(f"{name} is not the file that release {match[1]} builds")


def installed_version():
    """The version of the hub-unets that verifies."""
    try:
        return version("hub-unets")
    except PackageNotFoundError:
        return "unreleased"


def check_auto_map(folder):
    """config.json and preprocessor_config.json name just the code files and classes that the builder writes."""
    config, processor = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    expected = remote_code(*find_variant(_model_type(folder)))
    for name, fields, wanted in (
        ("config.json", config, expected),
        ("preprocessor_config.json", processor, {"auto_map": PROCESSOR_CODE}),
    ):
        for field, value in wanted.items():
            if fields.get(field) != value:
                raise UserError(f"{name}: {field} must be {value}, got {fields.get(field)}")


def check_config(folder):
    """config.json has known fields of the right types, and our own class takes them."""
    read_config(folder)


def read_config(folder):
    """config.json as an object of our own class; the code that it names is left out."""
    fields = read_json(folder / "config.json")
    config_class, model_class = find_variant(_model_type(folder))
    check_schema(fields, config_schema(config_class, model_class), "config.json")
    numbers = {name: int(number) for number, name in fields.get("id2label", {}).items()}
    if numbers != fields.get("label2id", {}):
        raise UserError("config.json: label2id must be id2label the other way round")
    known = config_fields(config_class).keys() | {"label2id"}
    return config_class.from_dict({name: value for name, value in fields.items() if name in known})


def config_schema(config_class, model_class):
    """JSON schema of a variant's config.json, from the fields and defaults of its config class."""
    own = {
        name: NO_DEFAULT[name] if default is None else {"type": TYPES[type(default)], **MOST.get(name, {})}
        for name, default in config_fields(config_class).items()
    }
    written = {
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
        "required": ["architectures", "model_type", "dtype", "auto_map", "custom_pipelines"],
        "additionalProperties": False,
        "properties": {**own, **written},
    }


def check_preprocessor(folder):
    """preprocessor_config.json has every field of our processor, of the right type, and our own class takes them."""
    fields = read_json(folder / "preprocessor_config.json")
    check_schema(fields, PREPROCESSOR_SCHEMA, "preprocessor_config.json")
    known = vars(UNetImageProcessor())
    UNetImageProcessor(**{name: value for name, value in fields.items() if name in known})


def check_weights(folder):
    """model.safetensors is well formed."""
    read_tensors(folder / "model.safetensors")


def check_network(folder):
    """The weights are those of the config's network, name by name and shape by shape, as many as results.json says."""
    _, model_class = find_variant(_model_type(folder))
    with torch.device("meta"):
        model = model_class(read_config(folder))
    ours = {name: (DTYPES[one.dtype], tuple(one.shape)) for name, one in model.state_dict().items()}
    theirs = read_tensors(folder / "model.safetensors")
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise UserError(f"tensor {name!r} is {'missing' if name in ours else 'not part of the network'}")
    for name, wanted in ours.items():
        if theirs[name] != wanted:
            raise UserError(f"tensor {name!r} must be {wanted}, got {theirs[name]}")
    count, said = model.num_parameters(), read_json(folder / "results.json")["run"].get("parameters")
    if said != count:
        raise UserError(f"results.json: run.parameters is {said}, the network has {count}")


def check_schema(value, schema, name):
    """Raise UserError, naming the place, unless the value fits the schema."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        place = ".".join(map(str, error.absolute_path))
        raise UserError(f"{name}: {f'{place}: ' if place else ''}{error.message[:300]}")


def _model_type(folder):
    fields = read_json(folder / "config.json")
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type not in variant_names():
        raise UserError(f"config.json: model_type {str(model_type)[:80]!r} is no variant of this release")
    return model_type
