"""Flicker and false alarms on a made clip: `python -m hub_unets.benchmarks.video MODEL [--data FOLDER]`.

A clip is a window that drifts, zooms and turns over still images, with the noise, the blur and the changes of light
of a camera; between two images with a polyp lies a stretch without one, a polyp-free part of the first. So every
frame's true mask is known. Without --data the images are phantoms; a model of real images needs real ones.
"""

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import av
import cv2
import numpy as np
from PIL import Image

from hub_unets.hub_repos.inference.predictions import Predictions
from hub_unets.hub_repos.inference.records import Records
from hub_unets.hub_repos.inference.tracks import number_tracks
from hub_unets.hub_repos.inference.video import Video
from hub_unets.hub_repos.predict import Predictor, predict
from hub_unets.training.data.coco import mask_api
from hub_unets.training.data.partition import make_partition
from hub_unets.training.data.polyp_free import largest_free_crop
from hub_unets.training.data.reading import read_pair
from hub_unets.training.data.sources import load_source
from hub_unets.training.measure.false_alarms import MIN_SIDE
from hub_unets.training.measure.metrics import metrics_from_counts
from hub_unets.training.measure.models import load_model

RATE, SIZE = 25, 320  # frames a second; height and width of the clip in pixels
LABELS = {0: "background", 1: "polyp"}


def camera(image, mask, frames, rng, size=SIZE):
    """(RGB uint8, mask bool) of each frame, size x size, of a camera that looks about in one image.

    Args:
        image: uint8 H x W x 3.
        mask: H x W, above 0 where a polyp is.
        frames: how many.
        rng: NumPy's Generator.
    """
    height, width = mask.shape
    phase, speed = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.02, 0.06, 4)  # radians a frame
    for index in range(frames):
        x, y, zoom, turn = np.sin(phase + speed * index)
        scale = size / (min(height, width) * (0.85 + 0.12 * zoom))
        matrix = cv2.getRotationMatrix2D((width * (0.5 + 0.06 * x), height * (0.5 + 0.06 * y)), 5 * turn, scale)
        matrix[:, 2] += size / 2 - np.array([width * (0.5 + 0.06 * x), height * (0.5 + 0.06 * y)])
        options = {"dsize": (size, size), "borderMode": cv2.BORDER_REFLECT_101}
        seen = cv2.warpAffine(image, matrix, flags=cv2.INTER_AREA, **options).astype(np.float32)
        seen = cv2.GaussianBlur(seen, (0, 0), 0.5 + rng.gamma(1, 0.6)) * rng.uniform(0.92, 1.08)
        seen += rng.normal(0, 5, seen.shape).astype(np.float32)
        truth = cv2.warpAffine((mask > 0).astype(np.uint8), matrix, flags=cv2.INTER_NEAREST, **options)
        yield seen.clip(0, 255).astype(np.uint8), truth > 0


def scenes(rows, frames, seed=0):
    """The frames of a clip over some images, `frames` with each image's polyp and as many without one."""
    for number, row in enumerate(rows):
        rng = np.random.default_rng([seed, number])
        image, labels = read_pair(row)
        yield from camera(np.asarray(image), labels, frames, rng)
        free = largest_free_crop(image, labels, MIN_SIDE)
        if free is not None:
            pixels = np.asarray(free)
            yield from camera(pixels, np.zeros(pixels.shape[:2], np.uint8), frames, rng)


def write_clip(path, frames):
    """Encode (RGB, mask) pairs as an H.264 clip; returns the masks, packed to bits."""
    truths = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "g": "50"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for pixels, truth in frames:
            truths.append(np.packbits(truth))
            container.mux(stream.encode(av.VideoFrame.from_image(Image.fromarray(pixels))))
        container.mux(stream.encode())
    return truths


class Stillness(NamedTuple):
    """How a clip's masks hold still, and what is right in them.

    Attributes:
        flicker: pixels that are marked, or not marked, in one frame alone, as a share of all marked pixels: those that
            differ from both the frame before and the one behind.
        blinks: regions that overlap none of the frame before and none of the one behind, a minute.
        alarms: false alarms a minute: polyps, by their ids, that overlap a true one in no frame.
        alarm_frames: share of the frames without a polyp that are marked.
        found: share of the frames with a polyp in which it is touched.
        dice: mean over the frames with a polyp.
    """

    flicker: float
    blinks: float
    alarms: float
    alarm_frames: float
    found: float
    dice: float


