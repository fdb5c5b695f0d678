"""A convolution's weights in int8, rounded one after the other: the next weights make up for each rounding error.

Rounded alone, the errors of a kernel's weights add up where its inputs are alike, as neighbouring pixels are.
(Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, ICLR 2023, arXiv:2210.17323, section 3.)
"""

import numpy as np
import torch
import torch.nn.functional as F

LARGEST = 127  # of a weight's int8, symmetric
LEAST_SCALE = 1e-8
MOST_POSITIONS = 1024  # of a map, taken evenly: as many images say more than all of a few
MOST_STEPS = 4  # between a rounded weight and its own value
MOST_INPUTS = 2048  # of an output; with more the errors cancel, and the moments take minutes
DAMPING = 0.01  # of the moments' mean: what inputs were not seen


def channel_scales(weight, axis):
    """One float32 scale for each output channel, along `axis` of a weight; its largest value becomes 127 or -127."""
    others = tuple(number for number in range(weight.ndim) if number != axis)
    return np.maximum(np.abs(weight).max(axis=others) / LARGEST, LEAST_SCALE).astype(np.float32)


def rounded_alone(weight, scales, axis):
    """Each weight by itself to the nearest step, int8."""
    shape = [-1 if number == axis else 1 for number in range(weight.ndim)]
    return np.rint(weight / scales.reshape(shape)).astype(np.int8)


def has_moments(weight):
    """Whether a Conv's weight, out x in x h x w, is rounded with the moments of its inputs."""
    return weight[0].size <= MOST_INPUTS


def input_moments(values, weight, attributes):
    """Products of every two inputs of an output, summed over MOST_POSITIONS or all: float64 groups x K x K.

    Args:
        values: a map, 1 x C x H x W.
        weight: of the Conv that takes it, out x in x h x w; K is in * h * w.
        attributes: the Conv's, by name.
    """
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = F.pad(torch.from_numpy(values), (left, right, top, bottom))
    options = {"stride": attributes.get("strides", [1, 1]), "dilation": attributes.get("dilations", [1, 1])}
    columns = F.unfold(padded, weight.shape[2:], **options)
    columns = columns[..., :: -(-columns.shape[-1] // MOST_POSITIONS)]
    columns = columns.reshape(attributes.get("group", 1), weight[0].size, -1)
    return torch.bmm(columns, columns.mT).double().numpy()


def rounded(weight, scales, moments):
    """Weights, out x in x h x w, to int8 so that results change little for inputs of these moments."""
    groups, size, _ = moments.shape
    steps = (weight / scales[:, None, None, None]).reshape(groups, -1, size).astype(np.float64)
    found = np.stack([_rounded_group(*group) for group in zip(steps, moments, strict=True)])
    return found.reshape(weight.shape).astype(np.int8)


def _rounded_group(steps, moments):
    """Steps, out x K, to whole numbers; what one column loses is taken from the columns after it."""
    size, own = len(moments), steps.copy()
    damped = moments + np.eye(size) * (DAMPING * np.trace(moments) / size + 1e-9)
    shares = np.linalg.cholesky(np.linalg.inv(damped)).T
    for column in range(size):
        least, most = np.ceil(own[:, column] - MOST_STEPS), np.floor(own[:, column] + MOST_STEPS)
        whole = np.clip(np.rint(steps[:, column]), np.maximum(least, -LARGEST), np.minimum(most, LARGEST))
        errors = (steps[:, column] - whole) / shares[column, column]
        steps[:, column] = whole
        steps[:, column + 1 :] -= np.outer(errors, shares[column, column + 1 :])
    return steps
