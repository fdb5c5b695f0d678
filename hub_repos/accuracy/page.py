"""The text of the accuracy page and of README's table, from records."""

import numpy as np

from hub_unets.hub_repos.accuracy.cards import cards_section
from hub_unets.hub_repos.accuracy.pictures import share
from hub_unets.hub_repos.accuracy.records import mean_dices
from hub_unets.training.errors import UserError
from hub_unets.training.records.folds import PICTURE as HARDEST
from hub_unets.training.records.leaderboard import paired_difference
from hub_unets.training.records.markdown import table

PAGE, PICTURE = "accuracy.md", "accuracy.png"
START, END = "<!-- made by hub-unets report -->", "<!-- end -->"
PARTS = {"validation": "validation", "test": "test", "test_without_twins": "test without twins"}
WORST = 10
PUBLISHED = {  # per-image Dice and IoU on the official split, as the papers' own tables give them
    "U-Net with a ResNet-34 encoder": (0.8757, 0.81),
    "PraNet": (0.894, 0.83),
    "HarDNet-MSEG": (0.904, 0.848),
    "ConDSeg, ResNet-50": (0.905, 0.846),
}
FIGURES = {
    "Dice": ("per_image", "dice"), "IoU": ("per_image", "iou"), "precision": ("per_image", "precision"),
    "recall": ("per_image", "recall"), "Dice, pooled": ("pooled", "dice"), "IoU, pooled": ("pooled", "iou"),
    "recall of polyps": ("polyps", "recall"), "precision of polyps": ("polyps", "precision"),
    "NSD": ("boundary", "nsd"), "HD95, share of the diagonal": ("boundary", "hd95_share"),
    "ECE": ("calibration", "ece"), "polyp-free crops marked": ("false_alarms", "marked"),
}  # fmt: skip


def mean_of(values, digits=4):
    """The mean of several figures and, in brackets, each of them if there is more than one."""
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def interval(estimate, digits=4):
    return f"{estimate['value']:.{digits}f} ({estimate['low']:.{digits}f}–{estimate['high']:.{digits}f})"


def results_table(recipes):
    """A row for each recipe and part."""
    header = ["recipe", "seeds", "part", "images", "Dice per image", "each seed", "IoU", "Dice pooled"]
    rows = []
    for recipe in recipes:
        for part, title in PARTS.items():
            if recipe.runs[0].metrics(part):
                dices = recipe.seed_values(part, "per_image", "dice")
                rows.append([
                    f"`{recipe.name}`", len(recipe.runs), title, recipe.runs[0].metrics(part)["images"],
                    interval(recipe.dice_with_interval(part)), ", ".join(f"{dice:.4f}" for dice in dices),
                    f"{np.mean(recipe.seed_values(part, 'per_image', 'iou')):.4f}",
                    f"{np.mean(recipe.seed_values(part, 'pooled', 'dice')):.4f}",
                ])  # fmt: skip
    return table(header, rows)


def short_table(recipes):
    """README's table: a row for each recipe, its test part and other hospitals' data."""
    datasets = list(dict.fromkeys(name for recipe in recipes for name in recipe.external()))
    rows = []
    for recipe in recipes:
        external = recipe.external()
        external_dices = [
            [record.value("test", "per_image", "dice") for record in external.get(name, ())] for name in datasets
        ]
        rows.append([
            f"`{recipe.name}`", megas(recipe.runs[0].results["run"].get("parameters")), len(recipe.runs),
            interval(recipe.dice_with_interval("test"), 3),
            f"{np.mean(recipe.seed_values('test', 'per_image', 'iou')):.3f}",
            *(f"{np.mean(dices):.3f}" if dices else "–" for dices in external_dices),
        ])  # fmt: skip
    header = ["model", "parameters", "seeds", "test Dice", "test IoU", *(f"Dice, {name}" for name in datasets)]
    return table(header, rows)


def megas(parameters):
    return "–" if parameters is None else f"{parameters / 1e6:.1f} M"


