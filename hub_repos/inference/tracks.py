"""Ids of polyps that persist: regions of a video's frames that overlap are one."""

from itertools import groupby
from typing import NamedTuple

import numpy as np

from hub_unets.training.data.coco_masks import mask_api

OVERLAP = 0.1  # least intersection over union of a polyp's regions in two frames
GAP = 5  # frames, of those that are taken, in which a polyp may be missing


class Track(NamedTuple):
    """A polyp: its id, and its last region with the position of its frame."""

    id: int
    position: int
    region: dict


def number_tracks(records):
    """Give each polyp of a video's frames its `track_id`, which counts from 1 in each video; yields the records.

    A polyp is one that was seen in the GAP + 1 frames before if their regions overlap by OVERLAP; of several the pair
    that overlaps most. Labels do not count: a polyp keeps its id where its class changes. What moves by more than its
    size between two frames, or is lost for longer, gets a new id.

    Args:
        records: of images; those of frames have `video` and `position`, and a video's stand together in time.
    """
    for video, of_video in groupby(records, key=lambda record: record.get("video")):
        tracks, count = [], 0
        for record in of_video:
            if video is not None:
                tracks, count = _numbered(record, tracks, count)
            yield record


def _numbered(record, tracks, count):
    """Number a frame's polyps; returns the Tracks that may go on, and the highest id so far."""
    tracks = [track for track in tracks if record["position"] - track.position <= GAP + 1]
    matches = _matches(tracks, record["polyps"])
    for number, polyp in enumerate(record["polyps"]):
        count += number not in matches
        polyp["track_id"] = tracks[matches[number]].id if number in matches else count
    seen = {polyp["track_id"]: polyp["segmentation"] for polyp in record["polyps"]}
    others = [track for track in tracks if track.id not in seen]
    return others + [Track(number, record["position"], region) for number, region in seen.items()], count


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
