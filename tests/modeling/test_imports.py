"""Published files import a model's libraries and one another, and nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("configuration/*.py"), *ROOT.glob("modeling/*.py")])
LIBRARIES = {"PIL", "numpy", "timm", "torch", "torchvision", "transformers"}
STANDARD = {
    "abc", "base64", "collections", "contextlib", "dataclasses", "difflib", "enum", "functools", "importlib",
    "inspect", "io", "itertools", "math", "numbers", "operator", "pathlib", "typing", "warnings", "zipfile", "zlib",
}  # fmt: skip
OPTIONAL = {"pydicom", "tifffile"}  # inside of `try:` alone, with an error that names the package
OURS = ("hub_unets.configuration.", "hub_unets.modeling.")


def foreign_imports(source):
    """The import lines of a source that name any other module."""
    statements, tree = [], ast.parse(source)
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            optional = OPTIONAL if id(node) in guarded else set()
            allowed = all(alias.name.split(".")[0] in LIBRARIES | STANDARD | optional for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            allowed = not node.level and (
                module.split(".")[0] in LIBRARIES | STANDARD or (module.startswith(OURS) and module.count(".") == 2)
            )
        else:
            continue
        if not allowed:
            statements.append(ast.unparse(node))
    return statements


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_files_import_only_allowed_libraries(path):
    assert foreign_imports(path.read_text(encoding="utf-8")) == []


def test_a_new_variant_may_use_all_of_its_libraries():
    source = """
import math
from collections import OrderedDict
import torch
import torch.nn.functional as F
from torch import nn
from hub_unets.modeling.layers import ConvNormReLU
from hub_unets.configuration.configuration_unet import UNetConfig
norm, product = nn.GroupNorm(2, 4), torch.einsum("bij,bjk->bik", a, b)
x = F.gelu(torch.arange(4.0))
"""
    assert foreign_imports(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import pydicom",
        "try:\n    import dicom\nexcept ImportError:\n    pass",
        "import subprocess",
        "import math, socket",
        "from urllib.request import urlopen",
        "import hub_unets",
        "from hub_unets.training.errors import UserError",
        "from hub_unets.modeling import layers",
        "from hub_unets.modeling.a.b import c",
        "from . import layers",
        "from .layers import x",
        "import torchmetrics",
        "def f():\n    import requests",
    ],
)
def test_any_other_import_is_found(line):
    assert len(foreign_imports(f"import torch\n{line}\n")) == 1
