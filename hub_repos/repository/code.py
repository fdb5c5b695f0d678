"""The code of a repository: flat copies of the variant's files and their imports, and the release that built them."""

import ast
import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hub_unets.training.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
NAME = "hub_unets"  # under which the folders are installed
PACKAGES = ("configuration", "modeling")
PROCESSOR_FILE = Path("modeling/image_processing_unet.py")
ENDPOINT_FILE = Path("modeling/handler.py")
REQUIREMENTS = "timm>=1.0.24,<1.1\n"  # the package that an Inference Endpoint's environment lacks
MODEL_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
PROCESSOR_CODE = {"AutoImageProcessor": "image_processing_unet.UNetImageProcessor"}


def remote_code(config_class, model_class):
    """The entries of config.json about the code: a file and class for each Auto class, and the pipeline."""
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


def copy_code(model_type, folder):
    """Write flat copies: modeling file, processor with pipeline, what they import, and the endpoint's two files."""
    for relative in code_files(model_type):
        source = flatten(PROJECT / relative) + indirect_imports(relative)
        (folder / relative.name).write_text(source, encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")


def code_files(model_type):
    """Paths, relative to the project, of every file that a variant's repository needs; sorted."""
    return with_imports([Path(f"modeling/modeling_{model_type}.py"), PROCESSOR_FILE, ENDPOINT_FILE])


def with_imports(paths):
    """These files, relative to the project, and all project files that they import at any depth; sorted."""
    queue, files = list(paths), set()
    while queue:
        relative = queue.pop()
        if relative not in files:
            files.add(relative)
            queue += direct_imports(relative)
    return sorted(files)


def direct_imports(relative):
    """The project's files that a file imports directly."""
    tree = ast.parse((PROJECT / relative).read_text(encoding="utf-8"))
    return [Path(*node.module.split(".")[1:]).with_suffix(".py") for node in project_imports(tree, relative)]


def indirect_imports(relative):
    """Lines that import the files which a file needs only through others; they define nothing but `_`.

    From a local folder, transformers 4.57 to 5.5 copy only the files that the file in question imports directly.
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
            is_project = node.level or parts[0] == NAME
            is_flat = len(parts) == 3 and parts[1] in PACKAGES and not node.level
        else:
            imported = [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []
            is_project, is_flat = NAME in imported, False
        if is_project and not is_flat:
            raise UserError(
                f"{path}:{node.lineno}: only `from {NAME}.modeling.x import y`, and the same of configuration, can be "
                "published."
            )
        if is_project:
            nodes.append(node)
    return nodes


def flatten(path):
    """A source file as published: the project's imports become relative, and a first line names file and release."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in sorted(project_imports(ast.parse(source), path), key=lambda node: node.lineno, reverse=True):
        sibling = ast.ImportFrom(module=node.module.split(".")[2], names=node.names, level=1)
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + ast.unparse(sibling) + "\n"]
    relative = path.relative_to(PROJECT).as_posix()
    return f"# {relative} of hub-unets {release()}; Apache-2.0\n" + "".join(lines)


def release():
    """The installed version of hub-unets, which verify compares: `unreleased` where it is not installed."""
    try:
        return version("hub-unets")
    except PackageNotFoundError:
        return "unreleased"


def code_digest(folder):
    """The sha256 of what `sha256sum` prints of a repository's code files and requirements.txt, sorted by name."""
    paths = sorted([*folder.glob("*.py"), folder / "requirements.txt"], key=lambda path: path.name)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def head_commit():
    """The checkout's commit; None outside of one, and where its published code has changed since."""
    commit = _git("rev-parse", "HEAD")
    return commit if commit and _git("status", "--porcelain", "--", *PACKAGES) == "" else None


def changed_since(commit, model_type):
    """The first file of a variant's code that is not as it was at a commit; None where all are.

    Raises:
        LookupError: this is no checkout, or one that does not know the commit.
    """
    if _git("cat-file", "-t", commit) != "commit":
        raise LookupError(commit)
    paths = [path.as_posix() for path in code_files(model_type)]
    names = _git("diff", "--name-only", "--no-ext-diff", "--no-textconv", commit, "--", *paths)
    if names is None:
        raise LookupError(commit)
    return names.splitlines()[0] if names else None


def _git(*arguments):
    """What git prints of this checkout; None outside of one, and where it fails."""
    if not (PROJECT / ".git").exists():
        return None
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1"}
    command = ["git", "-C", str(PROJECT), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return process.stdout.strip() if process.returncode == 0 else None
