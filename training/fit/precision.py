"""Depthwise convolutions that are slow in bfloat16 on a CPU compute in float32."""

import torch
from torch import nn


class Float32Conv2d(nn.Conv2d):
    """A convolution in float32 whose result has the type that autocast asks for."""

    def forward(self, features):
        kind = features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
        with torch.autocast(kind, enabled=False):
            return super().forward(features.float()).to(dtype)


def depthwise_in_float32(model):
    """Turn depthwise convolutions with a stride, or larger than 3 x 3, into Float32Conv2d; returns how many.

    PyTorch's bfloat16 has fast kernels for 3 x 3 at stride 1 only: forward and backward of the others took 1.6 to 18
    times as long as in float32 (one thread, AVX512 with bf16, torch 2.15), a quarter of a MobileNetV2 U-Net's step.
    """
    slow = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
        and module.groups == module.in_channels > 1
        and (max(module.stride) > 1 or max(module.kernel_size) > 3)
    ]
    for module in slow:
        module.__class__ = Float32Conv2d  # keeps weights, keys and hooks
    return len(slow)
