"""Our weights under the keys of segmentation-models-pytorch."""

import re

import torch


def renamed(module, *rules):
    """The state of a module under the keys that (pattern, replacement) rules make of its own."""
    state = {}
    for key, tensor in module.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = tensor
    return state


def smp_block(block, name, nodes):
    """Our block's state as one of smp's, which upsamples without a convolution and concatenates the skip last.

    A 1x1 convolution without bias, an interpolation and a zero-padded 3x3 convolution are the interpolation and one
    3x3 convolution; `nodes` maps stand in the skip, in smp the latest first.
    """
    state = {f"{name}.conv{1 + int(key[0])}{key[1:]}": tensor for key, tensor in block.conv.state_dict().items()}
    projection = block.upsample.conv.weight[:, :, 0, 0]  # out x in
    skip, upsampled = state[f"{name}.conv1.0.weight"].tensor_split([-len(projection)], dim=1)
    folded = torch.einsum("omhw,mi->oihw", upsampled, projection)
    state[f"{name}.conv1.0.weight"] = torch.cat([folded, *reversed(skip.tensor_split(nodes, dim=1))], dim=1)
    return state
