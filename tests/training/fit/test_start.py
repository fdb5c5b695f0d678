"""A run that starts from a checkpoint has its weights where they fit, says where not, and runs no code of it."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hub_unets.training.fit.start import load_start, read_start_config, with_start_fields
from hub_unets.training.records.results import read_history
from hub_unets.training.settings.arguments import parse
from tests.hub_repos.loopback_hub import LoopbackHub
from tests.hub_repos.loopback_repository import Blob, Repository
from tests.training.runs import ROOT, run
from tests.variants import small_config, small_model

READ = """
import json, sys
from tests.variants import small_model
from hub_unets.training.fit.start import load_start
for source in sys.argv[1:]:
    try:
        print(json.dumps(load_start(small_model(), source).record))
    except (ValueError, OSError) as error:
        print(error)
"""
THREE = {0: "background", 1: "polyp", 2: "boundary"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function (variant, encoder, fields) to a folder with config.json and model.safetensors."""

    def save(variant="unet", encoder="plain", **fields):
        folder = tmp_path_factory.mktemp("start")
        torch.manual_seed(1)
        small_model(variant, encoder, **fields).save_pretrained(folder)
        return folder

    return save


def network(folder, variant="unet", **options):
    """A model of other random weights, as a run makes it of the fields that are given."""
    fields = with_start_fields(options, variant, read_start_config(folder))
    torch.manual_seed(2)
    return small_model(variant, **fields)


def drawn(model, folder):
    """The names of a model's tensors that are not the checkpoint's."""
    weights = load_file(folder / "model.safetensors")
    return sorted(name for name, one in model.state_dict().items() if not torch.equal(one, weights.get(name, one + 1)))


def test_the_same_network_is_the_checkpoint_whole(saved):
    folder = saved("unetplusplus", "resnet18", deep_supervision=True, id2label=THREE)
    model = network(folder, "unetplusplus")
    start = load_start(model, str(folder))
    assert drawn(model, folder) == [] and model.config.id2label == THREE
    assert (start.repo_id, start.record) == (None, None)
    of = len([name for name in model.state_dict() if name.startswith("encoder.")])
    assert f"encoder {of} of {of} tensors" in start.summary and "drawn anew" not in start.summary


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_labels": 3}, "num_labels is 3 here and 2"),
        ({"id2label": THREE}, "num_labels is 3 here and 2"),
        ({"binary_head": False}, "binary_head is False here and True"),
    ],
)
def test_other_classes_draw_the_head_anew_and_nothing_else(saved, fields, reason):
    folder = saved(reduction_channels=4)
    model = network(folder, **fields)
    before = model.head.classifier.weight.clone()
    summary = load_start(model, str(folder)).summary
    assert drawn(model, folder) == ["head.classifier.bias", "head.classifier.weight"]
    assert torch.equal(model.head.classifier.weight, before)
    loaded, of = len(model.head.state_dict()) - 2, len(model.head.state_dict())
    assert f"head {loaded} of {of} tensors; the others are drawn anew: model.{reason} there." in summary


def test_a_checkpoint_of_another_variant_gives_its_encoder_and_classes(saved):
    folder = saved("unet", "resnet18", id2label=THREE)
    model = network(folder, "attention_unet", decoder_channels=[16, 8, 8, 8, 8])
    summary = load_start(model, str(folder)).summary
    assert not any(name.startswith("encoder.") for name in drawn(model, folder)) and model.config.id2label == THREE
    assert "decoder 0 of" in summary and "variant is attention_unet here and unet there" in summary
    assert "head.classifier.weight" in drawn(model, folder)


def test_a_field_of_the_recipe_stands_and_what_it_changes_is_said(saved):
    folder = saved()
    model = network(folder, depth=2)
    summary = load_start(model, str(folder)).summary
    assert len(model.encoder.channels) == 3
    assert not any(name.startswith("encoder.") for name in drawn(model, folder))
    assert "model.depth is 2 here and 3 there" in summary


@pytest.mark.parametrize(
    ("variant", "fields", "reason"),
    [
        (
            "unet",
            {"backbone": "resnet34", "decoder_channels": [8] * 5},
            "model.backbone is resnet34 here and None there",
        ),
        ("unet", {"base_channels": 6}, "model.base_channels is 6 here and 4 there"),
        ("resunet", {}, "variant is resunet here and unet there"),
    ],
)
def test_a_checkpoint_that_shares_no_encoder_is_refused_by_both_names(saved, variant, fields, reason):
    folder = saved()
    with pytest.raises(ValueError, match=r"\(unet, plain, 4 channels\) is not that of this run") as refused:
        load_start(network(folder, variant, **fields), str(folder))
    assert reason in str(refused.value) and variant in str(refused.value) and str(folder) in str(refused.value)


@pytest.mark.parametrize("encoder", ["plain", "resnet18"])
def test_other_channels_take_the_stem_of_rgb_as_timm_does(saved, encoder):
    folder = saved("unet", encoder)
    grey, five = network(folder, num_channels=1), network(folder, num_channels=5)
    start = load_start(grey, str(folder))
    assert start.summary.endswith("The weights for 1 channels are made of those for 3.")
    assert "drawn anew" not in start.summary
    stems, weights = drawn(grey, folder), load_file(folder / "model.safetensors")
    assert stems and all(weights[name].shape[1] == 3 for name in stems)
    for name in stems:
        torch.testing.assert_close(grey.state_dict()[name], weights[name].sum(dim=1, keepdim=True))
    load_start(five, str(folder))
    for name in drawn(five, folder):
        torch.testing.assert_close(five.state_dict()[name], weights[name][:, [0, 1, 2, 0, 1]] * 3 / 5)


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


