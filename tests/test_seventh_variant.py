"""A new variant is three new files: those of modeling/README.md, in a copy of the project, trained, built, loaded."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import SERVER_ENVIRONMENT, arguments

ROOT = Path(__file__).parents[1]
FOLDERS = ("configuration", "modeling", "training", "hub_repos", "tests")
NEW = {"configuration/configuration_se_unet.py", "modeling/modeling_se_unet.py", "training/recipes/se_unet.yaml"}
COMMON_TESTS = (  # they exist for every name that variant_names() finds
    "configuration/test_configuration_variants.py::test_every_field_is_read_by_the_code_of_the_variant[se_unet]",
    "modeling/test_model_variants.py::test_logits_have_the_size_of_the_input[size1-plain-se_unet]",
    "modeling/test_model_variants.py::test_every_parameter_receives_a_gradient[plain-se_unet]",
)


def readme_files():
    """Path to text of the code blocks under "Add a variant"; a block's first line names its file."""
    section = (
        (ROOT / "modeling/README.md").read_text(encoding="utf-8").split("\n## Add a variant\n")[1].split("\n## ")[0]
    )
    return {
        path: text for text, path in re.findall(r"^```\w+\n(# (\S+)\n.*?)^```$", section, re.DOTALL | re.MULTILINE)
    }


def digests(project):
    """Path to sha256 of every file of the project's folders."""
    files = [path for folder in FOLDERS for path in (project / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def python(project, *command):
    """Run this interpreter in the copy; its output."""
    environment = os.environ | SERVER_ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HF_DATASETS_CACHE": str(project.parent / "cache"), "PYTHONPATH": str(project.parent / "names")}
    process = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return process.stdout


@pytest.mark.long
def test_a_seventh_variant_is_three_new_files(tmp_path):
    project = tmp_path / "project"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", project)
    for name, folder in {**{name: name for name in FOLDERS[:4]}, "benchmarks": "tests/benchmarks"}.items():
        installed = tmp_path / "names" / "hub_unets" / name  # as an install of the copy would name it
        installed.parent.mkdir(parents=True, exist_ok=True)
        installed.symlink_to(project / folder)
    before = digests(project)
    for path, text in readme_files().items():
        (project / path).write_text(text, encoding="utf-8")
    tiny = arguments("runs/se_unet", num_train_epochs=1, data="phantoms?count=8&size=64&seed=0")
    assert "Results, weights and pictures: runs/se_unet" in python(project, "training/run.py", "se_unet", *tiny)
    python(project, "-m", "hub_unets.hub_repos.cli", "build", "runs/se_unet", "runs/repository")
    verified = python(project, "-m", "hub_unets.hub_repos.cli", "verify", "runs/repository")
    assert "ok   logits" in verified and "FAIL" not in verified
    python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in COMMON_TESTS))
    after = digests(project)
    assert after.keys() - before.keys() == NEW
    assert {path: after[path] for path in before} == before
