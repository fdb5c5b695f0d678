"""Checkpoint to Hub repository: `python -m hub_repos.build CHECKPOINT OUT [--onnx]`.

The repository holds weights, config, processor, and flat copies of just the code that the variant needs; it loads with
`trust_remote_code=True` where this project is not installed. Two builds of one checkpoint are byte-identical.
"""

import argparse
import ast
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import transformers
from PIL import Image

from hub_repos.card import EXAMPLE, write_card
from hub_repos.export import ONNX, export_onnx, require_export
from modeling.image_processing_unet import UNetImageProcessor
from modeling.variants import find_variant
from training.phantoms import phantom
from training.results import read_results

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("configuration", "modeling")
PROCESSOR_FILE = Path("modeling/image_processing_unet.py")
ENDPOINT_FILE = Path("modeling/handler.py")
REQUIREMENTS = "timm>=1.0.20,<1.1\n"  # what an Inference Endpoint's own environment lacks
MODEL_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
PROCESSOR_CODE = {"AutoImageProcessor": "image_processing_unet.UNetImageProcessor"}
MANIFEST = "manifest.json"
PICTURES = ("first_batch.png", "curves.png", "thresholds.png", "reliability.png", "typical.png", "worst.png")


def build(checkpoint, out, repo_id=None, revision=None, standing=None, onnx=False):
    """Write the repository of a run's folder.

    Args:
        checkpoint: folder with config.json, model.safetensors, preprocessor_config.json and results.json.
        out: folder to write: absent, empty, or an earlier build, which is replaced as a whole.
        repo_id, revision: the Hub repository and its tag that the card's snippets load; None names no repository.
        standing: the trial's Standing in a sweep, for results.json and card.
        onnx: also write the network as model.onnx, which needs the extra `export`.

    Raises:
        ValueError: a file is missing or does not fit, or `out` holds something else.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if onnx:
        require_export()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "results.json"):
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint} is not a finished run: {name} is missing; train with training/run.py.")
    refuse_foreign_folder(out)
    results = read_results(checkpoint / "results.json")
    if "test" not in results["metrics"]:
        raise ValueError(
            f"{checkpoint} was not scored on the test part, whose figures a card needs: leave score_test out."
        )
    model_type = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
    config_class, model_class = find_variant(model_type)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staged:
        staged = Path(staged) / "repository"
        staged.mkdir()
        save_model(checkpoint, staged, config_class, model_class)
        if onnx:
            export_onnx(staged, staged / ONNX)
        copy_code(model_type, staged)
        for name in ("results.json", "per_image.csv", *PICTURES):
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, staged / name)
        if standing is not None:
            results["sweep"] = standing._asdict()
            (staged / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        Image.fromarray(phantom(7, 0)[0]).save(staged / EXAMPLE)
        write_card(staged, results, repo_id, revision)
        write_manifest(staged)
        if out.exists():
            shutil.rmtree(out)
        staged.rename(out)


def save_model(checkpoint, folder, config_class, model_class):
    """Weights, config with every Auto class and the pipeline, and the processor."""
    model = model_class.from_pretrained(checkpoint)
    for field, value in remote_code(config_class, model_class).items():
        setattr(model.config, field, value)
    model.save_pretrained(folder)
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    processor.auto_map = dict(PROCESSOR_CODE)
    processor.save_pretrained(folder)


def remote_code(config_class, model_class):
    """What config.json says of the code: a file and class for each Auto class, and the pipeline."""
    model_type = config_class.model_type
    return {
        "auto_map": {
            "AutoConfig": f"configuration_{model_type}.{config_class.__name__}",
            **dict.fromkeys(MODEL_CLASSES, f"modeling_{model_type}.{model_class.__name__}"),
        },
        "custom_pipelines": {
            "image-segmentation": {
                "impl": "image_processing_unet.UNetImageSegmentationPipeline",
                "pt": ["AutoModelForImageSegmentation"],
                "type": "image",
            }
        },
    }


def copy_code(model_type, folder, of_release=None):
    """The variant's modeling file, the processor's with the pipeline, what they import, and the endpoint's two, flat.

    `of_release` is the release that their first lines name; the default is this one's.
    """
    of_release = of_release or release()
    for relative in code_files(model_type):
        source = flatten(PROJECT / relative, of_release) + indirect_imports(relative)
        (folder / relative.name).write_text(source, encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")


def write_manifest(folder):
    """manifest.json: the release that built the folder, and the sha256 and size of every other file in it."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"schema_version": 1, "release": release(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(path):
    """The digest of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_files(model_type):
    """Paths, relative to the project, of every file that a variant's repository needs; sorted."""
    return with_imports([Path(f"modeling/modeling_{model_type}.py"), PROCESSOR_FILE, ENDPOINT_FILE])


