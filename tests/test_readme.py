"""The README's figures are those of the committed results, and its training loop trains."""

import re
from pathlib import Path

import pytest

from training.results import read_results

ROOT = Path(__file__).parents[1]
RESULTS = sorted(ROOT.glob("hub_repos/*/results.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_part_of_committed_results_stands_in_the_readme(path):
    results = read_results(path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for part, metrics in results["metrics"].items():
        start = f"| `{path.parent.name}` | {part.replace('_', ' ')} |"
        row = next(line for line in readme.splitlines() if line.startswith(start)).removeprefix(start)
        shown = [metrics["images"]]
        for kind, metric in (("per_image", "dice"), ("per_image", "iou"), ("pooled", "dice")):
            shown += [metrics[kind][metric][bound] for bound in ("value", "low", "high")]
        shown += [metrics["per_image"][metric]["value"] for metric in ("precision", "recall")]
        numbers = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", row)]
        assert numbers == [round(number, 4) for number in shown]
    assert results["data"]["sha256"][:8] in readme


def test_committed_results_name_no_folder_of_a_machine():
    for path in RESULTS:
        assert not re.search(r'"/|[ =]/(home|root|tmp|work|mnt)/', path.read_text(encoding="utf-8"))


def test_the_training_loop_lowers_the_loss(tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Train in a loop of your own\n")[1]
    code = re.search(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1]
    for large, small in (("= 64, 128, 10,", "= 8, 64, 6,"), ("base_channels=16", "base_channels=8, depth=2")):
        assert code.count(large) == 1
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    losses = [float(text) for text in re.findall(r"^epoch \d+: loss (.+)$", capsys.readouterr().out, re.MULTILINE)]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    assert {path.name for path in Path("runs/loop").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