def introduction(recipes):
    data, environment = recipes[0].runs[0].results["data"], recipes[0].runs[0].results["environment"]
    runs = [f"- `{run.name}`: `{run.results['run']['command']}`" for recipe in recipes for run in recipe.runs]
    papers = ", ".join(f"{name} {dice} / {iou}" for name, (dice, iou) in PUBLISHED.items())
    return "\n".join(
        [
            "# Accuracy",
            "",
            "Made by `hub-unets report` from the `results.json` and `per_image.csv` that stand beside it.",
            f"Data: {data['source']}, split {data['split']}, split seed {data['split_seed']}, "
            f"{', '.join(f'{count} {part}' for part, count in data['sizes'].items())}; sha256 {data['sha256'][:12]}. "
            f"{len(data['twins'])} test images have a twin in training or validation. Hardware: "
            f"{environment['device']}, {environment['cores']} cores, torch {environment['torch']}.",
            "",
            "Dice and IoU per image: the mean over images at their original size, of several seeds the mean of the "
            "seeds' means; in brackets the 95 % bootstrap interval over images of the mean over seeds. Pooled: over "
            "all pixels together.",
            "",
            f"![Accuracy]({PICTURE})",
            "",
            results_table(recipes),
            "",
            f"Of other papers, test, Dice / IoU as they give them: {papers}.",
            "",
            "The runs:",
            "",
            *runs,
        ]
    )


def differences(recipes):
    """Each recipe against the first, on the test images."""
    first, *others = recipes
    first_dices = mean_dices([run.dices("test") for run in first.runs])
    rows = []
    for other in others:
        difference = paired_difference(first_dices, mean_dices([run.dices("test") for run in other.runs]), len(others))
        rows.append([f"`{first.name}` − `{other.name}`", signed(difference), "yes" if difference["real"] else "no"])
    return "Paired bootstrap over the test images, of the seeds' mean Dice:\n\n" + table(
        ["difference", "Dice (95 % interval)", "real"], rows
    )


def signed(difference):
    return f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})".replace("-", "−")


def recipe_sections(recipe):
    """The sections about one recipe."""
    published = recipe.published
    sections = [f"## {recipe.name}\n\n{about_seeds(recipe)}"]
    if published is not None:
        sections[0] += (
            f"\n\nPublished is `{published.name}`, the median of {len(recipe.runs)} runs by validation Dice, in half "
            "precision: [its folder and card]({0}/README.md).".format(recipe.folder.name)
        )
        sections += [sizes(published), thresholds(published), worst(published)]
    sections += map(cross_validation, recipe.cross_validations())
    sections += [external(name, records) for name, records in recipe.external().items()]
    if recipe.flipped():
        sections.append(flips(recipe))
    if recipe.ablations():
        sections.append(ablations(recipe))
    return sections


def about_seeds(recipe):
    """All figures of each part: the mean and each seed."""
    parts = [part for part in PARTS if recipe.runs[0].metrics(part)]
    rows = [[name, *(mean_of(recipe.seed_values(part, *keys)) for part in parts)] for name, keys in FIGURES.items()]
    texts = recipe.runs[0].results.get("definitions", {})
    minutes = mean_of([run.results["cost"]["training_seconds"] / 60 for run in recipe.runs], 0)
    settings = recipe.settings
    image_size = settings["image_size"]
    return (
        f"Trained at {settings.get('train_size') or image_size} px and used at {image_size}, "
        f"{settings['num_train_epochs']} epochs; {minutes} minutes of training. Mean and each seed "
        f"({', '.join(str(run.results['run']['seed']) for run in recipe.runs)}).\n\n"
        + table(["", *(PARTS[part] for part in parts)], rows)
        + "".join(f"\n\n{text}" for text in texts.values())
    )