def stillness(records, truths, rate=RATE):
    """The Stillness of the records of one video, in the frames' order, with their true masks, bool H x W."""
    records = list(number_tracks(records))
    previous = [frame_of(record) for record in records[:1]] * 2
    minutes, sums, marked, counts = len(records) / rate / 60, np.zeros(2), 0, []
    tracks, true_tracks = set(), set()
    for index, (record, truth) in enumerate(zip(records, truths, strict=True)):
        following = frame_of(records[index + 1]) if index + 1 < len(records) else previous[1]
        mask, regions = previous[1]
        if 0 < index < len(records) - 1:
            sums[0] += np.count_nonzero((mask != previous[0][0]) & (mask != following[0]))
            sums[1] += sum(not (previous[0][0] | following[0])[region].any() for region in regions)
        marked += np.count_nonzero(mask)
        for polyp, region in zip(record["polyps"], regions, strict=True):
            tracks.add(polyp["track_id"])
            true_tracks |= {polyp["track_id"]} if truth[region].any() else set()
        hits = np.count_nonzero(mask & truth)
        counts.append([hits, mask.sum() - hits, truth.sum() - hits, (~mask & ~truth).sum()])
        previous = [previous[1], following]
    counts = np.array(counts)
    has_polyp = counts[:, 0] + counts[:, 2] > 0
    return Stillness(
        flicker=sums[0] / max(1, marked),
        blinks=sums[1] / minutes,
        alarms=len(tracks - true_tracks) / minutes,
        alarm_frames=float((counts[~has_polyp, 1] > 0).mean()) if not has_polyp.all() else float("nan"),
        found=float((counts[has_polyp, 0] > 0).mean()),
        dice=float(metrics_from_counts(counts[has_polyp])["dice"].mean()),
    )


def frame_of(record):
    """(mask, regions) of a record: bool H x W, and a list of such."""
    size = record["image"]["height"], record["image"]["width"]
    regions = [mask_api().decode(polyp["segmentation"]).astype(bool) for polyp in record["polyps"]]
    return np.any([np.zeros(size, bool), *regions], axis=0), regions


def predicted(model, processor, path, folder, smoothing):
    """The records of a clip."""
    state = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    predictor = Predictor(model, processor, smoothing=smoothing)
    predict(predictor, [Video("clip", str(path), "", 1)], Predictions(folder, LABELS), state)
    return list(Records(folder))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m hub_unets.benchmarks.video", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a run or a built repository")
    parser.add_argument("--data", default="phantoms?count=60&size=384&seed=9", help="as of `hub-unets evaluate`")
    parser.add_argument("--split", default="own", help="its validation part is filmed")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--frames", type=int, default=50, help="with each polyp, and as many without one")
    parser.add_argument("--smoothing", type=float, nargs="+", default=[0.0, 0.4, 0.6])
    arguments = parser.parse_args(argv)
    rows, partition = make_partition(load_source(arguments.data), arguments.split)
    rows = rows.select(partition.validation[: arguments.images])
    model, processor = load_model(arguments.model, trust_remote_code=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        packed = write_clip(path, scenes(rows, arguments.frames))
        print(f"{len(packed)} frames, {len(packed) / RATE:.0f} seconds, over {len(rows)} images")
        print("smoothing " + " ".join(f"{name:>12}" for name in Stillness._fields))
        for smoothing in arguments.smoothing:
            records = predicted(model, processor, path, Path(folder) / str(smoothing), smoothing)
            truths = (np.unpackbits(bits, count=SIZE * SIZE).reshape(SIZE, SIZE).astype(bool) for bits in packed)
            print(f"{smoothing:9g} " + " ".join(f"{value:12.4f}" for value in stillness(records, truths)), flush=True)


if __name__ == "__main__":
    main()
