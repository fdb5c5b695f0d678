"""What a model is scored for: its classes, the labels of the masks, a boundary as a class."""

from dataclasses import dataclass

import numpy as np

from hub_unets.training.data.reading import IGNORE, check_boundary_width, read_labels
from hub_unets.training.errors import UserError
from hub_unets.training.measure.models import polyp_labels_of


@dataclass(frozen=True)
class Task:
    """What a model is scored for; by default two labels, of which 1 is polyp.

    Attributes:
        classes: for each foreground class the model's labels that count as it.
        num_labels: of the masks.
        is_grouped: every label of the masks above 0 is one class, polyp.
        boundary_width: makes label 2 of the true masks, as for training; see `training.data.reading.with_boundary`.
    """

    classes: tuple = ((1,),)
    num_labels: int = 2
    is_grouped: bool = True
    boundary_width: int | None = None

    def __post_init__(self):
        check_boundary_width(self.boundary_width, self.num_labels)

    @classmethod
    def of_classes(cls, config, boundary_width=None):
        """The masks hold the model's own classes, and each is scored."""
        classes = tuple((label,) for label in range(1, config.num_labels))
        return cls(classes, config.num_labels, False, boundary_width)

    @classmethod
    def of_polyps(cls, config, polyp_labels=None, mask_labels=None, boundary_width=None):
        """One class, polyp: of the model these labels (None: those that its names tell), of the masks all above 0.

        Raises:
            UserError: labels that the model does not have, or all of them.
        """
        check_boundary_width(boundary_width, mask_labels or 2)
        labels = tuple(polyp_labels or polyp_labels_of(config))
        if not set() < set(labels) < set(range(config.num_labels)):
            raise UserError(
                f"polyp_labels must be some of the model's labels, 0 to {config.num_labels - 1}, and not all of them, "
                f"got {list(labels)}."
            )
        return cls((labels,), mask_labels or 2, True, boundary_width)

    @classmethod
    def of_run(cls, config, boundary_width=None):
        """What a run is scored for: polyps where there are two labels, else each class."""
        kind = cls.of_polyps if config.num_labels == 2 else cls.of_classes
        return kind(config, boundary_width=boundary_width)

    @property
    def labels(self):
        """Every label of the model that counts as foreground."""
        return [label for labels in self.classes for label in labels]

    def truth(self, row):
        """A row's true labels, uint8 H x W; grouped, every label above 0 is 1."""
        labels = read_labels(row["annotation"], row["name"], self.num_labels, self.boundary_width)
        return np.where(labels == IGNORE, IGNORE, labels > 0).astype(np.uint8) if self.is_grouped else labels

    def evidence(self, logits):
        """One image's logits C x h x w; grouped ones of several labels as the polyp's log-odds, 1 x h x w."""
        if not self.is_grouped or logits.shape[0] == 1:
            return logits
        other_labels = [label for label in range(logits.shape[0]) if label not in self.labels]
        return (logits[self.labels].logsumexp(0) - logits[other_labels].logsumexp(0))[None]
