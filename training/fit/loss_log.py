"""The training loss as the log shows it: kept on the device, exact through a resume, and watched for NaN."""

import json

import torch

FILE = "loss.json"


class LossLog:
    """Sums the loss of each optimizer step on the device until a log line, a validation or a save needs it.

    Attributes:
        logged_step: the step of the last log line.
        logged_sum: the losses of all steps up to it, summed.
    """

    def __init__(self, device):
        self.since_log = torch.zeros((), device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.logged_step, self.logged_sum = 0, 0.0

    def add(self, loss, step):
        """Add a micro-batch's share, float32 scalar, of the loss of a step."""
        loss = loss.detach().float()
        self.since_log = self.since_log + loss
        is_first = (self.first_bad < 0) & ~loss.isfinite()
        self.first_bad = torch.where(is_first, step, self.first_bad)

    def diverged_at(self):
        """The first step whose loss was not finite; None while all were. Waits for the device."""
        step = int(self.first_bad)
        return None if step < 0 else step

    def take_mean(self, step):
        """The mean loss of the steps since the last log line, up to this step."""
        total, steps = float(self.since_log), step - self.logged_step
        self.since_log = torch.zeros_like(self.since_log)
        self.logged_step, self.logged_sum = step, self.logged_sum + total
        return total / max(steps, 1)

    def mean_of_all(self, step):
        """The mean loss of all steps of the run, those before a resume included."""
        return (self.logged_sum + float(self.since_log)) / max(step, 1)

    def save(self, folder):
        state = {"step": self.logged_step, "sum": self.logged_sum, "since": float(self.since_log)}
        (folder / FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder, step):
        """Go on from a checkpoint of this step; one of an earlier release has no such file, and starts a new mean."""
        path = folder / FILE
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"step": step, "sum": 0, "since": 0}
        self.logged_step, self.logged_sum = state["step"], state["sum"]
        self.since_log = torch.full_like(self.since_log, state["since"])
