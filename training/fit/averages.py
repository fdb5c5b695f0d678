"""The mean of the last epochs' weights, independent of a noisy validation (Izmailov et al. 2018)."""

from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from hub_unets.training.errors import UserError
from hub_unets.training.measure.weights import save_tensors

AVERAGE_FILE = "average.safetensors"


class LastEpochs(TrainerCallback):
    """Keeps the mean of the weights, and of the batch-norm statistics, at the ends of the last `count` epochs.

    Args:
        count: number of epochs.
        model: whose weights are averaged: the network, or its moving average.
    """

    def __init__(self, count, model):
        self.count, self.model = count, model
        self.mean = AveragedModel(model, use_buffers=True)

    def on_train_begin(self, args, state, control, **kwargs):
        if self.count > state.num_train_epochs:
            raise UserError(
                f"average_last={self.count} needs as many epochs; this run has {state.num_train_epochs}: lower it."
            )

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if ends_epoch and state.epoch > state.num_train_epochs - self.count:
            self.mean.update_parameters(self.model)

    def save(self, folder):
        save_tensors(self.mean.state_dict(), folder / AVERAGE_FILE)

    def load(self, folder):
        self.mean.load_state_dict(load_file(folder / AVERAGE_FILE))
