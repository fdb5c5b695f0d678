"""Each number of a recipe with its reason, from what the data and the machine are.

The measured recipes that the figures start from are `unet_polyps` (pretrained) and `unet_plain` (from scratch).
"""

import math
from typing import NamedTuple

from hub_unets.training.plan.encoders import Encoder
from hub_unets.training.plan.fingerprint import INTENSITY, Fingerprint
from hub_unets.training.plan.hardware import Hardware
from hub_unets.training.plan.recipe import Recipe
from hub_unets.training.plan.trial import Trial

STEP = 32  # sides are multiples of it: the deepest map's stride
CLEAR, VISIBLE = 10, 8  # pixels at the network's input that an object's width should have, and must have
SMALLEST_SIZE, LARGEST_SIZE = 64, {"cpu": 512, "gpu": 1024}
WHOLE_BATCH = {"cpu": 8, "gpu": 16}
STEPS_AN_EPOCH = 20  # with fewer, validation and checkpoints would cost more than training
FEW_IMAGES = 100  # below, a test part of a tenth can't tell two models apart
LAST = 3  # epochs whose mean is kept where validation can't tell which is best
FEW_TO_CALIBRATE = 20  # validation images below which a threshold is chance
TINY = 0.005  # of an image: below, background outweighs an object 200 times in a cross-entropy


class Schedule(NamedTuple):
    """How long and how fast a network learns, pretrained or not.

    Attributes:
        size: side on a CPU and on a GPU.
        views: of images, over the whole run.
        most_passes, least_passes: over the training images.
        minutes: that a run may take before its passes are cut, to half of them at most.
        source: of these figures.
    """

    size: dict
    views: int
    most_passes: int
    least_passes: int
    minutes: int
    learning_rate: float
    encoder_learning_rate: float | None
    weight_decay: float
    warmup_steps: int
    ema_decay: float
    source: str


PRETRAINED = Schedule(
    {"cpu": 288, "gpu": 384}, 25_600, 300, 8, 90, 1e-3, 3e-4, 0.01, 100, 0.995, "as measured with unet_polyps"
)
SCRATCH = Schedule(
    {"cpu": 224, "gpu": 256}, 136_000, 600, 20, 180, 2e-3, None, 0.05, 200, 0.998, "as measured with unet_plain"
)


class Facts(NamedTuple):
    """What all decisions follow from.

    Attributes:
        data: as given.
        split, split_reason: its name and why.
        sizes: images of train, validation and test.
        parted: pairs of names that look the same and are in different parts.
    """

    data: str
    fingerprint: Fingerprint
    split: str
    split_reason: str
    sizes: dict
    parted: tuple[tuple[str, str], ...]
    hardware: Hardware
    encoder: Encoder
    given: dict

    @property
    def kind(self):
        """ "cpu" or "gpu"."""
        return "cpu" if self.hardware.device == "cpu" else "gpu"

    @property
    def schedule(self):
        """PRETRAINED or SCRATCH."""
        return PRETRAINED if self.encoder.pretrained else SCRATCH

    @property
    def is_rgb(self):
        """Whether images are read as RGB of 8 bits, grey ones too."""
        return self.fingerprint.header.is_rgb and not self.given.get("intensity")


def compose(facts: Facts, size: int, trial: Trial | None = None) -> Recipe:
    """All decisions at this image size; before a trial with the batch that is wanted, and one epoch."""
    recipe = Recipe(facts.given)
    decide_data(recipe, facts)
    recipe.decide("hardware:", facts.hardware.text)
    decide_split(recipe, facts)
    decide_encoder(recipe, facts)
    decide_size(recipe, facts, size)
    batch = decide_batch(recipe, facts, trial)
    epochs = decide_epochs(recipe, facts, trial, batch)
    decide_loss(recipe, facts)
    decide_augmentation(recipe, facts)
    decide_calibration(recipe, facts, epochs)
    return recipe


def wanted_size(facts: Facts) -> int:
    """The side that objects, hardware and the images' own size ask for: a multiple of 32."""
    wanted = max(facts.schedule.size[facts.kind], needed_size(facts.fingerprint, CLEAR))
    most = min(LARGEST_SIZE[facts.kind], _multiple(facts.fingerprint.side))
    return max(SMALLEST_SIZE, min(wanted, most))


def needed_size(fingerprint: Fingerprint, pixels: int) -> int:
    """The side at which the smallest 5 % of the objects are so many pixels wide: a multiple of 32."""
    return _multiple(pixels / fingerprint.smallest_width)


