"""The tensors of smp's Unet or UnetPlusPlus in our network of the same shape, with equal logits."""

from typing import NamedTuple

from hub_unets.training.errors import UserError

OTHER_ENCODER = "is its encoder another one than config.json or --encoder says?"


class Block(NamedTuple):
    """A decoder block here and there.

    Attributes:
        name, smp_name: before its tensors' names.
        inputs: (our width, smp's width) of each map that its first convolution reads, in our order: skips, the
            earliest first, then the map below. smp's order is the reverse.
    """

    name: str
    smp_name: str
    inputs: list


def block_width(tensors, smp_name):
    """The width of one of smp's decoder blocks.

    Raises:
        UserError: there is no such block.
    """
    weight = tensors.get(f"{smp_name}.conv2.0.weight")
    if weight is None:
        raise UserError(f"{smp_name} is missing: the checkpoint has another depth, or is not complete.")
    return len(weight)


def unet_blocks(tensors, encoder_channels):
    """(Blocks of a Unet, our decoder_channels)."""
    *skips, below = encoder_channels
    blocks, widths = [], []
    for number, skip in enumerate(reversed(skips)):
        name = f"decoder.blocks.{number}"
        blocks.append(Block(name, name, [(skip, skip), (below, below)]))
        below = block_width(tensors, name)
        widths.append(below)
    return blocks, widths


def unetplusplus_blocks(tensors, encoder_channels):
    """(Blocks of a UnetPlusPlus, our decoder_channels).

    In smp a level's last node has a width of its own, in ours that of the others: the larger one holds both.
    """
    depth = len(encoder_channels) - 1
    first_skip = next(level for level, channels in enumerate(encoder_channels) if channels)
    names = {
        (level, column): f"decoder.blocks.x_{depth - level - column}_{depth - 1 - level}"
        for level in range(depth)
        for column in range(1, depth - level + 1)
        if level >= first_skip or column == depth - level
    }
    smp_widths = {node: block_width(tensors, name) for node, name in names.items()}
    widths = [max(smp_widths[node] for node in names if node[0] == level) for level in range(depth)]

    def both_widths(level, column):
        channels = encoder_channels[level]
        return (widths[level], smp_widths[level, column]) if column else (channels, channels)

    blocks = []
    for (level, column), name in names.items():
        earlier = range(column) if level >= first_skip else ()
        inputs = [*(both_widths(level, index) for index in earlier), both_widths(level + 1, column - 1)]
        blocks.append(Block(f"decoder.nodes.{level}_{column}", name, inputs))
    return blocks, widths[::-1]


BLOCKS = {"unet": unet_blocks, "unetplusplus": unetplusplus_blocks}


def converted_state(tensors, initial, blocks):
    """Our model's state dict with smp's values.

    Args:
        tensors: {smp's name: tensor}.
        initial: our model's state dict; channels that smp does not have keep its values, and nothing reads them.
        blocks: those of its decoder.

    Raises:
        UserError: a tensor is missing, has another shape or has no place in our network.
    """
    remaining = _Remaining(tensors)
    state = {
        name: remaining.take(_encoder_names(name), tensor.shape)
        for name, tensor in initial.items()
        if name.startswith("encoder.")
    }
    for block in blocks:
        for number, inputs in ((0, block.inputs), (1, None)):
            prefix = f"{block.name}.conv.{number}."
            for name in [name for name in initial if name.startswith(prefix)]:
                smp_name = f"{block.smp_name}.conv{1 + number}.{name.removeprefix(prefix)}"
                smp_tensor = remaining.take([smp_name])
                state[name] = _widened(smp_tensor, initial[name], inputs, smp_name)
    for part in ("weight", "bias"):
        name = f"head.classifier.{part}"
        state[name] = remaining.take([f"segmentation_head.0.{part}"], initial[name].shape)
    if remaining.tensors:
        raise UserError(f"{next(iter(remaining.tensors))} has no place in our network: {OTHER_ENCODER}")
    return state


class _Remaining:
    """smp's tensors that have not been taken yet."""

    def __init__(self, tensors):
        self.tensors = dict(tensors)

    def take(self, names, shape=None):
        """The tensor that has one of the names.

        Raises:
            UserError: none has, or its shape is another.
        """
        name = next((name for name in names if name in self.tensors), None)
        if name is None:
            raise UserError(f"{names[0]} is missing in the checkpoint: {OTHER_ENCODER}")
        tensor = self.tensors.pop(name)
        if shape is not None and tensor.shape != shape:
            raise UserError(f"{name} is {tuple(tensor.shape)}, our network takes {tuple(shape)}: {OTHER_ENCODER}")
        return tensor


def _encoder_names(name):
    name = name.removeprefix("encoder.backbone.")
    return [f"encoder.{name}", f"encoder.model.{name}"]  # the second of tu- encoders


def _widened(tensor, initial, inputs, name):
    """A block's tensor in one of ours: for its channels its values, and zeros for what smp does not read.

    Raises:
        UserError: its shape is another.
    """
    if tensor.dim() == 0:
        return tensor.clone()  # batch norm's counter
    result, width = initial.clone(), len(tensor)
    if tensor.dim() == 1:
        result[:width] = tensor
        return result
    inputs = inputs or [(initial.shape[1], tensor.shape[1])]
    smp_widths = [smp_width for _, smp_width in inputs]
    if sum(smp_widths) != tensor.shape[1]:
        raise UserError(f"{name} reads {tensor.shape[1]} channels, {sum(smp_widths)} are given: {OTHER_ENCODER}")
    pieces = reversed(tensor.split(smp_widths[::-1], dim=1))
    result[:width] = 0
    start = 0
    for piece, (our_width, smp_width) in zip(pieces, inputs, strict=True):
        result[:width, start : start + smp_width] = piece
        start += our_width
    return result
