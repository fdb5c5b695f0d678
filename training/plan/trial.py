"""A trial of the training step at its full size: does it fit into memory, and how long does an image take?"""

import math
import time
from typing import NamedTuple

import psutil
import torch

from hub_unets.training.data.samples import collate
from hub_unets.training.errors import UserError
from hub_unets.training.fit.precision import depthwise_in_float32

MEMORY_SHARE = 0.7  # of what is free, for a step: the rest is for decoding, validation and other programs
TIMED_STEPS = 2


class Trial(NamedTuple):
    """What a trial found.

    Attributes:
        batch: images that fit into a step, at most as many as were asked for.
        seconds: an image takes, augmentation included; of a CPU without other load.
        memory: bytes that the step took.
    """

    batch: int
    seconds: float
    memory: int


def try_steps(model, samples, loss, arguments, batch, memory) -> Trial:
    """Forward, backward and an optimizer's step that changes nothing, as a run takes them.

    Args:
        model: one of our models; its weights stay as they are, batch-norm statistics do not.
        samples: TrainingSamples.
        loss: logits and labels to one number an image.
        arguments: RunArguments, for device and precision.
        batch: images a step that are wanted.
        memory: bytes that are free.

    Raises:
        UserError: not even one image fits, or the loss is not finite.
    """
    stepper = _Stepper(model, samples, loss, arguments)
    if arguments.device.type == "cuda":
        batch = _fitting_on_gpu(stepper, batch, MEMORY_SHARE * memory)
    else:
        first = min(2, batch)  # batch norm may need two
        taken = stepper.bytes_of_step(first)
        _require_memory(taken / max(memory, 1), first)
        batch = _fitting(batch, taken / first, MEMORY_SHARE * memory)
    taken = stepper.bytes_of_step(batch)
    seconds = min(stepper.seconds_of_step(batch) for _ in range(TIMED_STEPS))
    return Trial(batch, seconds / batch, taken)


class _Stepper:
    def __init__(self, model, samples, loss, arguments):
        self.device = arguments.device
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        if arguments.bf16 and self.device.type == "cpu":
            depthwise_in_float32(self.model)
        self.dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
        self.samples, self.loss, self.drawn = samples, loss, 0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0)
        self.base = psutil.Process().memory_info().rss

    def __call__(self, batch, look=lambda: None):
        keys = [divmod(self.drawn + number, len(self.samples)) for number in range(batch)]
        self.drawn += batch
        inputs = {
            name: tensor.to(self.device) for name, tensor in collate([self.samples[key] for key in keys]).items()
        }
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.model(inputs["pixel_values"].to(memory_format=torch.channels_last))
        value = self.loss(outputs.logits, inputs["labels"]).mean()
        look()
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        look()
        if not math.isfinite(value.item()):
            raise UserError(
                f"the loss of a trial step is {value.item()}: look at the images, or take --precision fp32."
            )

    def bytes_of_step(self, batch):
        """What the process holds in a step: on a GPU all of its tensors, else what is more than before all steps."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self(batch)
            return torch.cuda.max_memory_allocated()
        process, looks = psutil.Process(), []
        self(batch, lambda: looks.append(process.memory_info().rss))
        return max(looks) - self.base

    def seconds_of_step(self, batch):
        """Of the wall clock on a GPU; on a CPU of its cores' time, so that other programs do not count."""
        if self.device.type != "cpu":
            start = time.perf_counter()
            self(batch)  # ends with a look at the loss, which waits for the device
            return time.perf_counter() - start
        start = time.process_time()
        self(batch)
        return (time.process_time() - start) / torch.get_num_threads()


def _fitting(batch, bytes_per_image, memory):
    """The batch, halved until it fits."""
    while batch > 1 and batch * bytes_per_image > memory:
        batch //= 2
    return batch


def _fitting_on_gpu(stepper, batch, memory):
    """The batch, halved until a step of it takes no more than `memory` bytes."""
    while True:
        try:
            if stepper.bytes_of_step(batch) <= memory or batch == 1:
                return batch
        except torch.cuda.OutOfMemoryError as error:
            if batch == 1:
                raise UserError("not one image fits into the GPU's memory: give a smaller --image_size.") from error
            stepper.optimizer.zero_grad()
            torch.cuda.empty_cache()
        batch //= 2


def _require_memory(share, images):
    if share > MEMORY_SHARE:
        raise UserError(
            f"a step of {images} images takes {share:.0%} of the free memory: give a smaller --image_size."
        )
