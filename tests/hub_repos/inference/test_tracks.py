"""Regions of a video's frames with ids, by hand."""

import numpy as np

from hub_unets.hub_repos.inference.tracks import GAP, number_tracks
from hub_unets.training.data.coco import mask_api


def record(position, *boxes, video="clip", size=(20, 30)):
    """A frame with a region for each box, (row, column, side)."""
    polyps = []
    for row, column, side in boxes:
        mask = np.zeros(size, np.uint8, order="F")
        mask[row : row + side, column : column + side] = 1
        polyps.append({"segmentation": mask_api().encode(mask)})
    return {"video": video, "position": position, "polyps": polyps}


def ids(*records):
    assert list(number_tracks(records)) == list(records)
    return [[polyp["track_id"] for polyp in record["polyps"]] for record in records]


def test_a_polyp_that_moves_keeps_its_id_and_a_new_one_gets_the_next():
    assert ids(record(0, (2, 2, 6)), record(1, (3, 4, 6), (10, 20, 5)), record(2, (10, 19, 5), (4, 6, 6))) == [
        [1],
        [1, 2],
        [2, 1],
    ]


def test_an_id_survives_a_short_gap_and_no_longer_one():
    assert ids(record(0, (2, 2, 6)), record(1), record(GAP + 1, (2, 3, 6))) == [[1], [], [1]]
    assert ids(record(0, (2, 2, 6)), record(1), record(GAP + 2, (2, 3, 6))) == [[1], [], [2]]


def test_of_two_the_one_that_overlaps_more_keeps_the_id():
    assert ids(record(0, (0, 0, 10)), record(1, (0, 7, 10), (0, 1, 5))) == [[1], [2, 1]]
    assert ids(record(0, (0, 0, 6), (0, 8, 6)), record(1, (0, 0, 14))) == [[1, 2], [1]]  # two that meet


def test_what_jumps_or_changes_the_frame_s_size_is_another():
    assert ids(record(0, (2, 2, 6)), record(1, (2, 8, 6))) == [[1], [2]]
    assert ids(record(0, (2, 2, 6)), record(1, (2, 2, 6), size=(40, 60))) == [[1], [2]]


def test_each_video_counts_from_one_and_images_have_none():
    still = {"polyps": record(0, (2, 2, 6))["polyps"]}
    assert ids(record(0, (2, 2, 6)), record(1, (2, 2, 6), video="other")) == [[1], [1]]
    assert list(number_tracks([still])) == [still]
    assert "track_id" not in still["polyps"][0]
