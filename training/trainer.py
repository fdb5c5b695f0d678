"""The HF Trainer with a loss of ours: weighted sums per image, validation at the original size, EMA, exact resume."""

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from modeling.modeling_unet import align_labels
from training.checkpoints import CheckpointKeeper, last_complete
from training.metrics import count_pixels, summarize
from training.samples import EpochSampler, collate

EMA_FILE = "ema.safetensors"


class UNetTrainer(Trainer):
    """Trains one of our models.

    Args:
        model, args, train_dataset, eval_dataset, callbacks: as in Trainer; `args` is a RunArguments, the datasets are
            TrainingSamples and EvaluationSamples.
        loss: logits and labels to one number an image.
        processor: turns logits into masks at the original size.
    """

    def __init__(self, model, args, train_dataset, eval_dataset, loss, processor, callbacks=()):
        model = model.to(memory_format=torch.channels_last)
        self.sampler = EpochSampler(len(train_dataset), args.seed)
        self.loss, self.processor, self.ema = loss, processor, None
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            compute_metrics=self._validation_metrics,
        )
        # compute_loss divides by the images of the whole step: the Trainer must neither count tokens nor divide again
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.label_names = ["labels"]
        if args.ema_decay is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=True)
            self.ema.to(args.device)
        self.add_callback(EpochFollower(self.sampler, self.ema, model))
        self.add_callback(CheckpointKeeper(self._save_ema, self.accelerator.wait_for_everyone))
        if args.early_stopping_patience is not None:
            self.add_callback(QuietEarlyStopping(args.early_stopping_patience))
        for callback in callbacks:
            self.add_callback(callback)

    def train_or_resume(self):
        """Train from the newest complete checkpoint in the output folder, or from the start.

        Returns:
            the checkpoint resumed from (None at the start) and the half-written checkpoints passed over.
        """
        checkpoint, passed_over = last_complete(self.args.output_dir)
        if checkpoint is not None and self.ema is not None:
            _load_ema(self.ema, checkpoint / EMA_FILE)
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return checkpoint, passed_over

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many images they hold."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["labels"]) for batch in batches)

    def _get_num_items_in_batch(self, batch_samples, device):
        return None  # super() would count label tokens

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean of the images' losses; in training over all images of the optimizer step on this process."""
        pixel_values = inputs["pixel_values"].to(memory_format=torch.channels_last)
        outputs = model(pixel_values=pixel_values)
        losses = self.loss(outputs["logits"], align_labels(inputs["labels"], outputs["logits"], self.model.config))
        loss = losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and for each image its row and pixel counts at the original size, so that memory stays flat."""
        scored = model if self.ema is None else self.ema.module
        natives, rows = inputs.pop("native"), inputs.pop("row")
        inputs = self._prepare_inputs(inputs)
        with self.accelerator.autocast():
            loss, outputs = self.compute_loss(scored.eval(), inputs, return_outputs=True)
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
        """As Trainer's, with the encoder's parameters at `encoder_learning_rate`."""
        if self.args.encoder_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer()
        decayed = set(self.get_decay_parameter_names(self.model))
        groups = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith("encoder."), name in decayed), []).append(parameter)
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

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def _save_checkpoint(self, model, trial):
        folder = f"{self.args.output_dir}/checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # torch, safetensors and the file system each have their own for a full disk
            last, _ = last_complete(self.args.output_dir)
            kept = f"{last} is kept" if last else "there is none before it"
            raise OSError(
                f"{folder} can't be written ({error}); {kept}: make room and repeat the command to resume."
            ) from error

    def _save_ema(self, folder):
        if self.ema is not None:
            state = {name: tensor.contiguous() for name, tensor in self.ema.state_dict().items()}
            save_file(state, folder / EMA_FILE)

    def load_best(self):
        """Put the weights of the best validation Dice into the model (the averaged ones, if there are any).

        Returns:
            dict: `step` and `epoch` of the best checkpoint and its validation `dice`; None before any validation.
        """
        if self.state.best_global_step is None or not self.state.best_global_step:
            if self.ema is not None:
                self.model.load_state_dict(self.ema.module.state_dict())
            return None
        step = self.state.best_global_step
        folder = f"{self.args.output_dir}/checkpoint-{step}"
        if self.ema is None:
            self.model.load_state_dict(load_file(f"{folder}/model.safetensors"))
        else:
            _load_ema(self.ema, f"{folder}/{EMA_FILE}")
            self.model.load_state_dict(self.ema.module.state_dict())
        epoch = next(entry["epoch"] for entry in self.state.log_history if entry["step"] == step)
        return {"step": step, "epoch": epoch, "dice": self.state.best_metric}


class EpochFollower(TrainerCallback):
    """Tells the sampler the epoch before its first sample is drawn, and the moving average each step."""

    def __init__(self, sampler, ema, model):
        self.sampler, self.ema, self.model = sampler, ema, model

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        if self.ema is not None:
            self.ema.update_parameters(self.model)


class QuietEarlyStopping(EarlyStoppingCallback):
    """Early stopping without the warning about `load_best_model_at_end`: `load_best` does that here."""

    def on_train_begin(self, args, state, control, **kwargs):
        pass


def foreground_classes(num_labels):
    """The label of each foreground class: ((1,), (2,), ...)."""
    return tuple((label,) for label in range(1, num_labels))


def _load_ema(ema, path):
    ema.load_state_dict(load_file(path))