def smaller_size(facts: Facts, size: int, trial: Trial) -> int:
    """The side at which half of the wanted passes fit into the schedule's time, as far as objects stay visible."""
    least = max(SMALLEST_SIZE, min(size, needed_size(facts.fingerprint, VISIBLE)))
    while size > least and run_minutes(facts, trial, least_passes(facts)) > facts.schedule.minutes:
        smaller = max(least, size - STEP)
        trial, size = trial._replace(seconds=trial.seconds * (smaller / size) ** 2), smaller
    return size


def decide_data(recipe, facts):
    """What the data are, and the labels."""
    found = facts.fingerprint
    channels = found.header.channels
    colours = f"{channels} channel{'s' * (channels > 1)} of {found.header.bits} bits"
    sides = (
        f"{found.smallest_side} to {found.largest_side} px a side" if found.smallest_side < found.largest_side else ""
    )
    shown = ", ".join(f"{count}" for count in found.images_of_label)
    labels = f"{found.num_labels - 1} class{'es' * (found.num_labels > 2)} (shown in {shown} images)"
    text = (
        f"{found.images} pairs of {found.width} x {found.height} px{f' ({sides})' if sides else ''}, {colours}, "
        f"{labels}, {found.empty} empty masks, {found.objects} objects, {len(found.alike)} pairs of "
        "frames that look the same"
    )
    recipe.decide("data:", text)
    recipe.set("data", facts.data, "")
    if found.num_labels > 2:
        recipe.set("model.num_labels", found.num_labels, "the largest class index of the masks, and background")
    if not facts.is_rgb:
        recipe.set("model.num_channels", channels, "as the files have")
        reason = "most of their values' range, whatever it is: the darkest and brightest .5 % are cut"
        recipe.set("intensity", INTENSITY, reason)


def decide_split(recipe, facts):
    """The split, and whether folds are worth it."""
    sizes, parted = facts.sizes, facts.parted
    text = f"{facts.split}: {sizes['train']} / {sizes['validation']} / {sizes['test']} images; {facts.split_reason}"
    if sum(sizes.values()) < FEW_IMAGES:
        text += "; so few that folds are worth it: hub-unets sweep PLAN --folds 5 scores every image"
    if parted:
        cure = "keep them in one" if facts.split == "own" else "name their sequences in sequences.csv beside images/"
        text += f"; {len(parted)} pairs of frames that look the same are in two parts ({' and '.join(parted[0])})"
        text += "" if facts.split == "official" else f": {cure}"
    recipe.decide("split", text)
    recipe.set("split", facts.split, facts.split_reason)


def decide_encoder(recipe, facts):
    """The network, its weights and its rates."""
    encoder, schedule = facts.encoder, facts.schedule
    recipe.decide("encoder", f"{encoder.backbone or 'plain U-Net, 16 channels and 5 levels'}: {encoder.reason}")
    recipe.set("variant", "unet", "larger decoders gained less than a point of Dice")
    if encoder.backbone is None:
        recipe.set("model.base_channels", 16, schedule.source)
        recipe.set("model.depth", 5, schedule.source)
    else:
        recipe.set("model.backbone", encoder.backbone, encoder.reason)
        recipe.set("backbone_weights", encoder.weights, "where they are")
    if facts.is_rgb:
        reason = "of timm's weights" if encoder.weights == "timm" else "0..1 becomes -1..1"
        recipe.set("image_mean", list(encoder.image_mean), reason)
        recipe.set("image_std", list(encoder.image_std), reason)
    recipe.set("learning_rate", schedule.learning_rate, schedule.source)
    if schedule.encoder_learning_rate:
        recipe.set("encoder_learning_rate", schedule.encoder_learning_rate, "lower: it has learned already")
    recipe.set("weight_decay", schedule.weight_decay, schedule.source)
    recipe.set("lr_scheduler_type", "cosine", schedule.source)


def decide_size(recipe, facts, size):
    """The side of the network's input, and of the training samples."""
    found = facts.fingerprint
    held = recipe.given.get("image_size") or size
    objects = (
        f"the smallest 5 % of objects are {found.smallest_width * found.side:.0f} px wide in frames of {found.width} "
        f"x {found.height}, {found.smallest_width * held:.0f} px at {held}"
    )
    if held != size or "image_size" in recipe.given:
        bound = "given"
    elif size < wanted_size(facts):
        bound = f"{wanted_size(facts)} would take this machine too long"
    elif size == max(SMALLEST_SIZE, _multiple(found.side)) and size < facts.schedule.size[facts.kind]:
        bound = "the images' own size"
    elif size > facts.schedule.size[facts.kind]:
        bound = f"enlarged for them from {facts.schedule.size[facts.kind]}"
    else:
        bound = f"the usual size on a {facts.kind.upper()}"
    if found.smallest_width * held < min(VISIBLE, found.smallest_width * found.side):
        bound += "; they may be missed: crops of the images would show them better"
    recipe.decide("image_size", f"{held}: {objects}; {bound}")
    recipe.set("image_size", size, bound)
    if held >= 224:
        smaller = held * 8 // 9 // STEP * STEP
        recipe.set("train_size", smaller, "8/9 of it: augmentation enlarges (arXiv:1906.06423)")


