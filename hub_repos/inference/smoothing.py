"""Video that holds still: the evidence of a frame is that of the frames before it, too."""

import math
from collections import deque

import torch

from hub_unets.training.errors import UserError
from hub_unets.training.measure.segmenter import frames

LEAST = 0.05  # a frame whose weight is below this share of the newest's is forgotten
HOLD = 1.0  # logits: a mark of the frames before stays until its evidence is this far below the threshold
NEVER = -(2**31)


class Smoother:
    """Logits of a video's frames, one after another, to logits that flicker less.

    A frame's logits become the mean of its own and those of the frames before, a frame's weight `smoothing` times that
    of the next. Thresholds have hysteresis: where a pixel was marked in one of the last `memory` frames and its
    evidence never fell below the threshold by HOLD since, HOLD is added. All that follows from logits, masks, regions
    and their scores, follows from these. They depend on the `reach` frames before and on nothing else, so that a run
    that starts there gives the same.

    Args:
        smoothing: the weight of a frame beside the next one's, above 0 and at most .95.
        processor: of the model; its mask tells what is marked.
        threshold: of a binary head; None takes the processor's.

    Raises:
        UserError: a weight out of range.
    """

    def __init__(self, smoothing, processor, threshold=None):
        if not 0 < smoothing <= 0.95:
            raise UserError(f"smoothing must be 0, which is none, or up to 0.95, got {smoothing}.")
        self.smoothing, self.processor, self.threshold = smoothing, processor, threshold
        self.memory = math.ceil(math.log(LEAST) / math.log(smoothing))
        self.reach, self.seen = 2 * self.memory, None

    def __call__(self, logits, place, image):
        """One frame's logits, 1 x C x h x w, smoothed.

        Args:
            logits: of the network; two channels become one, their difference.
            place: the frame's Place; another video starts anew, another size of frames, and an earlier frame.
            image: the frame, PIL.
        """
        logits = logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
        seen = place.video, image.size, logits.shape
        if seen != self.seen or place.position <= self.last[-1][0]:
            self.seen, self.last = seen, deque()
            self.since = torch.full(logits.shape[1:], NEVER, device=logits.device)
        self.last.append((place.position, logits.float()))
        while self.last[0][0] < place.position - self.memory:
            self.last.popleft()
        mean = self._mean(place.position)
        return mean + HOLD * self._held(mean, place.position, image)

    def _mean(self, position):
        weights = [self.smoothing ** (position - earlier) for earlier, _ in self.last]
        total = sum(weight * logits for weight, (_, logits) in zip(weights, self.last, strict=True))
        return total / sum(weights)

    def _held(self, mean, position, image):
        """Where a mark of the frames before is kept, bool C x h x w."""
        options = frames(self.processor, [image]) | ({} if self.threshold is None else {"threshold": self.threshold})
        (labels,) = self.processor.post_process_semantic_segmentation(mean, **options)
        channels = torch.arange(mean.shape[1]) if mean.shape[1] > 1 else torch.ones(1)
        marked = (labels == channels.to(mean.device)[:, None, None]) & (labels > 0)
        kept = (self._margin(mean[0]) > -HOLD) & (self.since >= position - self.memory)
        self.since = torch.where(marked, position, torch.where(kept, self.since, NEVER))
        return kept & ~marked

    def _margin(self, logits):
        """How far each channel's evidence, C x h x w, is above what a mark needs."""
        if len(logits) == 1:
            threshold = self.processor.mask_threshold if self.threshold is None else self.threshold
            return logits - torch.logit(torch.tensor(threshold, dtype=torch.float64)).float()
        best, second = logits.topk(2, dim=0).values
        return logits - torch.where(logits == best, second, best)
