"""The code that a repository holds: the variant's files and what they import, made flat, and who built them."""

import ast
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hub_unets.training.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
NAME = "hub_unets"  # under which the folders are installed
PACKAGES = ("configuration", "modeling")
PROCESSOR_FILE = Path("modeling/image_processing_unet.py")
ENDPOINT_FILE = Path("modeling/handler.py")
REQUIREMENTS = "timm>=1.0.20,<1.1\n"  # what an Inference Endpoint's own environment lacks
MODEL_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
PROCESSOR_CODE = {"AutoImageProcessor": "image_processing_unet.UNetImageProcessor"}


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
    return [Path(*node.module.split(".")[1:]).with_suffix(".py") for node in project_imports(tree, relative)]


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
    """The nodes `from hub_unets.configuration.x import y` and `from hub_unets.modeling.x import y` of a syntax tree.

    Raises:
        UserError: an import of the project that can't be made flat.
    """
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            ours, fits = node.level or parts[0] == NAME, len(parts) == 3 and parts[1] in PACKAGES and not node.level
        else:
            imported = [one.name.split(".")[0] for one in node.names] if isinstance(node, ast.Import) else []
            ours, fits = NAME in imported, False
        if ours and not fits:
            raise UserError(
                f"{path}:{node.lineno}: only `from {NAME}.modeling.x import y`, and the same of configuration, can be "
                "published."
            )
        if ours:
            nodes.append(node)
    return nodes


def flatten(path, of_release):
    """A source file as it is published: imports of the project become siblings, a first line says where it is from."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in sorted(project_imports(ast.parse(source), path), key=lambda node: node.lineno, reverse=True):
        sibling = ast.ImportFrom(module=node.module.split(".")[2], names=node.names, level=1)
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