def decide_batch(recipe, facts, trial):
    """Images a step; returns those of all processes and accumulated steps."""
    wanted = wanted_batch(facts)
    batch = wanted if trial is None else trial.batch
    memory = "" if trial is None else f": a trial step of {batch} took {trial.memory / 2**30:.1f} of "
    memory += "" if trial is None else f"{facts.hardware.memory / 2**30:.1f} GiB that were free"
    reason = "the usual one" if wanted == _share_of(facts, WHOLE_BATCH[facts.kind]) else "as many as there are images"
    reason = reason if batch == wanted else f"{wanted} do not fit into memory"
    steps = max(1, wanted // batch) if "per_device_train_batch_size" not in facts.given else 1
    text = f"{batch} images a step{memory}; {reason}" + (f", so {steps} steps add up" if steps > 1 else "")
    recipe.decide("batch", text)
    batch = recipe.set("per_device_train_batch_size", batch, reason)
    if steps > 1:
        steps = recipe.set("gradient_accumulation_steps", steps, f"{wanted} images an update all the same")
    return batch * steps * facts.hardware.processes


def wanted_batch(facts: Facts) -> int:
    """Images a step of one process, before memory is asked."""
    usual = min(_share_of(facts, WHOLE_BATCH[facts.kind]), facts.sizes["train"])
    return facts.given.get("per_device_train_batch_size") or usual


def decide_epochs(recipe, facts, trial, batch):
    """Epochs, copies, warm-up and moving average; returns the epochs."""
    images, schedule = facts.sizes["train"], facts.schedule
    copies = recipe.given.get("copies") or max(
        1, math.ceil(STEPS_AN_EPOCH * batch / images) if images < FEW_IMAGES else 1
    )
    passes, reason = (1, "") if trial is None else planned_passes(facts, trial)
    epochs = recipe.given.get("num_train_epochs") or max(1, round(passes / copies))
    steps = math.ceil(images * copies / batch) * epochs
    reason = "given" if "num_train_epochs" in recipe.given else reason
    minutes = 0 if trial is None else run_minutes(facts, trial, epochs * copies)
    text = f"{epochs:g} of {images * copies} samples, {steps:g} steps: {reason}; about {_duration(minutes)} in all"
    recipe.decide("epochs", text)
    recipe.set("num_train_epochs", epochs, reason)
    if copies > 1:
        recipe.set("copies", copies, f"{images} images alone would be an epoch of {math.ceil(images / batch)} steps")
    recipe.set("warmup_steps", min(schedule.warmup_steps, int(steps // 10)), f"at most a tenth of {steps:g} steps")
    decay = round(min(schedule.ema_decay, max(0.9, 1 - 16 / max(steps, 1))), 4)
    recipe.set("ema_decay", decay, f"the mean of the last {round(1 / (1 - decay))} steps or so is what is scored")
    return epochs


def planned_passes(facts, trial):
    """How often each image is shown, and why."""
    schedule, wanted = facts.schedule, wanted_passes(facts)
    minute = run_minutes(facts, trial, 1)
    passes = max(least_passes(facts), min(wanted, math.floor(schedule.minutes / minute)))
    if passes < wanted:
        return passes, f"{wanted} passes would take {_duration(wanted * minute)} here"
    if wanted == schedule.most_passes:
        return passes, f"{wanted} passes over {facts.sizes['train']} images; more of so few would be learned by heart"
    if wanted == schedule.least_passes:
        return passes, f"{wanted} passes, the least, as there are many images"
    return passes, f"{schedule.views} views of images in all, {schedule.source}"


def wanted_passes(facts):
    """Over the training images, if time did not matter."""
    schedule = facts.schedule
    return min(schedule.most_passes, max(schedule.least_passes, round(schedule.views / facts.sizes["train"])))


def least_passes(facts):
    """Below which time does not cut them."""
    return max(facts.schedule.least_passes, math.ceil(wanted_passes(facts) / 2))


def run_minutes(facts, trial, passes):
    """Of training and validation, from the trial's time at this size; a validated image takes a third of a trained."""
    images = facts.sizes["train"] + facts.sizes["validation"] / 3
    return images * passes * trial.seconds / facts.hardware.processes / 60


def decide_loss(recipe, facts):
    """Cross-entropy and Dice; where foreground is tiny, misses weigh more."""
    given = {name: value for name, value in facts.given.items() if name.startswith("loss.")}
    entropy = "bce" if facts.fingerprint.num_labels == 2 else "ce"
    share = facts.fingerprint.rarest_share
    shares = ", ".join(f"{share:.1%}" for share in facts.fingerprint.share_of_label)
    region, reason = "dice", "which is the figure that counts"
    if share < TINY:
        region = "tversky"
        reason = f"a class below {TINY:.1%} is missed before it is overdrawn: misses weigh 7, false marks 3"
    if given:
        recipe.decide("loss", f"{', '.join(given)}: given; where shown, the classes cover {shares} of an image")
    else:
        text = f"{entropy} and {region}: where shown, the classes cover {shares} of an image (median)"
        recipe.decide("loss", text + (f"; {reason}" if region == "tversky" else ""))
        recipe.set(f"loss.{entropy}", 1.0, "a gradient for each pixel")
        recipe.set(f"loss.{region}", 1.0, reason)


def decide_augmentation(recipe, facts):
    """Flips, affine maps, colours and blur; frames without foreground where the data have none."""
    found = facts.fingerprint
    removes = found.num_labels == 2 and not found.empty and facts.is_rgb and found.share_of_label[0] < 0.5
    listed = [{"PolypFreeCrop": {"p": 0.15}}, {"PaintOut": {"p": 0.15}}] if removes else []
    listed += [
        {"HorizontalFlip": {"p": 0.5}},
        {"VerticalFlip": {"p": 0.5}},
        {"Affine": AFFINE},
        {"ColorJitter": COLOUR} if facts.is_rgb else {"RandomBrightnessContrast": {"p": 0.7}},
        {"GaussianBlur": {"sigma_limit": [0.1, 1.5], "p": 0.2}},
    ]
    text = "flips, turns, scale, colour and blur" if facts.is_rgb else "flips, turns, scale, brightness and blur"
    reason = f"{found.empty} of {found.images} masks are empty"
    if removes:
        reason = "no mask is empty, so some samples lose their objects: else such a model marks one anywhere"
    if "augmentation" in facts.given:
        text = "given"
    recipe.decide("augmentation", f"{text}; {reason}")
    recipe.set("augmentation", listed, reason)


AFFINE = {
    "scale": [0.75, 1.35],
    "rotate": [-90, 90],
    "translate_percent": [-0.1, 0.1],
    "shear": [-8, 8],
    "balanced_scale": True,
    "p": 0.8,
}
COLOUR = {
    "brightness": [0.7, 1.3],
    "contrast": [0.7, 1.3],
    "saturation": [0.6, 1.4],
    "hue": [-0.05, 0.05],
    "p": 0.7,
}


NOT_PER_IMAGE = "a class that is never marked has a Dice of 1 in each image without it: no measure to choose by"


def decide_calibration(recipe, facts, epochs):
    """The threshold, which epoch is kept, and the weights' type."""
    count, labels = facts.sizes["validation"], facts.fingerprint.num_labels
    calibrates = labels == 2 and count >= FEW_TO_CALIBRATE
    reason = f"temperature and thresholds are fitted on {count} validation images"
    if not calibrates:
        reason = f"{count} validation images are too few for a threshold" if labels == 2 else "of several classes"
        reason = f"off, {reason}" + ("; it stays at .5" if labels == 2 else " the likeliest is taken")
    recipe.decide("calibrate", f"{'on' if calibrates else ''}{': ' if calibrates else ''}{reason}; weights in float16")
    recipe.set("calibrate", calibrates, reason)
    if labels > 2:
        recipe.set("metric_for_best_model", "pooled_dice", NOT_PER_IMAGE)
    if count < FEW_TO_CALIBRATE and epochs >= LAST and "early_stopping_patience" not in facts.given:
        recipe.set(
            "average_last", LAST, f"{count} validation images can't tell which epoch is best: the last ones' mean"
        )
    recipe.set("half_precision", True, "half the size of the file")


def _share_of(facts, batch):
    return max(1, batch // facts.hardware.processes)


def _multiple(size):
    return math.ceil(size / STEP - 1e-6) * STEP


def _duration(minutes):
    return f"{max(1, minutes):.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