def test_a_pickle_is_refused_and_not_read(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(saved(), folder)
    model = network(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match=r"has no model.safetensors: .* Pickles .* are not read"):
        load_start(model, str(folder))
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_start(model, str(folder))
    assert not (tmp_path / "planted").exists()


def test_code_beside_the_weights_is_not_run(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved(), folder)
    fields = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(fields | {"auto_map": auto_map}))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    model = network(folder)
    assert drawn(model, folder) != []
    load_start(model, str(folder))
    assert drawn(model, folder) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"model_type": "segformer"}', "holds a network of type 'segformer'; it must be .* attention_unet, "),
        ("[]", "holds a network of type 'None'"),
        ('{"model_type": "unet", "depth": "deep"}', "config.json of .*"),
        ('{"model_type": "unet", "padding": "odd"}', "padding must be one of same, valid"),
    ],
)
def test_a_config_that_is_none_of_ours_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"start_from: .*{message}"):
        read_start_config(tmp_path)


def test_what_is_nowhere_is_named():
    with pytest.raises(OSError, match=r"start_from: runs/nowhere is no folder, and the Hub does not give it \("):
        read_start_config("runs/nowhere")


def test_a_hub_id_is_read_at_one_commit(saved, tmp_path):
    """By the Hub's own client: revisions, what is missing, and nothing but the two files."""
    folder, hub = saved(), LoopbackHub()
    names = ("config.json", "model.safetensors", "handler.py")
    (folder / "handler.py").write_text("raise SystemExit('ran')\n")
    files = {name: Blob((folder / name).read_bytes(), lfs=name.endswith("safetensors")) for name in names}
    repository, pickled = hub.repositories.setdefault("someone/unet", Repository()), Repository()
    hub.objects |= {blob.sha256: blob.content for blob in files.values()}
    repository.tags["v2"] = commit = repository.commit(None, files)
    pickled.commit("main", {"config.json": files["config.json"], "pytorch_model.bin": Blob(b"x")})
    hub.repositories["someone/pickled"] = pickled
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", READ, "someone/unet@v2", "someone/unet", "someone/pickled", "someone/nothing"],
        cwd=ROOT,
        env=keep | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    hub.close()
    assert done.returncode == 0, done.stderr
    loaded, on_main, pickle_error, nowhere = done.stdout.splitlines()
    assert json.loads(loaded) == {"repo_id": "someone/unet", "commit": commit}
    assert on_main.startswith("start_from: someone/unet has no config.json")
    assert pickle_error.startswith(f"start_from: someone/pickled@{pickled.branches['main']} has no model.safetensors")
    assert nowhere.startswith("start_from: someone/nothing is no folder, and the Hub does not give it (")
    assert not any(path.endswith((".py", ".bin")) for _, path, _ in hub.requests)


def test_fields_left_out_are_the_checkpoints(saved, tmp_path):
    folder = saved("resunet", "plain", upsample="bilinear", id2label=THREE)
    arguments, model, _, settings = parse(["--start_from", str(folder), "--model.batch_norm", "false"])
    assert arguments.variant == "resunet" and "variant" not in settings
    expected = small_config("resunet", "plain", upsample="bilinear", id2label=THREE, batch_norm=False)
    assert small_config("resunet", "plain", **model).to_dict() == expected.to_dict()
    assert parse(["--start_from", str(folder), "--variant", "unet"])[0].variant == "unet"


def test_two_sources_of_weights_are_refused(saved):
    with pytest.raises(ValueError, match="leave backbone_weights out, got 'weights.safetensors'"):
        parse(["--start_from", str(saved()), "--backbone_weights", "weights.safetensors"])
    assert parse(["--start_from", str(saved()), "--backbone_weights", "timm"])[0].start_from


def test_a_run_goes_on_from_a_run(tmp_path):
    """At a learning rate of 0 and without batch norm nothing moves: validation is the checkpoint's own."""
    assert run(tmp_path / "first", **{"model.batch_norm": "false"}).code == 0
    still = {"learning_rate": 0, "num_train_epochs": 1, "model.base_channels": None, "model.depth": None}
    second = run(tmp_path / "second", start_from=tmp_path / "first", **still)
    assert second.code == 0, second.stderr
    assert "Started from" in second.stdout and "drawn anew" not in second.stdout
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second"))
    assert first["metrics"] == second["metrics"]
    assert second["run"]["settings"]["start_from"] == "first" and second["run"]["started_from"] is None
    losses = {
        entry["epoch"]: entry["eval_loss"] for entry in read_history(tmp_path / "first", first) if "eval_loss" in entry
    }
    (loss,) = [entry["eval_loss"] for entry in read_history(tmp_path / "second", second) if "eval_loss" in entry]
    assert loss == losses[first["run"]["best"]["epoch"]]


def test_a_started_run_that_is_killed_ends_as_one_that_was_not(tmp_path):
    assert run(tmp_path / "first", num_train_epochs=1).code == 0
    changes = {"start_from": tmp_path / "first", "image_size": 48, "model.num_labels": 3, "boundary_width": 3}
    changes |= {"loss.ce": 1}
    assert run(tmp_path / "whole", **changes).code == 0
    assert run(tmp_path / "killed", ("after_step", 4), **changes).code == -9
    ended = run(tmp_path / "killed", **changes)
    assert ended.code == 0 and "Resumed from" in ended.stdout, ended.stderr
    assert "the others are drawn anew: model.num_labels is 3 here and 2 there" in ended.stdout
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
