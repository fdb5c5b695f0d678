"""LICENSE, notebook.ipynb, .eval_results and requirements.txt of a repository, and what verify says of forged ones."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from packaging.requirements import Requirement
from PIL import Image

from hub_unets.hub_repos.checks.companions import check_companions
from hub_unets.hub_repos.checks.verification import run_static
from hub_unets.hub_repos.publish.publication import require_publishable
from hub_unets.hub_repos.repository.builder import build, write_companions, write_manifest
from hub_unets.hub_repos.repository.card import render_card
from hub_unets.hub_repos.repository.eval_results import EVAL_RESULTS, eval_results_text
from hub_unets.hub_repos.repository.licence import LICENCE, licence_text
from hub_unets.hub_repos.repository.notebook import NOTEBOOK, notebook_text
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import load_model
from hub_unets.training.records.results import check_results

ROOT = Path(__file__).parents[3]
DATASET = ("someone/kvasir-seg-official", "ab" * 20)


@pytest.fixture
def results(repository):
    return json.loads((repository / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    """A repository whose data set is on the Hub."""
    folder = tmp_path_factory.mktemp("published") / "repository"
    build(checkpoint, folder, "someone/unet", "v2", dataset=DATASET)
    return folder


def code_cells(text):
    notebook = json.loads(text)
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("kvasir-seg", "80/10/10", "prior written permission of the data set's authors"),
        ("archive.zip", "official", "prior written permission of the data set's authors"),
        ("phantoms?count=6", "own", "are licensed as the code is"),
        ("my-clinic", "half-validation", "were trained on my-clinic. Its terms are not known"),
    ],
)
def test_the_licence_has_the_weights_terms_and_the_codes(results, source, split, said):
    results["data"] |= {"source": source, "split": split}
    text = " ".join(licence_text(results).split())
    assert said in text and "Apache License, Version 2.0" in text
    assert text.index("The weights") < text.index("The code")
    results["data"]["extra"] = [{"source": "clinicdb", "split": "clinicdb", "images": 546, "sha256": "0" * 64}]
    assert "trained on clinicdb as well, whose terms hold for them too" in licence_text(results)
    results["run"]["started_from"] = {"repo_id": "someone/unet", "commit": "cd" * 20}
    assert f"started from someone/unet, commit {'cd' * 20}" in licence_text(results)


def test_the_notebook_has_the_form_of_nbformat(repository):
    for text in ((repository / NOTEBOOK).read_text(encoding="utf-8"), notebook_text("A title", "someone/unet", "v2")):
        notebook = json.loads(text)
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert notebook["metadata"]["kernelspec"].keys() == {"display_name", "language", "name"}
        names = [cell["id"] for cell in notebook["cells"]]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
        for cell in notebook["cells"]:
            wanted = {"cell_type", "id", "metadata", "source"}
            if cell["cell_type"] == "code":
                wanted |= {"execution_count", "outputs"}
                assert cell["execution_count"] is None and cell["outputs"] == []
            assert cell.keys() == wanted and all(isinstance(line, str) for line in cell["source"])
    assert (
        'AutoModel.from_pretrained("someone/unet", revision="v2", trust_remote_code=True)' in code_cells(text)["load"]
    )
    assert "MODEL" not in text and text.count('"someone/unet\\", revision=\\"v2\\"') == text.count("someone/unet") == 3


def test_the_notebook_runs_from_top_to_bottom(checkpoint, repository, monkeypatch, modules_cache, capsys):
    cells = code_cells((repository / NOTEBOOK).read_text(encoding="utf-8"))
    assert re.fullmatch(r"%pip install -q [a-z ]+", cells.pop("install"))
    monkeypatch.chdir(repository)
    names = {}
    for source in cells.values():
        exec(source, names)  # noqa: S102
    model, processor = load_model(checkpoint)
    image = Image.open(repository / "example.png")
    with torch.inference_mode():
        logits = model(**processor(image)).logits
    mask = processor.post_process_semantic_segmentation(logits, [image.size[::-1]])[0]
    assert torch.equal(names["mask"], mask) and 0 < mask.sum() < mask.numel()
    assert f"{(mask > 0).float().mean():.1%} of the image is marked" in capsys.readouterr().out
    both = names["both"]
    assert both.size == (2 * image.width, image.height)
    before, after = np.split(np.asarray(both), 2, axis=1)
    assert np.array_equal(before, np.asarray(image))
    assert np.array_equal((after != before).any(axis=-1), mask.numpy() > 0)


def test_the_figures_are_in_the_hubs_own_form(published):
    results = json.loads((published / "results.json").read_text(encoding="utf-8"))
    check_results(results)
    text = (published / EVAL_RESULTS).read_text(encoding="utf-8")
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert [(entry.dataset_id, entry.dataset_revision, entry.task_id) for entry in entries] == [(*DATASET, "own")]
    dice = results["metrics"]["test"]["per_image"]["dice"]["value"]
    assert entries[0].value == round(dice, 4) and entries[0].source_url.endswith("someone/unet/blob/v2/per_image.csv")
    results["metrics"]["test_without_twins"] = results["metrics"]["test"]
    both = parse_eval_result_entries(yaml.safe_load(eval_results_text(results)))
    assert [entry.task_id for entry in both] == ["own", "own-without-twins"] and both[0].source_url is None
    assert "&id" not in eval_results_text(results, "someone/unet")  # no alias
    del results["metrics"]["test"], results["metrics"]["test_without_twins"]
    assert eval_results_text(results) is None


def test_the_card_names_the_data_set_and_its_revision(published, repository):
    card = (published / "README.md").read_text(encoding="utf-8")
    repo_id, revision = DATASET
    assert f"[{repo_id}](https://huggingface.co/datasets/{repo_id}/tree/{revision}), revision `{revision}`" in card
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["datasets"] == [repo_id]
    assert {(figure["dataset"]["type"], figure["dataset"]["revision"]) for figure in figures(metadata)} == {DATASET}
    assert not (repository / ".eval_results").exists() and "datasets/" not in (repository / "README.md").read_text()


def figures(metadata):
    return [result for model in metadata["model-index"] for result in model["results"]]


def test_a_paper_is_a_link(results, repository):
    results["data"] |= {"source": "kvasir-seg", "split": "official"}
    card = render_card(repository, results)
    assert re.findall(r"(?<!\[)arXiv:\d", card) == []
    assert card.count("(https://arxiv.org/abs/1911.07069)") == card.count("(https://arxiv.org/abs/1505.04597)") == 1


def test_every_companion_is_verified_to_the_byte(published, tmp_path):
    assert check_companions(published) is None
    require_publishable(published)
    failed = {}
    for name in (LICENCE, NOTEBOOK, EVAL_RESULTS):
        for change in ("changed", "missing"):
            folder = shutil.copytree(published, tmp_path / f"{Path(name).name}-{change}")
            if change == "missing":
                (folder / name).unlink()
            else:
                (folder / name).write_text((folder / name).read_text(encoding="utf-8").replace("0", "9", 1) + " ")
            (folder / "manifest.json").unlink()
            write_manifest(folder)
            (failed[name, change],) = [check for check in run_static(folder) if not check.passed]
    assert {check.name for check in failed.values()} == {"licence and notebook"}
    assert failed[LICENCE, "missing"].reason == "LICENSE is missing"
    assert failed[EVAL_RESULTS, "changed"].reason.startswith(".eval_results/test.yaml is not what the release makes")


def test_figures_without_a_data_set_on_the_hub_are_refused(repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "repository")
    (folder / ".eval_results").mkdir()
    (folder / EVAL_RESULTS).write_text("[]\n")
    with pytest.raises(UserError, match="test.yaml is there, and results.json gives none"):
        check_companions(folder)


@pytest.mark.parametrize("name", [".eval_results/other.yaml", ".hidden/test.yaml", ".eval_results/.hidden"])
def test_no_other_hidden_file_is_taken(name, published, tmp_path):
    from hub_unets.hub_repos.checks.static import copy_files

    folder = shutil.copytree(published, tmp_path / "repository")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(UserError, match="is no file that hub-unets builds"):
        copy_files(folder, tmp_path / "copy")
    if name != ".eval_results/other.yaml":
        with pytest.raises(UserError, match="is never published"):
            require_publishable(folder)


def test_results_json_of_another_commit_makes_other_companions(published, results, tmp_path):
    folder = shutil.copytree(published, tmp_path / "repository")
    write_companions(folder, results, "someone/unet", "v3")
    with pytest.raises(UserError, match="notebook.ipynb is not what the release makes"):
        check_companions(folder)


def test_the_requirements_admit_what_is_tested_and_name_all_that_is_imported(repository):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", pins, re.MULTILINE))
    needed = {one.name: one for one in map(Requirement, (repository / "requirements.txt").read_text().split())}
    assert needed and all(one.specifier.contains(tested[name]) for name, one in needed.items())
    for path in repository.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        foreign = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
        stock = {"torch", "torchvision", "transformers", "numpy", "PIL"}  # of an Inference Endpoint's own image
        asked_for = {"pydicom", "tifffile"}  # where a file is of their kind
        assert foreign <= {*needed, *stock, *asked_for}, path.name
