"""The model card, rendered from results.json alone."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_unets.hub_repos.repository import marks
from hub_unets.hub_repos.repository.example import EXAMPLE, example_name
from hub_unets.hub_repos.repository.notebook import load_arguments
from hub_unets.modeling.variants import find_variant
from hub_unets.training.records.locks import is_seen_before
from hub_unets.training.records.results import read_history, scored_part

TEMPLATE = Path(__file__).with_name("card.md.jinja")
KVASIR_SPLITS = ("official", "official-halved", "pranet")  # lists of Kvasir's file stems: no other source fits them
KVASIR_COPY = "kowndinya23/Kvasir-SEG"  # its copy on the Hub
EXAMPLE_URL, EXAMPLE_TITLE = "https://huggingface.co/{}/resolve/{}/example.png", "A generated frame"
SHOWN = ("dice", "iou", "precision", "recall", "accuracy")
METADATA = {  # the kinds (`marks.KINDS`) of those numbers that stand in the card's metadata, by their field
    "model-index.results.metrics.value": "files",
    "model-index.results.metrics.name": "text",
    "model-index.results.dataset": "name",
    "model-index.name": "name",
    "base_model": "name",
    "datasets": "name",
    "license": "name",
    "tags": "name",
    "widget": "name",
}


class Standing(NamedTuple):
    """A trial's place in its sweep.

    Attributes:
        name: of the sweep.
        group: the trials that it is ranked among.
        place: its rank, from 1, by validation Dice.
        of: how many trials the group has.
        collection: the slug of the sweep's collection on the Hub; None where there is none.
    """

    name: str
    group: str
    place: int
    of: int
    collection: str | None

    @property
    def note(self):
        return f"Place {self.place} of {self.of} by validation Dice ({self.group})"


def write_card(folder, results, repo_id=None, revision=None, space=False):
    """Write README.md of a staged repository; arguments as `render_card`."""
    (folder / "README.md").write_text(render_card(folder, results, repo_id, revision, space), encoding="utf-8")


def render_card(folder, results, repo_id=None, revision=None, space=False):
    """The text of README.md.

    Args:
        folder: the repository, with its config.json and pictures in place.
        results: a checked results.json.
        repo_id, revision: the repository and tag that the snippets load; None writes MODEL, for the reader to fill in.
        space: whether there is a Space of the same name.
    """
    return str(ModelCard(marks.show_marks(render_marked(folder, results, repo_id, revision, space))))


def render_marked(folder, results, repo_id=None, revision=None, space=False):
    """The card before its marks are shown, for `marks.marked_numbers`; arguments as `render_card`."""
    config, processor = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "preprocessor_config.json")
    )
    part = scored_part(results)
    template = marks.environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        card_data=card_data(results, config, repo_id, revision).to_yaml(),
        example=example_name(config.get("num_channels", 3)),
        takes_rgb=takes_rgb(processor),
        scored=part,
        legend=marks.legend(),
        title=title(results, config),
        results=results,
        config=config,
        repo_id=repo_id,
        arguments=load_arguments(repo_id, revision),
        space=space,
        processor=processor,
        size=processor["size"],
        paper=linked(find_variant(config["model_type"])[1].paper),
        history=shown_history(read_history(folder, results)),
        base_model=base_model(results, config),
        shown=SHOWN,
        seen_before="lock" in results and is_seen_before(results["lock"]),
        parts=[part for part in ("validation", "test", "test_without_twins") if part in results["metrics"]],
        onnx=(folder / "model.onnx").is_file(),
        int8=(folder / "model_int8.onnx").is_file(),
        pictures=sorted(path.name for path in folder.glob("*.png") if path.name != EXAMPLE),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        kvasir=is_kvasir(results),
        clinicdb=any("clinicdb" in source.lower() for source in sources(results)),
        built=any(folder.glob("modeling_*.py")),
        class_names=[row["label"] for row in results["metrics"][part].get("per_class", ())],
    )


def takes_rgb(processor):
    """Whether images become RGB of 8 bits, by the fields of preprocessor_config.json; those of old lack two."""
    return processor.get("num_channels", 3) == 3 and processor.get("intensity") is None


def linked(text):
    """A text whose arXiv numbers are links, from which the Hub makes the repository's paper tags."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def shown_history(history, rows=8):
    """Evenly spaced validations of the history, with the last: dictionaries of epoch, loss, Dice and IoU."""
    validations = [entry for entry in history if "eval_dice" in entry]
    step = max(1, -(-len(validations) // rows))
    return validations[::-1][::step][::-1]


def base_model(results, config):
    """The Hub's repository of the weights that the run started from: a checkpoint's, or the encoder's.

    None where they came from a folder or a file, or were random.
    """
    backbone = config.get("backbone")
    if "start_from" in results["run"]["settings"]:
        return (results["run"].get("started_from") or {}).get("repo_id")
    if backbone is None or results["run"]["settings"].get("backbone_weights", "timm") != "timm":
        return None
    return timm.get_pretrained_cfg(backbone).hf_hub_id


def card_data(results, config, repo_id=None, revision=None):
    """The card's metadata, with the test figures as `model-index`; without a test part there is none.

    Whoever ranks models by `model-index` does not look whether a split was a validation.
    """
    data, test = results["data"], results["metrics"].get("test")
    dataset = {"dataset_type": data["source"].partition("?")[0], "dataset_name": dataset_name(results)}
    hub = data.get("repository")
    if hub:
        dataset |= {"dataset_type": hub["repo_id"], "dataset_revision": hub["revision"]}
    prefix = "mean of classes, " if test and "per_class" in test else ""
    figures = [
        EvalResult(
            task_type="image-segmentation",
            metric_type=metric,
            metric_name=f"{metric} ({prefix}{kind.replace('_', ' ')}, original size)",
            metric_value=round(test[kind][metric]["value"], 4),
            dataset_split=f"{data['split']}, test, {test['images']} images",
            **dataset,
        )
        for kind in ("per_image", "pooled")
        for metric in ("dice", "iou")
        if test
    ]
    backbone = config.get("backbone")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="other" if is_kvasir(results) else "apache-2.0" if is_phantoms(results) else None,
        license_name="kvasir-seg-research-and-education" if is_kvasir(results) else None,
        license_link="https://datasets.simula.no/kvasir-seg/" if is_kvasir(results) else None,
        tags=["u-net", "medical", "polyp-segmentation", *([backbone] if backbone else [])],
        datasets=[*([KVASIR_COPY] if is_kvasir(results) else []), *([hub["repo_id"]] if hub else [])] or None,
        base_model=base_model(results, config),
        metrics=["dice", "mean_iou"],
        widget=[{"src": EXAMPLE_URL.format(repo_id, revision or "main"), "example_title": EXAMPLE_TITLE}]
        if repo_id and example_name(config.get("num_channels", 3)) == EXAMPLE
        else None,
        model_name=title(results, config) if figures else None,
        eval_results=figures or None,
    )


def is_kvasir(results):
    """Whether the data were Kvasir-SEG: by a published split's name, or the source's."""
    source = results["data"]["source"].lower()
    return results["data"]["split"] in KVASIR_SPLITS or "kvasir" in source


def is_phantoms(results):
    """Whether the data were generated. The terms of other data are not known, so the card claims no licence then."""
    return all(source.startswith("phantoms") for source in sources(results))


def sources(results):
    """Every data set that was trained on."""
    return [data["source"] for data in (results["data"], *results["data"].get("extra", ()))]


def title(results, config):
    """The card's title: the variant, the encoder, and the data that the model was trained on."""
    variant = find_variant(results["run"]["model_type"])[1].__name__.removesuffix("ForSemanticSegmentation")
    encoder = f" on {config['backbone']}" if config.get("backbone") else ""
    return f"{variant}{encoder}, trained on {dataset_name(results)}"


def dataset_name(results):
    if is_kvasir(results):
        return "Kvasir-SEG"
    return "generated phantoms" if is_phantoms(results) else results["data"]["source"]
