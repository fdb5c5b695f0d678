"""Checkpoint to repository: weights, config, processor, flat code, records, card and manifest in one folder."""

import hashlib
import json
import shutil
from pathlib import Path

from hub_unets.hub_repos.repository.card import takes_rgb, title, write_card
from hub_unets.hub_repos.repository.code import (
    PROCESSOR_CODE,
    code_digest,
    copy_code,
    head_commit,
    release,
    remote_code,
)
from hub_unets.hub_repos.repository.eval_results import EVAL_RESULTS, eval_results_text
from hub_unets.hub_repos.repository.example import example_name, write_example
from hub_unets.hub_repos.repository.export import ONNX, export_onnx, require_export
from hub_unets.hub_repos.repository.folders import replaced
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.hub_repos.repository.licence import LICENCE, licence_text
from hub_unets.hub_repos.repository.notebook import NOTEBOOK, notebook_text
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import read_variant
from hub_unets.training.measure.weights import load_weights, save_as_stored
from hub_unets.training.records.data_digests import DATA_DIGESTS
from hub_unets.training.records.results import HISTORY, read_results

MANIFEST = "manifest.json"
PICTURES = ("first_batch.png", "curves.png", "thresholds.png", "reliability.png", "typical.png", "worst.png")


def build(
    checkpoint,
    out,
    repo_id=None,
    revision=None,
    standing=None,
    onnx=False,
    two_channels=False,
    space=False,
    dataset=None,
):
    """Write the repository of a run's folder.

    Args:
        checkpoint: folder with config.json, model.safetensors, preprocessor_config.json and results.json; its
            model_int8.onnx is taken along.
        out: folder to write: absent, empty, or an earlier build, which is replaced as a whole.
        repo_id, revision: the Hub repository and its tag that the card's snippets load; None names no repository.
        standing: the trial's Standing in a sweep, for results.json and card.
        onnx: also write the network as model.onnx, which needs the extra `export`.
        two_channels: a binary head's logits are (0, z), for scripts that take `argmax(1)` of them.
        space: whether the card names a Space of the repository's name.
        dataset: (repo_id, commit) of the data set's repository on the Hub, for results.json and all that shows it.

    Raises:
        UserError: a file is missing or damaged, or `out` holds other files.
    """
    checkpoint = Path(checkpoint)
    if onnx:
        require_export()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "results.json"):
        if not (checkpoint / name).is_file():
            published = checkpoint.parent / "published" / checkpoint.name
            cure = f"it is {published} now" if published.is_dir() else "train with training/run.py"
            raise UserError(f"{checkpoint} is not a finished run: {name} is missing; {cure}.")
    results = read_results(checkpoint / "results.json")
    config_class, model_class = read_variant(checkpoint)
    with replaced(out, is_build, "build") as staged:
        save_model(checkpoint, staged, config_class, model_class, two_channels)
        if onnx:
            export_onnx(staged, staged / ONNX)
        copy_code(config_class.model_type, staged)
        for name in ("results.json", "per_image.csv", DATA_DIGESTS, HISTORY, INT8, *PICTURES):
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, staged / name)
        if standing is not None:
            results["sweep"] = standing._asdict()
        if dataset is not None:
            results["data"]["repository"] = dict(zip(("repo_id", "revision"), dataset, strict=True))
        if standing is not None or dataset is not None:
            (staged / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        num_channels = read_json(staged / "config.json").get("num_channels", 3)
        write_example(staged / example_name(num_channels), num_channels)
        write_companions(staged, results, repo_id, revision)
        write_card(staged, results, repo_id, revision, space)
        write_manifest(staged)


def is_build(folder):
    """Whether a folder holds a built repository."""
    config = folder / "config.json"
    return config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))


def save_model(checkpoint, folder, config_class, model_class, two_channels=False):
    """Weights, config with every Auto class and the pipeline, and the processor; half precision stays as stored.

    Raises:
        UserError: `two_channels` is set and the head is not binary.
    """
    model = load_weights(model_class, checkpoint).float()
    if two_channels and not model.config.binary_head:
        raise UserError(f"two_channels is for a binary head; {checkpoint} has a logit for each label: leave it out.")
    model.config.background_channel |= two_channels
    for field, value in remote_code(config_class, model_class).items():
        setattr(model.config, field, value)
    save_as_stored(model, checkpoint, folder)
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    processor.auto_map = dict(PROCESSOR_CODE)
    processor.save_pretrained(folder)


def write_companions(folder, results, repo_id=None, revision=None):
    """The files that follow from results.json and the repository's name alone."""
    for name, text in companions(folder, results, repo_id, revision).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def companions(folder, results, repo_id=None, revision=None):
    """{name: text} of a repository's LICENSE, notebook and, where its data set is on the Hub, .eval_results.

    Args:
        folder: the repository, with its config.json in place.
        results: a checked results.json.
        repo_id, revision: the repository's on the Hub and its tag; None where it is not there.
    """
    config, processor = (read_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    example = example_name(config.get("num_channels", 3))
    notebook = notebook_text(title(results, config), repo_id, revision, example, takes_rgb(processor))
    texts = {LICENCE: licence_text(results), NOTEBOOK: notebook}
    figures = eval_results_text(results, repo_id, revision)
    return texts if figures is None else texts | {EVAL_RESULTS: figures}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_manifest(folder):
    """manifest.json: the release that built the folder, its code's digest, and every other file's sha256 and size."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    built_by = {"release": release(), "code_sha256": code_digest(folder), "commit": head_commit()}
    manifest = {"schema_version": 2, **built_by, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(path):
    """The digest of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