def sizes(run):
    rows = [
        [PARTS[part], share(row), row["images"], interval(row["dice"]), interval(row["recall"])]
        for part in ("validation", "test")
        for row in run.metrics(part)["by_size"]
    ]
    return f"### By the polyp's share of the image, `{run.name}`\n\n" + table(
        ["part", "share", "images", "Dice", "recall"], rows
    )


def thresholds(run):
    """The validation figures before and after the temperature and thresholds were fitted."""
    fitted = run.results["calibration"]
    rows = [
        ["polyp-free crops marked", fitted["false_alarms_before"], fitted["false_alarms_after"]],
        ["Dice", fitted["dice_before"], fitted["dice_after"]],
        ["ECE", fitted["ece_before"], fitted["ece_after"]],
        ["cross-entropy", fitted["loss_before"], fitted["loss_after"]],
        *([f"recall, {share(row)}", row["recall_before"], row["recall_after"]] for row in fitted.get("by_size", ())),
    ]
    return (
        f"### Temperature and thresholds, `{run.name}`\n\nFitted on the {fitted['images']} validation images: "
        f"temperature {fitted['temperature']:.3f}, pixels above {fitted['threshold']:g}, regions of a mean "
        f"probability of at least {fitted['score_threshold']:g}. Before: .5, and every region. Both columns are of "
        "the images that they were fitted on.\n\n"
        + table(["validation", "before", "after"], [[name, f"{a:.4f}", f"{b:.4f}"] for name, a, b in rows])
        + f"\n\n![Reliability]({run.folder.parents[1].name}/reliability.png)"
    )


def worst(run):
    rows = sorted((row for row in run.rows if row["part"] == "test"), key=lambda row: float(row["dice"]))[:WORST]
    cells = [
        [row["name"], f"{float(row['dice']):.4f}", *(f"{float(row[name]):.4f}" for name in ("precision", "recall")),
         f"{(int(row['true_positives']) + int(row['false_negatives'])) / int(row['height']) / int(row['width']):.3f}"]
        for row in rows
    ]  # fmt: skip
    return (
        f"### The worst ten test images, `{run.name}`\n\n"
        + table(["image", "Dice", "precision", "recall", "polyp's share"], cells)
        + f"\n\n![Worst]({run.folder.parents[1].name}/worst.png)"
    )


def cross_validation(record):
    """Every image by a network that never saw it."""
    fitted, metrics = record.results["cross_validation"], record.metrics("test")
    rows = [
        [title, interval(figure) if isinstance(figure, dict) else f"{figure:.4f}"]
        for title, keys in FIGURES.items()
        if (figure := figure_of(metrics, keys)) is not None
    ]
    by_size = [
        [share(row), row["images"], interval(row["dice"]), interval(row["recall"])] for row in metrics["by_size"]
    ]
    thresholds = f"Pixels above {fitted['mask_threshold']:g}, regions from {fitted['score_threshold']:g}. "
    return (
        f"### Cross-validation: {metrics['images']} images, {record.results['data']['split']}\n\nEach image is "
        f"scored by the network that saw neither it nor its twin. {thresholds}{fitted.get('rule', '')}\n\n"
        + table(["", "all images"], rows)
        + "\n\n"
        + table(["polyp's share of the image", "images", "Dice", "recall"], by_size)
        + f"\n\n![The hardest images, annotations and masks]({'/'.join(record.folder.parts[-3:])}/{HARDEST})"
    )


def figure_of(metrics, keys):
    """A figure of a part by its keys; None where it was not measured."""
    for key in keys:
        metrics = None if metrics is None else metrics.get(key)
    return metrics


