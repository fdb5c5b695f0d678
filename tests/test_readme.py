"""The documents: the training loop of training/README.md trains; no committed record names a machine's folder."""

import re
from pathlib import Path

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
