"""Predict masks of any images: `hub-unets predict MODEL INPUT... OUTPUT`.

OUTPUT gets masks/NAME.png at each image's own size (0 and 255; class indices with a palette where the model has
several classes), overlays/NAME.jpg, annotations.json (COCO instances), polyps.csv, images.csv, files.txt (the paths in
the order of the lists) and, if a file was broken, failed.csv; the exit code is then 1. The lists show only the items
that INPUT holds now; files of a folder that are neither image nor video are in left_out.csv. With --flips there is
uncertainty/NAME.png, too: how much the predictions of an image and its mirror images disagree, the standard deviation
of the probability, 0 to 255 for 0 to .5. Frames of a video and rows of a table are kept as frames/NAME.jpg. Each polyp
of a video has an id, `track` in polyps.csv and `track_id` in annotations.json, that it keeps from frame to frame;
--smoothing 0.4 makes masks flicker less.
Repeating the command continues where it stopped. Several processes, with or without GPUs:
`accelerate launch --multi_gpu --num_processes 2 -m hub_unets.hub_repos.predict ...`.
"""

import hashlib
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import HfArgumentParser

from hub_unets.hub_repos.inference.documents import write_documents
from hub_unets.hub_repos.inference.inputs import collect
from hub_unets.hub_repos.inference.predictions import Prediction, Predictions, uncertainty
from hub_unets.hub_repos.inference.records import WORK, Records
from hub_unets.hub_repos.inference.smoothing import Smoother
from hub_unets.hub_repos.inference.tiles import in_batches, logits_of
from hub_unets.hub_repos.inference.video import Video
from hub_unets.hub_repos.repository.folders import refuse_foreign_folder
from hub_unets.modeling.image_processing_unet import upsample
from hub_unets.modeling.images import height_and_width
from hub_unets.training.data.coco_masks import mask_api
from hub_unets.training.data.files import first_few
from hub_unets.training.data.reading import read_image
from hub_unets.training.errors import UserError, run_command
from hub_unets.training.fit.checkpoints import RunFolder
from hub_unets.training.fit.threads import require_processes, use_all_cores
from hub_unets.training.measure.flips import predict_with_flips
from hub_unets.training.measure.models import load_model, pixel_values
from hub_unets.training.measure.segmenter import frames

LONGEST = timedelta(days=30)  # for one process to wait for another


class Predictor:
    """A model with its processor: images to predictions.

    Args:
        model, processor: of a repository that `hub-unets build` made, or of a run.
        threshold: for a binary head; None takes the processor's.
        tile, overlap, batch_size: see `hub_repos.inference.tiles.logits_of`.
        flips: take the mean logits of each image and its mirror images, and map where they disagree.
        smoothing: of videos; 0 is none. See `hub_repos.inference.smoothing.Smoother`.

    Raises:
        UserError: another kind of model, or a threshold that it can't take.
    """

    def __init__(
        self, model, processor, threshold=None, tile=None, overlap=0.25, batch_size=8, flips=False, smoothing=0
    ):
        if not hasattr(model.config, "binary_head"):
            raise UserError("predict takes runs of training/run.py and repositories of `hub-unets build`, not others.")
        if threshold is not None and not (model.config.binary_head and 0 < threshold < 1):
            raise UserError(f"threshold is for a binary head and lies between 0 and 1, got {threshold}: leave it out.")
        self.model, self.processor, self.threshold, self.flips = model, processor, threshold, flips
        self.batch_size = batch_size if processor.do_resize else 1  # images as they are do not stack
        self.tiling = {"tile": tile, "overlap": overlap, "batch_size": self.batch_size}
        self.smoother = Smoother(smoothing, processor, threshold) if smoothing else None

    @property
    def reach(self):
        """How many frames before the first that is asked for this needs."""
        return self.smoother.reach if self.smoother else 0

    def __call__(self, images, places=None):
        """Images, as `read_image` gives them, to Predictions; `places` are those of frames, None of other images."""
        with torch.inference_mode():
            logits_of_images = logits_of(self._forward, images, **self.tiling)
            triples = zip(logits_of_images, images, places or [None] * len(images), strict=True)
            return [self._prediction(*triple) for triple in triples]

    def _forward(self, images):
        """Logits, and with flips their uncertainty as a further channel, which tiles blend alike."""
        pixels = pixel_values(self.model, self.processor, images)
        if not self.flips:
            return self.model(pixels).logits
        prediction = predict_with_flips(self.model, pixels)
        return torch.cat([prediction.logits, prediction.uncertainty[:, None]], dim=1)

    def _prediction(self, logits, image, place):
        sizes, disagreement = [height_and_width(image)], None
        if self.flips:
            disagreement = upsample(logits[:, -1:], sizes)[0][0].cpu().numpy()
            logits = logits[:, :-1]
        if self.smoother and place:
            logits = self.smoother(logits, place, image)
        logits = upsample(logits, sizes)[0]  # C x H x W
        (result,) = self.processor.post_process_instance_segmentation(
            logits[None], mask_threshold=self.threshold, **frames(self.processor, [image])
        )
        segmentation, segments = result["segmentation"].numpy(), result["segments_info"]
        labels = np.array([0, *(segment["label_id"] for segment in segments)], np.uint8)  # ids count from 1
        return Prediction(labels[segmentation], segmentation, segments, uncertainty(logits), disagreement)

    def digest(self):
        """A hash of weights and processor: another model must not continue in the same folder."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        fields = {name: value for name, value in self.processor.to_dict().items() if name != "auto_map"}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


def predict(predictor, items, predictions, state):
    """Predict this process's share of the items that are not done; returns (file, reason) of each unreadable one."""
    failures = []
    share = _share(items, predictions.done(), state, predictor.reach)
    for batch in in_batches(_read(share, predictor.processor, failures), predictor.batch_size):
        results = predictor([image for *_, image in batch], [item.place for item, *_ in batch])
        for (item, is_due, stored, image), prediction in zip(batch, results, strict=True):
            if is_due:
                predictions.write(item, stored, image, prediction)
    return failures


