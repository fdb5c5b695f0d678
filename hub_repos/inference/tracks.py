"""Ids of polyps that persist: regions of a video's frames that overlap are one."""

from itertools import groupby
from typing import NamedTuple

import numpy as np

from hub_unets.training.data.coco import mask_api

OVERLAP = 0.1  # least intersection over union of a polyp's regions in two frames
GAP = 5  # frames, of those that are taken, in which a polyp may be missing


class Track(NamedTuple):
    """A polyp: its id, and its last region with the position of its frame."""

    id: int
    position: int
    region: dict


def number_tracks(records):
    """Give each polyp of a video's frames its `track_id`, which counts from 1 in each video.

    A polyp is one that was seen in the GAP + 1 frames before if their regions overlap by OVERLAP; of several the pair
    that overlaps most. Labels do not count: a polyp keeps its id where its class changes. What moves by more than its
    size between two frames, or is lost for longer, gets a new id.

    Args:
        records: of images; those of frames have `video` and `position`.
    """
    frames = sorted((record for record in records if "video" in record), key=_place)
    for _, of_video in groupby(frames, key=lambda record: record["video"]):
        tracks, count = [], 0
        for record in of_video:
            tracks = [track for track in tracks if record["position"] - track.position <= GAP + 1]
            matches = _matches(tracks, record["polyps"])
            for number, polyp in enumerate(record["polyps"]):
                count += number not in matches
                polyp["track_id"] = tracks[matches[number]].id if number in matches else count
            seen = {polyp["track_id"] for polyp in record["polyps"]}
            tracks = [track for track in tracks if track.id not in seen]
            tracks += [
                Track(polyp["track_id"], record["position"], polyp["segmentation"]) for polyp in record["polyps"]
            ]


def _place(record):
    return record["video"], record["position"]


def _matches(tracks, polyps):
    """{number of a polyp: number of its track}, the pairs that overlap most first."""
    if not tracks or not polyps:
        return {}
    regions = [polyp["segmentation"] for polyp in polyps]
    overlaps = mask_api().iou(regions, [track.region for track in tracks], [0] * len(tracks))  # -1: of other sizes
    matches = {}
    for pair in np.argsort(-overlaps, axis=None, kind="stable"):
        polyp, track = divmod(int(pair), len(tracks))
        if overlaps[polyp, track] < OVERLAP:
            break
        if polyp not in matches and track not in matches.values():
            matches[polyp] = track
    return matches
