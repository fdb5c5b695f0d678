"""The HF Trainer with a loss of ours: weighted sums per image, validation at the original size, EMA, exact resume."""

import itertools
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SchedulerType

from hub_unets.modeling.layers import center_crop
from hub_unets.modeling.modeling_unet import align_labels
from hub_unets.training.data.samples import EpochSampler, collate
from hub_unets.training.errors import UserError
from hub_unets.training.fit.averages import LastEpochs
from hub_unets.training.fit.checkpoints import (
    CheckpointKeeper,
    last_complete,
    mark_complete,
    naming_write_errors,
    remove_older,
    require_best,
)
from hub_unets.training.fit.loss_log import LossLog
from hub_unets.training.fit.precision import depthwise_in_float32
from hub_unets.training.fit.teacher import soft_cross_entropy
from hub_unets.training.measure.metrics import count_pixels, summarize
from hub_unets.training.measure.weights import as_any_new_file, save_tensors

WEIGHTS, EMA_FILE = "model.safetensors", "ema.safetensors"
FIXED = {"save_total_limit": None, "save_only_model": False, "ignore_data_skip": False, "auto_find_batch_size": False}


class UNetTrainer(Trainer):
    """Trains one of our models.

    Args:
        model, args, train_dataset, eval_dataset, callbacks: as in Trainer; `args` is a RunArguments, the datasets are
            TrainingSamples and EvaluationSamples.
        loss: logits and labels to one number an image.
        processor: turns logits into masks at the original size.
        teacher: a Teacher, from whose probabilities the network learns too.

    Raises:
        UserError: a field of `args` that would leave a killed run without its checkpoint, or without its best one.
    """

    def __init__(self, model, args, train_dataset, eval_dataset, loss, processor, callbacks=(), teacher=None):
        require_resumable(args)
        model = model.to(memory_format=torch.channels_last)
        if args.bf16 and args.device.type == "cpu":
            depthwise_in_float32(model)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        self.sampler = EpochSampler(len(train_dataset), args.seed, args.copies)
        self.loss, self.processor, self.teacher, self.ema = loss, processor, teacher, None
        super().__init__(
            model=model,
            args=args,
            data_collator=partial(checked_collate, config=model.config),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            compute_metrics=self._validation_metrics,
        )
        self._leave_the_loss_as_it_is()
        self.label_names = ["labels"]
        if args.ema_decay is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=True)
            self.ema.to(args.device)
        self.add_callback(EpochFollower(self.sampler, self.ema, model))
        self.last_epochs = None
        if args.average_last is not None:
            self.last_epochs = LastEpochs(args.average_last, model if self.ema is None else self.ema.module)
            self.add_callback(self.last_epochs)
        self.add_callback(CheckpointKeeper())
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping())
        for callback in callbacks:
            self.add_callback(callback)
        self.saved_step, self.losses = None, LossLog(args.device)
        self.started = time.perf_counter()

    def train_from(self, checkpoint):
        """Train to the end, from a complete checkpoint or, where that is None, from the start."""
        if checkpoint is None:
            self.train()
            return
        if self.ema is not None:
            _load_ema(self.ema, checkpoint / EMA_FILE)
        if self.last_epochs is not None:
            self.last_epochs.load(checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.best_global_step:
            require_best(self.args.output_dir, state.best_global_step)
        self.started -= max((entry.get("seconds", 0) for entry in state.log_history), default=0)
        self.losses.load(checkpoint, state.global_step)
        if state.global_step >= state.max_steps or out_of_patience(state.log_history, self.args):
            self.state = state
            self.model.load_state_dict(load_file(checkpoint / WEIGHTS))
        else:
            self.train(resume_from_checkpoint=str(checkpoint))

    def log(self, logs, *args, **kwargs):
        """As Trainer's, with the seconds and the mean losses of the whole run, its steps before a resume included."""
        step = self.state.global_step
        if "loss" in logs:
            self._require_converging(self.losses.diverged_at())
            logs = {**logs, "loss": self.losses.take_mean(step)}
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self.losses.mean_of_all(step)}
        super().log({**logs, "seconds": round(time.perf_counter() - self.started, 1)}, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step with each image's weight, and how many images all processes hold."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        accumulation = self.args.gradient_accumulation_steps
        steps_per_epoch = math.ceil(len(self.callback_handler.train_dataloader) / accumulation)
        first = self.state.global_step % steps_per_epoch * accumulation
        for number, batch in enumerate(batches, start=first):
            batch["weight"] = self._weights(number, len(batch["labels"])).to(device)
        images = sum((batch["weight"].sum() for batch in batches), torch.zeros((), device=device))
        return batches, self.accelerator.reduce(images)

    def _weights(self, number, size):
        """0 where accelerate repeats images, so that every process has a full last batch; else 1."""
        start = (number * self.args.world_size + self.args.process_index) * self.args.train_batch_size
        return (torch.arange(start, start + size) < len(self.sampler)).float()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean of the images' losses; in training over all images of the optimizer step on all processes."""
        pixel_values = inputs["pixel_values"].to(memory_format=torch.channels_last)
        outputs = model(pixel_values=pixel_values)
        labels = center_crop(inputs["labels"], outputs["logits"].shape[-2:])  # smaller with `valid` padding alone
        supervised = [outputs["logits"], *(outputs.get("auxiliary_logits") or ())]
        losses = sum(self.loss(logits, labels) for logits in supervised) / len(supervised)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            if self.teacher is not None:
                probabilities = self.teacher(pixel_values, outputs["logits"].shape[-2:])
                losses = losses + self.args.teacher_weight * soft_cross_entropy(outputs["logits"], probabilities)
            # the processes' gradients are averaged
            loss = (losses * inputs["weight"]).sum() * self.args.world_size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args, **kwargs):
        """As Trainer's; the loss it returns, for the log, is the mean over the processes."""
        loss = self.accelerator.reduce(super().training_step(*args, **kwargs), "mean")
        self.losses.add(loss, self.state.global_step + 1)
        if loss.device.type == "cpu":  # elsewhere a look at each step would make the device wait
            self._require_converging(self.losses.diverged_at())
        return loss

    def evaluate(self, *args, **kwargs):
        """As Trainer's, with the first process's batch-norm statistics on all: they are the ones that are saved.

        Raises:
            UserError: the validation loss is not finite.
        """
        if self.args.world_size > 1:
            for module in (self.model, self.ema):
                for buffer in [] if module is None else module.buffers():
                    torch.distributed.broadcast(buffer, 0)
        metrics = super().evaluate(*args, **kwargs)
        loss = next((value for name, value in metrics.items() if name.endswith("_loss")), 0.0)
        self._require_converging(None if math.isfinite(loss) else self.state.global_step, "validation loss")
        return metrics

    def _require_converging(self, step, quantity="loss"):
        """Raise UserError where there is a step at which something was not finite."""
        if step is None:
            return
        checkpoint, _ = last_complete(self.args.output_dir)
        hint = f"{checkpoint}, the last good checkpoint, is kept" if checkpoint else "there is no good checkpoint yet"
        raise UserError(
            f"training diverged at step {step}: the {quantity} is not finite; {hint}. Lower learning_rate (it is "
            f"{self.args.learning_rate}) or max_grad_norm, or take precision fp32, in another output_dir"
            + (f" (--start_from {checkpoint} goes on from it)." if checkpoint else ".")
        )

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and for each image its row and pixel counts at the original size, so that memory stays flat."""
        scored_model = model if self.ema is None else self.ema.module
        natives, rows = inputs.pop("native"), inputs.pop("row")
        inputs = {name: tensor.to(self.args.device) for name, tensor in inputs.items()}
        with self.accelerator.autocast():
            loss, outputs = self.compute_loss(scored_model.eval(), inputs, return_outputs=True)
        sizes = [native.shape for native in natives]
        masks = self.processor.post_process_semantic_segmentation(outputs, sizes)
        classes = foreground_classes(self.model.config.num_labels)
        counts = [
            count_pixels(mask.cpu().numpy(), native, classes) for mask, native in zip(masks, natives, strict=True)
        ]
        counts = torch.from_numpy(np.stack(counts)).to(loss.device)
        return loss.float(), counts, rows.to(loss.device)

    def _validation_metrics(self, prediction):
        summary = summarize(prediction.predictions)
        values = {name: value["value"] for name, value in summary["per_image"].items()}
        return {**values, "pooled_dice": summary["pooled"]["dice"]["value"]}

    def create_optimizer(self, model=None):
        """As Trainer's, with the encoder's parameters (a backbone's, not new layers) at `encoder_learning_rate`."""
        if self.args.encoder_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer()
        decayed = self.get_decay_parameter_names(self.model)
        pretrained = "encoder." if self.model.config.backbone is None else "encoder.backbone."
        groups = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith(pretrained), name in decayed), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rates = {True: self.args.encoder_learning_rate, False: self.args.learning_rate}
        decays = {True: self.args.weight_decay, False: 0.0}
        self.optimizer = optimizer_class(
            [
                {"params": parameters, "lr": rates[in_encoder], "weight_decay": decays[decays_too]}
                for (in_encoder, decays_too), parameters in sorted(groups.items())
            ],
            **options,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As Trainer's, but a plateau is that of the metric for the best model, which may be better when greater."""
        if self.args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
            mode = "max" if self.args.greater_is_better else "min"
            self.args.lr_scheduler_kwargs = {"mode": mode, **(self.args.lr_scheduler_kwargs or {})}
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model):
        """Weights of convolutions and linear layers; norms, biases and layer scales are vectors in every backbone."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() > 1 and "bias" not in name]

    def _save_ema(self, folder):
        if self.ema is not None:
            save_tensors(self.ema.state_dict(), folder / EMA_FILE)

    def load_best(self):
        """Put the weights of the best validation Dice into the model (the averaged ones, if there are any).

        With `average_last` it is the mean of the last epochs' weights instead, whatever their Dice.

        Returns:
            dict: `step` and `epoch` of the best checkpoint and its validation `dice`; None before any validation. With
            `average_last` those of the end, the Dice of the mean, and `averaged`, the number of epochs.
        """
        if self.last_epochs is not None:
            return self._load_average()
        if not self.state.best_global_step:
            if self.ema is not None:
                self.model.load_state_dict(self.ema.module.state_dict())
            return None
        step = self.state.best_global_step
        require_best(self.args.output_dir, step)
        folder = f"{self.args.output_dir}/checkpoint-{step}"
        if self.ema is None:
            self.model.load_state_dict(load_file(f"{folder}/{WEIGHTS}"))
        else:
            _load_ema(self.ema, f"{folder}/{EMA_FILE}")
            self.model.load_state_dict(self.ema.module.state_dict())
        best = next(entry for entry in self.state.log_history if entry["step"] == step and "eval_dice" in entry)
        return {"step": step, "epoch": best["epoch"], "dice": best["eval_dice"]}

    # Overrides of transformers' private methods, all in this section; tests/training/fit/test_contract.py checks them.

    def _leave_the_loss_as_it_is(self):
        """compute_loss divides by the images of the whole step: the Trainer must neither count tokens nor divide."""
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def _save_checkpoint(self, model, trial):
        step, output_dir = self.state.global_step, self.args.output_dir
        if step == self.saved_step:
            return  # the end of an epoch whose last step was saved: writing it again would put it at risk
        self._require_converging(self.losses.diverged_at())
        self._require_converging(None if is_finite(self.model) else step, "network")
        folder = Path(output_dir) / f"checkpoint-{step}"
        with naming_write_errors(folder):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                as_any_new_file(folder / WEIGHTS)
                self._save_ema(folder)
                if self.last_epochs is not None:
                    self.last_epochs.save(folder)
                self.losses.save(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder)
                remove_older(output_dir, {step, self.state.best_global_step})
        self.saved_step = step

    def _load_average(self):
        weights = self.last_epochs.mean.module.state_dict()
        for module in (self.model, self.ema and self.ema.module):
            if module is not None:
                module.load_state_dict(weights)
        dice = self.predict(self.eval_dataset).metrics["test_dice"]
        return {
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "dice": dice,
            "averaged": self.last_epochs.count,
        }


class EpochFollower(TrainerCallback):
    """Tells the sampler the epoch before its first sample is drawn, and the moving average each step."""

    def __init__(self, sampler, ema, model):
        self.sampler, self.ema, self.model = sampler, ema, model

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        if self.ema is not None:
            self.ema.update_parameters(self.model)


class EarlyStopping(TrainerCallback):
    """Stops after some evaluations without a better one, counted in the history: a resumed run counts alike."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= out_of_patience(state.log_history, args)