def with_imports(paths):
    """These files, relative to the project, and what they import of it at any depth; sorted."""
    waiting, found = list(paths), set()
    while waiting:
        relative = waiting.pop()
        if relative not in found:
            found.add(relative)
            waiting += direct_imports(relative)
    return sorted(found)


def direct_imports(relative):
    """The project's files that a file itself imports."""
    tree = ast.parse((PROJECT / relative).read_text(encoding="utf-8"))
    return [Path(*node.module.split(".")).with_suffix(".py") for node in project_imports(tree, relative)]


def indirect_imports(relative):
    """Lines that import what a file needs only through others; they define nothing but `_`.

    transformers 4.57 to 5.5 copy from a local folder only what the file that they look for itself imports.
    """
    indirect = sorted(set(with_imports([relative])) - {relative, *direct_imports(relative)})
    if not indirect:
        return ""
    lines = [f"from .{path.stem} import __name__ as _\n" for path in indirect]
    return "".join(["\n# transformers 4.57 to 5.5 take from a folder only what this file itself imports\n", *lines])


def project_imports(tree, path):
    """The nodes `from configuration.x import y` and `from modeling.x import y` of a syntax tree.

    Raises:
        ValueError: an import of the project that can't be made flat.
    """
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES and not node.level:
            if node.module.count(".") != 1:
                raise ValueError(f"{path}:{node.lineno}: only `from package.module import name` can be published.")
            nodes.append(node)
        elif isinstance(node, ast.Import) and any(name.name.split(".")[0] in PACKAGES for name in node.names):
            raise ValueError(f"{path}:{node.lineno}: only `from package.module import name` can be published.")
    return nodes


def flatten(path, of_release):
    """A source file as it is published: imports of the project become siblings, a first line says where it is from."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in sorted(project_imports(ast.parse(source), path), key=lambda node: node.lineno, reverse=True):
        sibling = ast.ImportFrom(module=node.module.split(".")[1], names=node.names, level=1)
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + ast.unparse(sibling) + "\n"]
    relative = path.relative_to(PROJECT).as_posix()
    return f"# {relative} of hub-unets {of_release}; Apache-2.0\n" + "".join(lines)


def release():
    """The project's version, and its commit where it runs from a checkout; `+changes` where published code differs."""
    try:
        number = version("hub-unets")
    except PackageNotFoundError:
        number = "unreleased"
    commit = _git("rev-parse", "HEAD") if (PROJECT / ".git").exists() else ""
    if not commit:
        return number
    changed = _git("status", "--porcelain", "--", *PACKAGES)
    return f"{number}, commit {commit}{'+changes' if changed else ''}"


def _git(*arguments):
    done = subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def refuse_foreign_folder(out):
    """Raise ValueError unless `out` is absent, empty, or an earlier build."""
    if not out.exists():
        return
    config = out / "config.json"
    is_build = config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))
    if not out.is_dir() or (any(out.iterdir()) and not is_build):
        raise ValueError(f"{out} is not empty and not an earlier build: choose another folder.")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m hub_repos.build", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument("out", help="folder to write the repository to")
    parser.add_argument("--onnx", action="store_true", help=f"also write the network as {ONNX}")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    build(arguments.checkpoint, arguments.out, onnx=arguments.onnx)
    print(f"Repository: {arguments.out}")
    print(
        "Next: from transformers import pipeline; "
        f'pipeline("image-segmentation", model="{arguments.out}", trust_remote_code=True)("image.jpg")'
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
