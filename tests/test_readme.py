"""The documents: the training loop of training/README.md trains; no committed record names a machine's folder."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hub_unets.training import run
from hub_unets.training.data.phantoms import phantom

ROOT = Path(__file__).parents[1]
RESULTS = sorted(ROOT.glob("hub_repos/**/results.json"))


def test_committed_results_name_no_folder_of_a_machine():
    for path in RESULTS:
        assert not re.search(r'"/|[ =]/(home|root|tmp|work|mnt)/', path.read_text(encoding="utf-8"))


def test_the_training_loop_lowers_the_loss(tmp_path, monkeypatch, capsys):
    page = (ROOT / "training/README.md").read_text(encoding="utf-8")
    section = page.split("\n## Train in a loop of your own\n")[1]
    code = re.search(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1]
    for large, small in (("= 64, 128, 10,", "= 8, 64, 6,"), ("base_channels=16", "base_channels=8, depth=2")):
        assert code.count(large) == 1
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "training/README.md", "exec"), {})
    losses = [float(text) for text in re.findall(r"^epoch \d+: loss (.+)$", capsys.readouterr().out, re.MULTILINE)]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    assert {path.name for path in Path("runs/loop").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


def images_and_masks(folder, numbers):
    for part, index in (("images", 0), ("masks", 1)):
        (folder / part).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(phantom(0, number, 64)[index]).save(folder / part / f"{number}.png")


@pytest.mark.parametrize("page", ["README.md", "training/README.md"])
def test_the_commands_for_own_images_fit_them(page, tmp_path, monkeypatch, capsys):
    """Each command line with `my-data` splits the folder that the page describes."""
    own = page != "README.md"
    for folder, numbers in (("train", range(6)), ("test", range(6, 9))) if own else ((".", range(9)),):
        images_and_masks(tmp_path / "my-data" / folder, numbers)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:hub-unets check-data|accelerate launch training/run.py) (.+ my-data .*)$", text, re.M)
    lines = [line for line in lines if "start_from" not in line]
    assert len(lines) == 2
    for line in lines:
        run.main([*shlex.split(line.partition("  #")[0]), "--check_data", "true"])
        assert "train" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_every_local_link_of_the_documents_leads_somewhere():
    pages = [page for page in ROOT.glob("**/README.md") if not {".venv", "runs", "published"} & set(page.parts)]
    pages += [ROOT / "hub_repos/published/README.md", ROOT / "tests/benchmarks/speed.md"]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not link.startswith("http")
    ]
    assert len(links) > 12
    assert [(str(page), link) for page, link in links if not (page.parent / link).exists()] == []


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