def out_of_patience(history, args):
    """Whether `early_stopping_patience` evaluations follow the first best one of a log history; False without it.

    The best is that of `metric_for_best_model`, as for the checkpoint that is kept.
    """
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    values = [entry[name] for entry in history if entry.get(name) is not None]
    if args.early_stopping_patience is None or not values:
        return False
    best = int(np.argmax(values) if args.greater_is_better else np.argmin(values))
    return len(values) - 1 - best >= args.early_stopping_patience


def require_resumable(args):
    """Raise UserError, naming the field, unless a killed run can go on exactly and end with its best epoch."""
    for name, value in FIXED.items():
        if getattr(args, name) != value:
            raise UserError(
                f"{name} must stay {value}: the newest and the best checkpoint are kept, to resume exactly."
            )
    if args.save_strategy == "no":
        raise UserError("save_strategy must be epoch, steps or best: the best epoch is read back from its checkpoint.")
    if args.average_last is not None and args.early_stopping_patience is not None:
        raise UserError("average_last takes the last epochs, early_stopping_patience the best: leave one of them out.")
    if args.early_stopping_patience is not None and args.early_stopping_patience < 1:
        raise UserError(f"early_stopping_patience must be at least 1, got {args.early_stopping_patience}.")


def checked_collate(items, config):
    """A batch whose labels are the model's own: on the CPU, where a look at them makes no device wait.

    Raises:
        ValueError: labels that the model does not have.
    """
    batch = collate(items)
    align_labels(batch["labels"], batch["labels"][:, None], config)
    return batch


def is_finite(model):
    """Whether all of a model's weights and statistics are."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def foreground_classes(num_labels):
    """The label of each foreground class: ((1,), (2,), ...)."""
    return tuple((label,) for label in range(1, num_labels))


def _load_ema(ema, path):
    ema.load_state_dict(load_file(path))