def external(name, records):
    """The figures on another hospital's frames, all scored as test."""
    rows = [[title, mean_of([record.value("test", *keys) for record in records])] for title, keys in FIGURES.items()]
    by_size = [
        [
            share(row),
            row["images"],
            mean_of([record.metrics("test")["by_size"][number]["dice"]["value"] for record in records]),
        ]
        for number, row in enumerate(records[0].metrics("test")["by_size"])
    ]
    data, mask_labels = records[0].results["data"], records[0].results["run"]["settings"].get("mask_labels")
    options = "" if data["split"] == "all" else f" --split {data['split']}"
    options += "" if mask_labels is None else f" --mask_labels {mask_labels}"
    rule = "" if mask_labels is None else ": every class of polyp is polyp"
    trained = "these frames" if data["split"] == "all" else "these frames, though on others of the same data set"
    return (
        f"### Another hospital: {data['source']}, {records[0].metrics('test')['images']} frames\n\n"
        f"`hub-unets evaluate RUN {data['source']}{options}`{rule}. Nothing was trained, fitted or chosen on "
        f"{trained}. Mean and each seed.\n\n"
        + table(["", name], rows)
        + "\n\n"
        + table(["polyp's share of the image", "images", "Dice"], by_size)
    )


def flips(recipe):
    """The mean of four mirror images against one pass, on validation."""
    runs = {run.name: run for run in recipe.runs}
    rows = []
    for flipped in recipe.flipped():
        run = runs[flipped.folder.parent.name]
        difference = paired_difference(flipped.dices("validation"), run.dices("validation"))
        figures = [f"{record.value('validation', 'per_image', 'dice'):.4f}" for record in (run, flipped)]
        rows.append([run.name, *figures, signed(difference)])
    return (
        "### Flips, validation\n\n`--flips true`: the mean logits of an image and its three mirror images, at four "
        "times the cost, with the same thresholds.\n\n" + table(["run", "Dice", "with flips", "difference"], rows)
    )


def ablations(recipe):
    """Every choice of the recipe, changed one at a time."""
    baseline, *others = trials = recipe.ablations()
    settings = baseline.results["run"]["settings"]
    rows = []
    for trial in trials:
        difference = paired_difference(trial.dices("validation"), baseline.dices("validation"), max(1, len(others)))
        run, cost = trial.results["run"], trial.results["cost"]
        marked = trial.value("validation", "false_alarms", "marked")
        rows.append([
            trial.name.replace("_", " "), f"{trial.value('validation', 'per_image', 'dice'):.4f}",
            "–" if trial is baseline else f"**{signed(difference)}**" if difference["real"] else signed(difference),
            "–" if marked is None else f"{marked:.3f}",
            f"{cost['training_seconds'] / 60:.1f}", f"{run['gmacs']:.2f}",
        ])  # fmt: skip
    shown_settings = ", ".join(f"{name} {settings[name]}" for name in ("train_size", "image_size", "num_train_epochs"))
    header = ["trial", "Dice", "difference (interval)", "crops marked", "minutes of training", "GMACs"]
    return (
        f"### Ablations, validation\n\n`accelerate launch training/sweep.py ablations`: {shown_settings}, seed "
        f"{baseline.results['run']['seed']}, thresholds .5 and 0, one thread a trial. `as chosen` is the recipe's "
        "first draft, which took over what was better. The difference is the trial's Dice minus the draft's, by a "
        "paired bootstrap over the validation images "
        f"(Bonferroni: 95 % for the table; **bold**: leaves out 0). One seed: a difference within the interval, and "
        "some beyond it, is noise.\n\n" + table(header, rows)
    )


def page(recipes, cards=()):
    """The text of accuracy.md."""
    parts = [introduction(recipes)]
    if len(recipes) > 1:
        parts.append(differences(recipes))
    if cards:
        parts.append(cards_section(cards, interval))
    for recipe in recipes:
        if (recipe.folder / "seeds").exists():
            parts += recipe_sections(recipe)
    return "\n\n".join(parts) + "\n"


def with_table(text, rendered):
    """README's text with the table between START and END."""
    before, start, remainder = text.partition(START)
    _, end, after = remainder.partition(END)
    if not (start and end):
        raise UserError(f"README.md must hold the lines {START} and {END}, between which the table stands.")
    return f"{before}{START}\n\n{rendered}\n\n{END}{after}"
