"""The model card, rendered from results.json alone."""

import json
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("templates") / "card.md.jinja"
KVASIR_SPLITS = ("official", "official-halved", "pranet")  # lists of its stems: no other source fits them
SHOWN = ("dice", "iou", "precision", "recall", "accuracy")


class Standing(NamedTuple):
    """A trial's place in its sweep.

    Attributes:
        sweep: its name.
        group: what the trial was ranked within.
        place: from 1, by validation Dice.
        of: how many the group has.
        collection: the slug of the Hub's collection of the sweep's trials; None where there is none.
    """

    sweep: str
    group: str
    place: int
    of: int
    collection: str | None

    @property
    def note(self):
        return f"Place {self.place} of {self.of} by validation Dice ({self.group})"


def write_card(folder, results, repo_id=None, revision=None, collection=None):
    """Write README.md of a staged repository.

    Args:
        folder: the repository, with its config.json and pictures in place.
        results: a checked results.json.
        repo_id, revision: what the snippets load; None writes MODEL for the reader to fill in.
        collection: the trial's Standing in a sweep.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
    card = ModelCard.from_template(
        card_data(results, config),
        template_path=str(TEMPLATE),
        results=results,
        config=config,
        arguments=", ".join(
            [f'"{repo_id}"' if repo_id else "MODEL", *([f'revision="{revision}"'] if revision else [])]
        ),
        size=size,
        shown=SHOWN,
        parts=[part for part in ("validation", "test", "test_without_twins") if part in results["metrics"]],
        pictures=sorted(path.name for path in folder.glob("*.png")),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        kvasir=is_kvasir(results),
        collection=collection,
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def card_data(results, config):
    """The card's metadata, with the test figures as `model-index`."""
    data, test = results["data"], results["metrics"]["test"]
    dataset = {"dataset_type": data["source"].partition("?")[0], "dataset_name": dataset_name(results)}
    figures = [
        EvalResult(
            task_type="image-segmentation",
            metric_type=metric,
            metric_name=f"{metric} ({how.replace('_', ' ')}, original size)",
            metric_value=round(test[how][metric]["value"], 4),
            dataset_split=f"{data['split']}, test, {test['images']} images",
            **dataset,
        )
        for how in ("per_image", "pooled")
        for metric in ("dice", "iou")
    ]
    backbone = config.get("backbone")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="other" if is_kvasir(results) else "apache-2.0" if is_phantoms(results) else None,
        license_name="kvasir-seg-research-and-education" if is_kvasir(results) else None,
        license_link="https://datasets.simula.no/kvasir-seg/" if is_kvasir(results) else None,
        tags=["u-net", "medical", "polyp-segmentation", *([backbone] if backbone else [])],
        metrics=["dice", "mean_iou"],
        model_name=results["run"]["name"],
        eval_results=figures,
    )


def is_kvasir(results):
    """Whether the data were Kvasir-SEG: by a published split's name, or the source's."""
    source = results["data"]["source"].lower()
    return results["data"]["split"] in KVASIR_SPLITS or "kvasir" in source


def is_phantoms(results):
    """Whether the data were generated: of other data the terms are not known, and no licence is claimed."""
    return results["data"]["source"].startswith("phantoms")


def dataset_name(results):
    if is_kvasir(results):
        return "Kvasir-SEG"
    return "generated phantoms" if is_phantoms(results) else results["data"]["source"]
