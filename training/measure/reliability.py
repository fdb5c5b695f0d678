"""Calibration of the probabilities: the reliability table of pooled pixels, and its error ECE."""

TABLE_BINS = 20
DEFINITION = (
    "ECE is pixelwise and pooled: all pixels of all images are sorted into 20 equal bins by the predicted probability "
    "of a polyp, and the differences between a bin's mean probability and its share of polyp pixels are averaged, "
    "weighted by the pixels."
)


def reliability_table(pooled):
    """A row for each of TABLE_BINS bins of the probability, `above` (not of it) to `up_to`: pixels, those that are
    polyp, and the mean probability (None without pixels).

    Args:
        pooled: float64 3 x TABLE_BINS, pixels of background, of polyp, and the sum of their probabilities.
    """
    rows = []
    background, polyp, total = pooled.tolist()
    for number, (outside, inside, summed) in enumerate(zip(background, polyp, total, strict=True)):
        pixels = int(outside + inside)
        bounds = {"above": number / TABLE_BINS, "up_to": (number + 1) / TABLE_BINS}
        mean = summed / pixels if pixels else None
        rows.append(bounds | {"pixels": pixels, "polyp_pixels": int(inside), "probability": mean})
    return rows


def expected_calibration_error(table):
    """ECE (Guo et al. 2017) of the polyp's probability, 0..1, from a reliability table."""
    gaps = [abs(row["pixels"] * row["probability"] - row["polyp_pixels"]) for row in table if row["pixels"]]
    return sum(gaps) / sum(row["pixels"] for row in table)
