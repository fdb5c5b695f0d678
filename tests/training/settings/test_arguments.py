"""Recipes and command lines become settings, and what is misspelt is refused with the nearest name."""

import inspect
import re
from dataclasses import fields

import pytest
import torch
import yaml
from transformers import TrainingArguments

from hub_unets.modeling.variants import find_variant, variant_names
from hub_unets.training.errors import UserError
from hub_unets.training.fit.losses import LOSSES, WeightedSum, parameters
from hub_unets.training.settings import arguments as module
from hub_unets.training.settings import run_arguments
from hub_unets.training.settings.arguments import argument_help, parse
from hub_unets.training.settings.recipes import RECIPES, find_recipe, read_recipe, run_fields
from hub_unets.training.settings.run_arguments import RunArguments, default_precision

BOMB = "\n".join(["a0: &a0 x", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}x]" for n in range(1, 12))])
RECIPE_FILES = sorted(RECIPES.glob("*.yaml"))


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(capsys, *argv):
    """What is printed before the program ends with status 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
class TestEveryRecipe:
    def test_parses_into_a_model_and_a_loss(self, path):
        arguments, model, loss, settings = parse([str(path)])
        config_class, _ = find_variant(arguments.variant)
        assert config_class(**model).model_type == arguments.variant
        WeightedSum(loss)
        assert arguments.output_dir == f"runs/{path.stem}"
        assert set(run_fields(read_recipe(path))) <= set(settings)

    def test_sets_what_it_says(self, path):
        arguments, model, loss, _ = parse([str(path)])
        for name, value in run_fields(read_recipe(path)).items():
            group, _, key = name.partition(".")
            actual = {"model": model, "loss": loss}[group][key] if key else getattr(arguments, name)
            if isinstance(value, dict):
                value = {str(label): item for label, item in value.items()}  # keys are texts on a command line
            if name != "augmentation":  # stays text
                assert actual == (float(value) if isinstance(actual, float) else value), name

    def test_is_found_by_its_name(self, path):
        assert find_recipe(path.stem) == find_recipe(path.name) == path


class TestPrecedence:
    def test_the_command_line_wins(self, tmp_path):
        recipe = write(tmp_path, "learning_rate: 1e-3\nseed: 3\nmodel: {depth: 3, base_channels: 8}\nloss: {dice: 1}")
        arguments, model, loss, settings = parse([recipe, "--seed", "5", "--model.depth=2", "--loss.bce", "0.5"])
        assert (arguments.learning_rate, arguments.seed) == (1e-3, 5)
        assert model == {"depth": 2, "base_channels": 8}
        assert loss == {"dice": 1, "bce": 0.5}
        assert settings == {
            "output_dir": "runs/mine",
            "learning_rate": "1e-3",
            "seed": "5",
            "model.depth": "2",
            "model.base_channels": "8",
            "loss.dice": "1",
            "loss.bce": "0.5",
        }

    def test_the_last_of_a_name_wins_however_it_is_spelt(self):
        arguments, _, _, settings = parse(["--learning_rate", "1", "--learning-rate", "2e-4"])
        assert arguments.learning_rate == 2e-4
        assert settings == {"learning_rate": "2e-4"}

    def test_defaults(self):
        arguments, model, loss, settings = parse([])
        assert (arguments.variant, arguments.split, arguments.split_seed, arguments.seed) == (
            "unet",
            "80/10/10",
            42,
            42,
        )
        assert (arguments.backbone_weights, arguments.image_size, arguments.augmentation) == ("timm", 256, "[]")
        assert not arguments.remove_unused_columns
        assert (model, loss, settings) == ({}, {"bce": 1.0, "dice": 1.0}, {})

    def test_one_loss_named_replaces_the_default(self):
        assert parse(["--loss.dice", "0.5"])[2] == {"dice": 0.5}

    def test_parameters_of_a_loss(self, tmp_path):
        recipe = write(tmp_path, "loss: {dice: 1, focal: 0.5, focal.alpha: 0.8, focal.gamma: 2}")
        _, _, loss, settings = parse([recipe, "--loss.focal.gamma", "3"])
        assert loss == {"dice": 1, "focal": 0.5, "focal.alpha": 0.8, "focal.gamma": 3}
        assert settings["loss.focal.gamma"] == "3" and settings["loss.focal.alpha"] == "0.8"

    def test_a_loss_of_the_recipe_is_switched_off(self, tmp_path):
        recipe = write(tmp_path, "loss: {dice: 1, focal: 0.5, focal.alpha: 0.8}")
        WeightedSum(parse([recipe, "--loss.focal", "0"])[2])

    def test_an_empty_value_keeps_the_default(self, tmp_path):
        arguments, _, _, settings = parse([write(tmp_path, "image_size:\nseed: 1")])
        assert arguments.image_size == 256 and "image_size" not in settings

    def test_null_takes_a_field_of_the_recipe_back(self, tmp_path, capsys):
        path = write(tmp_path, "variant: transunet\nmodel: {hidden_size: 64}\nema_decay: 0.9")
        arguments, model, _, settings = parse(
            [path, "--variant", "unet", "--model.hidden_size", "null", "--ema_decay", "null"]
        )
        assert (arguments.ema_decay, model, settings) == (None, {}, {"variant": "unet", "output_dir": "runs/mine"})
        with pytest.raises(SystemExit):
            parse([path, "--ema_decy", "null"])
        assert "did you mean ema_decay" in capsys.readouterr().err

    def test_output_dir_of_a_recipe_or_the_command_line(self, tmp_path):
        recipe = write(tmp_path, "output_dir: here")
        assert parse([recipe])[0].output_dir == "here"
        assert parse([recipe, "--output_dir", "there"])[0].output_dir == "there"


class TestValues:
    @pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
    def test_small_numbers(self, tmp_path, text):
        assert parse(["--learning_rate", text, "--loss.dice", text])[0].learning_rate == 1e-4
        _, _, loss, _ = parse([write(tmp_path, f"learning_rate: {text}\nloss: {{dice: {text}}}")])
        assert loss == {"dice": 1e-4}

    @pytest.mark.parametrize("values", [[0.5, 0.4, 0.3], [1, 0, 0]])
    def test_lists_of_numbers(self, tmp_path, values):
        texts = [str(value) for value in values]
        assert parse([write(tmp_path, f"image_mean: {values}")])[0].image_mean == values
        assert parse(["--image_mean", *texts])[0].image_mean == values

    @pytest.mark.parametrize("widths", [[8, 6], [8]])
    def test_lists_of_the_model(self, tmp_path, widths):
        assert parse([write(tmp_path, f"model: {{decoder_channels: {widths}}}")])[1] == {"decoder_channels": widths}
        assert parse(["--model.decoder_channels", str(widths)])[1] == {"decoder_channels": widths}

    def test_a_list_of_the_model_in_words(self):
        assert parse(["--model.decoder_channels", "8", "6"])[1] == {"decoder_channels": [8, 6]}

    @pytest.mark.parametrize(("text", "value"), [("null", None), ("resnet18", "resnet18"), ("false", False), ("4", 4)])
    def test_texts_of_the_model_are_read_as_yaml(self, text, value):
        assert parse(["--model.backbone", text])[1] == {"backbone": value}

    def test_names_of_labels(self, tmp_path):
        names = "{0: background, 1: polyp, 2: boundary}"
        recipe = write(tmp_path, f"model: {{num_labels: 3, id2label: {names}}}")
        for argv in [recipe], ["--model.num_labels", "3", "--model.id2label", names]:
            config = find_variant("unet")[0](**parse(argv)[1])
            assert config.id2label == {0: "background", 1: "polyp", 2: "boundary"}

    @pytest.mark.parametrize("text", ["{factor: 0.5, patience: 3, min_lr: 1e-6}", '{"patience": 3, "min_lr": 1e-06}'])
    def test_fields_of_the_scheduler(self, tmp_path, text):
        for argv in [write(tmp_path, f"lr_scheduler_kwargs: {text}")], ["--lr_scheduler_kwargs", text]:
            options = parse(argv)[0].lr_scheduler_kwargs
            assert options.pop("factor", 0.5) == 0.5
            assert options == {"patience": 3, "min_lr": 1e-6}

    def test_augmentation_survives_as_yaml(self, tmp_path):
        spec = [{"Affine": {"rotate": [-90, 90], "balanced_scale": True}}, {"HorizontalFlip": {"p": 0.5}}]
        assert yaml.safe_load(parse([write(tmp_path, f"augmentation: {spec}")])[0].augmentation) == spec

    @pytest.mark.parametrize(
        ("argv", "expected"), [(["--check_data"], True), (["--check_data", "false"], False), ([], False)]
    )
    def test_switches(self, argv, expected):
        assert parse(argv)[0].check_data is expected

    def test_negative_numbers(self):
        assert parse(["--max_steps", "-1", "--seed", "7"])[0].max_steps == -1


class TestFieldsOfTrainingArguments:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("learning_rate", "3e-3", 3e-3),
            ("lr_scheduler_type", "reduce_lr_on_plateau", "reduce_lr_on_plateau"),
            ("seed", "11", 11),
            ("num_train_epochs", "2", 2),
            ("gradient_accumulation_steps", "4", 4),
            ("dataloader_num_workers", "2", 2),
        ],
    )
    def test_taken(self, name, text, value):
        assert getattr(parse([f"--{name}", text])[0], name) == value

    def test_best_epoch_is_the_one_of_the_highest_dice(self):
        arguments = parse([])[0]
        assert isinstance(arguments, TrainingArguments)
        assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("dice", True)


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("learning_rat", "learning_rate"),
            ("image_sice", "image_size"),
            ("model.base_chanels", "model.base_channels"),
            ("model.backbon", "model.backbone"),
            ("loss.dise", "loss.dice"),
            ("loss.focal.gama", "loss.focal.gamma"),
        ],
    )
    def test_refused_with_the_nearest(self, tmp_path, capsys, name, nearest):
        message = f"unknown field {name}; did you mean {nearest}?"
        assert message in refusal(capsys, f"--{name}", "1")
        group, _, key = name.partition(".")
        text = f"{group}: {{{key}: 1}}" if key else f"{name}: 1"
        assert message in refusal(capsys, write(tmp_path, text))

    @pytest.mark.parametrize(
        ("name", "siblings"),
        [
            ("loss.focal.gama", "There are loss.focal.alpha, loss.focal.gamma."),
            ("loss.dise", "There are loss.bce, loss.ce, loss.dice, loss.focal"),
            ("model.backbon", "There are model.num_channels, model.backbone"),
        ],
    )
    def test_what_there_is_beside_it(self, capsys, name, siblings):
        assert siblings in refusal(capsys, f"--{name}", "1")

    @pytest.mark.parametrize("argv", [["--variant", "unett"], ["VARIANT"]])
    def test_variant(self, tmp_path, argv):
        argv = [write(tmp_path, "variant: unett")] if argv == ["VARIANT"] else argv
        with pytest.raises(ValueError, match="variant 'unett' is unknown; did you mean unet[?] There are"):
            parse(argv)

    def test_a_text_with_no_name(self):
        with pytest.raises(ValueError, match="a recipe comes first, then --name value"):
            parse(["-x", "y"])

    @pytest.mark.parametrize("path", RECIPE_FILES[:1], ids=lambda path: path.stem)
    def test_recipe(self, path):
        with pytest.raises(ValueError, match=f"no recipe '{path.stem}x.yaml'; did you mean {path.stem}[?] There are"):
            parse([f"{path.stem}x.yaml"])


class TestWrongValues:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--seed", "many"], "argument --seed: invalid int value: 'many'"),
            (["--learning_rate", "fast"], "argument --learning_rate.*: invalid float value: 'fast'"),
            (["--image_mean", "0.5", "x", "0.5"], "argument --image_mean.*: invalid float value: 'x'"),
            (["--lr_scheduler_type", "cosin"], "argument --lr_scheduler_type.*: invalid choice: 'cosin'"),
            (["--check_data", "perhaps"], "argument --check_data.*perhaps"),
            (["--learning_rate", "1", "2"], "learning_rate takes one value, got 1 2"),
            (["--variant"], "argument --variant: expected one argument"),
            (["--model.depth", "deep"], "model.depth must be of type int, got 'deep'"),
            (["--model.depth", "2.5"], "model.depth must be of type int, got 2.5"),
            (["--model.padding", "1"], "model.padding must be of type str, got 1"),
            (["--model.batch_norm", "1"], "model.batch_norm must be of type bool, got 1"),
            (["--model.num_labels", "two"], "model.num_labels must be of type int, got 'two'"),
            (
                ["--model.num_labels", "3", "--model.id2label", "{0: none, 1: polyp}"],
                "model.id2label has 2 names, model.num_labels is 3: leave one of them out",
            ),
            (
                ["--model.num_labels", "3", "--model.binary_head", "true"],
                "model.binary_head needs exactly 2 labels, got 3: leave it out",
            ),
            (["--loss.dice", "much"], "loss.dice must be a weight of at least 0, got 'much'"),
            (
                ["--loss.focal", "1", "--loss.focal.gamma", "x"],
                "loss.focal.gamma must be a number of at least 0, got 'x'",
            ),
            (["--loss.focal.gamma", "2"], "loss.focal.gamma has no effect without a weight: set loss.focal too"),
            (["--loss.dice", "0"], "loss needs at least one of .* with a positive weight"),
        ],
    )
    def test_type(self, capsys, argv, message):
        assert re.search(message, refusal(capsys, *argv))

    @pytest.mark.parametrize("text", ["0.5", "factor=0.5", "[0.5]"])
    def test_fields_of_the_scheduler(self, text):
        with pytest.raises(ValueError, match="lr_scheduler_kwargs must map names to values, as in .*, got '"):
            parse(["--lr_scheduler_kwargs", text])

    @pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1"])
    def test_ema_decay(self, value):
        with pytest.raises(ValueError, match=f"ema_decay must lie between 0 and 1, got {float(value)}"):
            parse(["--ema_decay", value])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1", "mine.yaml is not YAML"),
            ("- a\n- b", "mine.yaml must map names to values"),
            ("just text", "mine.yaml must map names to values"),
            ("model: resnet50", "mine.yaml: model must map names to values, got 'resnet50'"),
            ("loss: [dice]", "mine.yaml: loss must map names to values"),
        ],
    )
    def test_recipe(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            parse([write(tmp_path, text)])

    def test_recipe_of_bytes(self, tmp_path):
        (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(ValueError, match="mine.yaml is not YAML"):
            parse([str(tmp_path / "mine.yaml")])


class TestAbsurdRecipes:
    """No recipe ends in a traceback, or takes time or memory out of proportion to its length."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: " + "[" * 3000 + "]" * 3000, "mine.yaml is nested too deeply, or within itself"),
            ("a: &a {b: *a}", "mine.yaml is nested too deeply, or within itself"),
            (BOMB, "mine.yaml stands for more than 100000 values: write it without aliases"),
            ("recipe: " + "x" * 5000, "no recipe 'xxx"),
            ("seed: " + "9" * 6000, "mine.yaml is not YAML"),
            ("seed: 2001-99-99", "mine.yaml is not YAML"),
            ("a: " + "x" * 100_000, "mine.yaml has 100003 bytes, a recipe at most 100000"),
            ("1: 2", "mine.yaml: a name must be text, got 1"),
            ("recipe: [a]", r"mine.yaml: recipe must be the name or the path of another one, got \['a'\]"),
            ("model: {depth: 1000000}", "model.depth must be at most 64, got 1000000"),
            ("model: {depth: 30}", "model.base_channels=64 doubles model.depth=30 times, above 8192 channels"),
            ("model: {base_channels: 1000000000}", "model.base_channels must be at most 8192, got 1000000000"),
            ("model: {decoder_channels: [16, 100000, 8, 4]}", "model.decoder_channels must be at most 8192, got"),
            ("model: {decoder_channels: true}", "can't be described by model.decoder_channels=True"),
            ("model: {decoder_channels: [16, null]}", "model.decoder_channels must list whole numbers, got"),
            ("model: {num_labels: 256}", "model.num_labels must be at most 255, got 256"),
            ("{variant: transunet, model: {num_hidden_layers: 65}}", "model.num_hidden_layers must be at most 64"),
            ("image_size: 1000000000", "image_size must lie between 1 and 16384, got 1000000000"),
            ("train_size: 0", "train_size must lie between 1 and 16384, got 0"),
            ("first_train_size: 64\ntrain_size: 64", "first_train_size=64 grows to train_size"),
            ("first_train_size: 64\nmax_steps: 5", "first_train_size grows by epochs"),
            ("augmentation: '[{'", "augmentation is not YAML"),
        ],
    )  # fmt: skip
    def test_refused(self, tmp_path, text, message):
        with pytest.raises(UserError, match=message):
            parse([write(tmp_path, text)])

    def test_aliases_and_a_byte_order_mark_are_read(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("image_mean: &three [0.5, 0.5, 0.5]\nimage_std: *three", encoding="utf-8-sig")
        arguments = parse([str(path)])[0]
        assert arguments.image_mean == arguments.image_std == [0.5] * 3

    def test_a_value_that_looks_like_an_option_is_a_value(self, tmp_path):
        assert parse([write(tmp_path, "data: --help\nmask_column: -x")])[0].data == "--help"


class TestRecipeOnAnother:
    """recipe: NAME takes another's fields and changes some."""

    BASE = "variant: resunet\nseed: 3\nmodel: {depth: 2, base_channels: 8}\nloss: {bce: 1, dice: 1}\ngrid: {seed: [1]}"

    def read(self, tmp_path, text):
        (tmp_path / "base.yaml").write_text(self.BASE, encoding="utf-8")
        return read_recipe(write(tmp_path, f"recipe: base.yaml\n{text}"))

    def test_fields_of_both(self, tmp_path):
        recipe = self.read(tmp_path, "seed: 4\nmodel: {depth: 3}")
        assert recipe == {
            "variant": "resunet", "seed": 4, "model.depth": 3, "model.base_channels": 8,
            "loss.bce": 1, "loss.dice": 1, "grid.seed": [1],
        }  # fmt: skip

    def test_a_loss_or_grid_takes_the_place_of_the_whole(self, tmp_path):
        recipe = self.read(tmp_path, "loss: {dice: 0.5}\ngrid: {model.depth: [1]}")
        assert {name for name in recipe if "." in name} == {
            "model.depth", "model.base_channels", "loss.dice", "grid.model.depth"
        }  # fmt: skip

    def test_one_that_comes_with_the_project(self, tmp_path):
        recipe = read_recipe(write(tmp_path, "recipe: unet_phantoms\nseed: 9"))
        assert recipe == read_recipe(RECIPES / "unet_phantoms.yaml") | {"seed": 9}

    def test_circles_are_refused(self, tmp_path):
        (tmp_path / "a.yaml").write_text("recipe: b.yaml", encoding="utf-8")
        (tmp_path / "b.yaml").write_text("recipe: a.yaml", encoding="utf-8")
        with pytest.raises(ValueError, match="a.yaml stands on itself"):
            read_recipe(tmp_path / "a.yaml")

    def test_an_unknown_one_names_the_nearest(self, tmp_path):
        with pytest.raises(ValueError, match="no recipe 'unet_phantom'; did you mean unet_phantoms"):
            read_recipe(write(tmp_path, "recipe: unet_phantom"))

    def test_a_run_takes_no_notice_of_a_sweeps_fields(self, tmp_path):
        text = "trials: 3\nrank_within: [variant]\nspace: {seed: {low: 1, high: 2}}\nseed: 5"
        arguments, _, _, settings = parse([write(tmp_path, text)])
        assert arguments.seed == 5 and set(settings) == {"seed", "output_dir"}


class TestPrecision:
    @pytest.mark.parametrize(
        ("precision", "bf16", "fp16"), [("fp32", False, False), ("bf16", True, False), ("fp16", False, True)]
    )
    def test_named(self, precision, bf16, fp16):
        arguments = parse(["--precision", precision])[0]
        assert (arguments.bf16, arguments.fp16) == (bf16, fp16)

    @pytest.mark.parametrize(("cpu_has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
    def test_auto_on_a_cpu(self, monkeypatch, cpu_has_bf16, expected):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_has_bf16)
        assert default_precision(use_cpu=True) == expected
        arguments = parse(["--use_cpu", "true"])[0]
        assert (arguments.bf16, arguments.fp16) == (expected == "bf16", False)

    @pytest.mark.parametrize(("gpu_has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
    def test_auto_on_a_gpu(self, monkeypatch, gpu_has_bf16, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_bf16)
        assert default_precision(use_cpu=False) == expected

    def test_unknown(self):
        with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16, got 'fp8'"):
            parse(["--precision", "fp8"])

    @pytest.mark.parametrize("argv", [["--fp16", "true", "--precision", "fp32"], ["--bf16", "--precision", "fp16"]])
    def test_a_switch_of_the_trainer_that_disagrees(self, argv):
        with pytest.raises(
            ValueError, match="bf16 and fp16 follow from precision, fp[0-9]+ here: set precision alone"
        ):
            parse(argv)

    def test_without_a_gpu_the_cpu_is_used_and_nothing_is_pinned(self, monkeypatch):
        for backend in (torch.cuda, torch.backends.mps):
            monkeypatch.setattr(backend, "is_available", lambda: False)
        monkeypatch.setattr(run_arguments, "_is_xpu_available", lambda: False)
        arguments = parse([])[0]
        assert arguments.use_cpu and not arguments.dataloader_pin_memory


class TestHelp:
    @pytest.mark.parametrize("variant", variant_names())
    def test_lists_everything_with_an_explanation(self, variant):
        config_class, _ = find_variant(variant)
        parser = module._parser(config_class)
        helps = {name: action.help for name, action in parser._option_string_actions.items()}
        names = [field.name for field in fields(RunArguments) if field.init]
        names += [f"loss.{name}" for name in LOSSES]
        names += [f"loss.{name}.{parameter}" for name in LOSSES for parameter in parameters(name)]
        names += [f"model.{name}" for name in config_fields(config_class)]
        missing = [name for name in names if len((helps.get(f"--{name}") or "").split("(default")[0].split()) < 2]
        assert not missing

    @pytest.mark.parametrize("variant", variant_names())
    def test_config_fields_are_explained_by_their_class(self, variant):
        config_class, _ = find_variant(variant)
        explained = argument_help(config_class)
        assert not [name for name in config_fields(config_class) if len(explained.get(name, "")) < 10]

    @pytest.mark.parametrize("argv", [["--help"], ["-h"], ["RECIPE", "--help"]])
    def test_is_printed_and_ends_the_program(self, capsys, argv):
        argv = [RECIPE_FILES[0].stem if text == "RECIPE" else text for text in argv]
        with pytest.raises(SystemExit) as stopped:
            parse(argv)
        assert not stopped.value.code
        printed = capsys.readouterr().out
        for name in ("--learning_rate", "--split_seed", "--model.base_channels", "--loss.focal.gamma", "--precision"):
            assert f"{name} " in printed
        assert re.search(
            r"width of the plain path at full resolution; doubles at\s+each level. \(default: 64\)", printed
        )


def config_fields(config_class):
    return [name for name in inspect.signature(config_class.__init__).parameters if name not in ("self", "kwargs")]
