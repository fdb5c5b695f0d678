"""The wheel: one import name, every data file, and, away from the checkout, a run that is built, verified and used.

`WHEEL_PYTHON` is the interpreter of another environment, that of the lowest versions that pyproject.toml allows.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from hub_unets.training.data.phantoms import phantom
from tests.training.runs import SERVER_ENVIRONMENT, arguments

ROOT = Path(__file__).parents[1]
FOLDERS = "configuration", "modeling", "training", "hub_repos", "tests/benchmarks"
FILES = "pyproject.toml", "README.md", "LICENSE"
GENERATED = shutil.ignore_patterns("__pycache__", "repository", "published")
OTHER = os.environ.get("WHEEL_PYTHON")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy of what is committed, so that no earlier build's files get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "hub_repos/repository", folder / "project/hub_repos/repository")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "project" / name, ignore=GENERATED, dirs_exist_ok=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "project")
    command = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", folder]
    subprocess.run([sys.executable, "-m", "pip", *command, folder / "project"], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment with the wheel; its other packages are those of WHEEL_PYTHON, or of these tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([OTHER or sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/*/site-packages")
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    other_packages = (
        subprocess.check_output([OTHER, "-c", code], text=True).strip() if OTHER else sysconfig.get_path("purelib")
    )
    (packages / "others.pth").write_text(f"{other_packages}\n")
    command = ["--python", folder / "bin/python", "install", "-q", "--no-deps", "--ignore-installed", wheel]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    return folder / "bin"


def run(installed, folder, *command):
    """What a command of the environment prints, run in `folder`, far from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SERVER_ENVIRONMENT
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "ignore"}
    program, *options = command
    process = subprocess.run(
        [installed / program, *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    return process.stdout


def test_it_holds_one_name_and_every_data_file(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"hub_unets"}
    source_files = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS[:4]
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "published"} & set(path.parts)
    }
    documents = {name for name in source_files if name.endswith((".md", ".svg", ".png"))} - {
        "hub_repos/publish/space_app/README.md",
        "hub_repos/publish/space_page/README.md",
        "hub_repos/publish/dataset_card.md",
    }
    assert source_files - documents == {
        name.removeprefix("hub_unets/") for name in names if "/benchmarks/" not in name
    }


@pytest.mark.long
def test_a_run_is_trained_built_verified_and_used(installed, tmp_path):
    code = "import hub_unets.training.run as run; print(run.__file__)"
    assert Path(run(installed, tmp_path, "python", "-c", code).strip()).is_relative_to(installed.parent)
    tiny = arguments("runs/tiny", num_train_epochs=1, data="phantoms?count=10&size=64&seed=0")
    assert "Results, weights and pictures: runs/tiny" in run(installed, tmp_path, "hub-unets", "train", *tiny)
    assert run(installed, tmp_path, "hub-unets", "build", "runs/tiny", "repository").startswith("Repository: ")
    verified = run(installed, tmp_path, "hub-unets", "verify", "repository")
    assert "ok   pipeline" in verified and "checks passed." in verified
    Image.fromarray(phantom(0, 0, 64)[0]).save(tmp_path / "image.png")
    predict = ("predict", "repository", "image.png", "predictions", "--trust_remote_code", "true")
    assert "1 images, " in run(installed, tmp_path, "hub-unets", *predict)
    assert (tmp_path / "predictions/masks/image.png").exists()