def _share(items, done, state, reach):
    """(item, whether it is due) of this process's share: every n-th image, of n processes, a part of each video."""
    count = sum(item.count() if isinstance(item, Video) else 1 for item in items) // state.num_processes
    share_note = f" (1 of {state.num_processes} processes)" if state.num_processes > 1 else ""
    images = 0
    with tqdm(total=count, desc=f"Predict{share_note}", unit="image", disable=not state.is_main_process) as bar:
        for item in items:
            if isinstance(item, Video):
                yield from _frames(item, done, state, reach, bar)
            else:
                if images % state.num_processes == state.process_index:
                    if done.get(item.name) != item.stamp:
                        yield item, True
                    bar.update()
                images += 1


def _frames(video, done, state, reach, bar):
    """(frame, whether it is due) of this process's part of a video: those that are not done, and `reach` before each.

    Nothing else is decoded but what lies between, from the keyframe before the first.
    """
    timeline = video.timeline()
    count = -(-timeline.count // video.every)
    first, last = (count * number // state.num_processes for number in (state.process_index, state.process_index + 1))
    due = np.zeros(count, bool)
    for position in range(first, last):
        due[position] = done.get(video.frame_name(position * video.every)) != video.stamp
    needed = due.copy()
    for step in range(1, min(reach, count - 1) + 1):
        needed[:-step] |= due[step:]
    bar.update(last - first - np.count_nonzero(due))
    for item in video.items((np.flatnonzero(needed) * video.every).tolist(), timeline):
        is_due = bool(due[item.place.position])
        yield item, is_due
        bar.update(is_due)


def _read(share, processor, failures):
    for item, is_due in share:
        try:
            stored = item.read()
            yield item, is_due, stored, read_image(stored, item.name, processor)
        except UserError as error:
            if is_due:
                failures.append((item.file, str(error)))


@dataclass
class PredictArguments:
    """Predict masks of images, folders, globs, videos or data sets."""

    output: str | None = field(default=None, metadata={"help": "Folder to write; the default is the last INPUT."})
    threshold: float | None = field(default=None, metadata={"help": "Of a binary head; default: the processor's."})
    tile: int | None = field(
        default=None, metadata={"help": "Side, in pixels of the image, of the tiles that large images are cut into."}
    )
    overlap: float = field(default=0.25, metadata={"help": "Share of a tile that its neighbour shares, from 0 to .9."})
    every: int = field(default=1, metadata={"help": "Take every so many-th frame of a video."})
    smoothing: float = field(
        default=0,
        metadata={
            "help": "Of videos: the weight of a frame beside the next one's in their mean, 0 to .95; 0 is none."
        },
    )
    sort: str = field(
        default="name",
        metadata={"help": "Order of the images in the lists.", "choices": ["name", "uncertain"]},
    )
    flips: bool = field(
        default=False,
        metadata={
            "help": "Take the mean logits of each image and its three mirror images, and write uncertainty/NAME.png."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Images, or tiles, a forward pass."})
    drop_outside_view: bool | None = field(
        default=None,
        metadata={"help": "Leave out marks wholly outside the endoscope's view; default: as the processor does."},
    )
    revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})

    def __post_init__(self):
        for name, low, high in (
            ("tile", 16, math.inf),
            ("overlap", 0, 0.9),
            ("every", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("smoothing", 0, 0.95),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} must lie between {low} and {high}, got {value}.")


def parse(argv=None):
    """(model, inputs, PredictArguments) of the command line."""
    parser = HfArgumentParser(
        PredictArguments,
        prog="hub-unets predict",
        usage="%(prog)s MODEL INPUT... OUTPUT [--any_field value]",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="Folder of a run or of a built repository, or Hub id.")
    parser.add_argument("inputs", nargs="+", help="Images, folders, globs in quotes, videos, data sets; then OUTPUT.")
    options = vars(parser.parse_intermixed_args(argv))
    model, inputs = options.pop("model"), options.pop("inputs")
    options["output"] = options["output"] or inputs.pop()
    if not inputs:
        parser.error("nothing to predict: name at least one INPUT and, last, OUTPUT")
    return model, inputs, PredictArguments(**options)


def main(argv=None):
    """Returns the exit code, 1 where a file could not be read."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    model_name, inputs, arguments = parse(argv)
    mask_api()
    output = Path(arguments.output)
    refuse_foreign_folder(output, lambda folder: (folder / WORK).is_dir(), "OUTPUT of this command")
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST)
    require_processes(state)
    changes = {"drop_outside_view": arguments.drop_outside_view}
    model, processor = load_model(model_name, arguments.trust_remote_code, arguments.revision, **changes)
    takes_values = not getattr(processor, "takes_rgb", True)
    location, items, left_out = collect(inputs, output, arguments.every, takes_values)
    predictor = Predictor(
        model.to(state.device),
        processor,
        arguments.threshold,
        arguments.tile,
        arguments.overlap,
        arguments.batch_size,
        arguments.flips,
        arguments.smoothing,
    )
    is_main = state.is_main_process
    with RunFolder(output, settings(predictor, location, arguments), "OUTPUT") if is_main else nullcontext():
        state.wait_for_everyone()
        predictions = Predictions(output, model.config.id2label, state.process_index)
        failures = gather_object(predict(predictor, items, predictions, state))
        if is_main:
            stamps = {item.name: item.stamp for item in items}
            uncertain_first = arguments.sort == "uncertain"
            listed = write_documents(output, model.config.id2label, failures, uncertain_first, stamps, left_out)
            report(output, listed, failures, left_out)
    return 1 if failures and is_main else 0


def settings(predictor, location, arguments):
    """The settings that may not change between runs into one output folder, as text."""
    threshold = predictor.processor.mask_threshold if arguments.threshold is None else arguments.threshold
    fixed = {"model": predictor.digest(), "inputs": location, "threshold": threshold, "every": arguments.every}
    tiling = {} if arguments.tile is None else {"tile": arguments.tile, "overlap": arguments.overlap}
    flips = {"flips": True} if arguments.flips else {}
    smoothing = {"smoothing": arguments.smoothing} if arguments.smoothing else {}
    return {name: str(value) for name, value in (fixed | tiling | flips | smoothing).items()}


def report(output, listed, failures, left_out):
    print(f"{listed.images} images, {listed.polyps} polyps: {output}")
    if unlisted := len(Records(output)) - listed.images:
        print(f"{unlisted} earlier predictions are of inputs that are gone, changed or not named now, and not listed.")
    if left_out:
        names, table = first_few(Path(file).name for file in left_out), output / "left_out.csv"
        print(f"{len(left_out)} left out, neither images nor videos ({names}): {table} lists them.")
    for _, reason in failures:
        print(f"failed: {reason}")
    if failures:
        print(f"{len(failures)} could not be read; {output}/failed.csv lists them, repeating the command tries again.")


if __name__ == "__main__":
    run_command(main)
