"""The fields of a run: transformers' TrainingArguments, and those that only segmentation has."""

from dataclasses import dataclass, field

import torch
import yaml
from transformers import TrainingArguments

from hub_unets.training.errors import UserError
from hub_unets.training.settings.texts import mapping_of, value_of
from hub_unets.training.settings.trainer_fields import check_trainer_fields

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LARGEST_SIZE = 16_384  # pixels


@dataclass
class RunArguments(TrainingArguments):
    """One run: data, network, training."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; repeating the command resumes it. Default: runs/RECIPE."}
    )
    variant: str = field(default="unet", metadata={"help": "model_type of the network, as in modeling/modeling_*.py."})
    data: str = field(
        default="phantoms",
        metadata={"help": "Folder, zip, COCO or parquet file, Hub id, or phantoms?count=240&size=256&seed=0."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column (or sub-folder) of the images, where it can't be told by itself."}
    )
    mask_column: str | None = field(
        default=None, metadata={"help": "Column (or sub-folder) of the masks, where it can't be told by itself."}
    )
    split: str = field(
        default="80/10/10",
        metadata={
            "help": "official, official-halved, pranet, 80/10/10, half-validation, fold-1-of-5, clinicdb, or own (the "
            "source's parts)."
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of the split, apart from the training seed."})
    extra_data: str | None = field(
        default=None, metadata={"help": "A second data set with masks, all but whose test part is trained on, too."}
    )
    extra_split: str = field(
        default="all", metadata={"help": "Split of extra_data, as split: clinicdb, say; all has no test part."}
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "Keep at most this many images of each part; for a quick trial."}
    )
    negatives: str | None = field(
        default=None, metadata={"help": "Folder of frames without a polyp, each of which an epoch shows too."}
    )
    teacher: list[str] = field(
        default=None,
        metadata={
            "help": "Models (folders or Hub ids, ID@REVISION) whose mean probability for the same augmented pixels is "
            "a second target: distillation."
        },
    )
    teacher_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy with the teacher, beside the losses' own."}
    )
    teacher_flips: bool = field(
        default=False, metadata={"help": "Of each teacher the mean logits of each sample and its three mirror images."}
    )
    unlabelled: str | None = field(
        default=None,
        metadata={"help": "Folder of frames without masks, each of which an epoch shows for the teacher."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that comes with a teacher that is not of this project."}
    )
    check_data: bool = field(
        default=False, metadata={"help": "Report sizes, masks, bad pairs and leaks, and train nothing."}
    )
    plan_only: bool = field(
        default=False, metadata={"help": "Without a recipe: write the plan for the data, print it, and train nothing."}
    )
    boundary_width: int | None = field(
        default=None,
        metadata={
            "help": "Makes label 2 of 3 from black and white masks: the polyp's pixels at most so many pixels, of the "
            "stored mask, from background."
        },
    )
    image_size: int = field(default=256, metadata={"help": "Side in pixels that images are resized to."})
    train_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the training samples; the default is image_size. A little smaller costs less and, where "
            "augmentation enlarges, is better: Touvron et al. 2019, arXiv:1906.06423."
        },
    )
    first_train_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the training samples in the first epoch; it grows to train_size in three quarters of the "
            "epochs, which costs less: Tan & Le 2021, arXiv:2104.00298."
        },
    )
    intensity: str | None = field(
        default=None,
        metadata={
            "help": "What values become 0..1 where images are not RGB of 8 bits, as YAML: {window: [0, 4095]}, "
            "{window: dicom} (each file's own) or {percentiles: [0.5, 99.5]}; default: all that their type holds."
        },
    )
    image_mean: list[float] = field(
        default=None, metadata={"help": "Mean of each channel, of values in 0..1; default: ImageNet's."}
    )
    image_std: list[float] = field(default=None, metadata={"help": "Deviation of each channel; default: ImageNet's."})
    augmentation: str = field(
        default="[]", metadata={"help": "YAML list of albumentations transforms, [{HorizontalFlip: {p: 0.5}}]."}
    )
    copies: int = field(
        default=1, metadata={"help": "How often an epoch shows each training image, augmented anew each time."}
    )
    backbone_weights: str = field(
        default="timm",
        metadata={
            "help": "Pretrained weights: timm (its Hub), a file of the same network under any names, a folder of "
            "BACKBONE.safetensors, or none."
        },
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of this project to go on from, a folder or Hub id (ID@REVISION), in place of "
            "backbone_weights; its network where variant and model.* are left out. Weights that do not fit, as of a "
            "head for other classes, are drawn anew."
        },
    )
    encoder_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the encoder, of its backbone where it has one; the default is learning_rate."
        },
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay a step of the weights' moving average, which is then what is scored."}
    )
    average_last: int | None = field(
        default=None,
        metadata={
            "help": "Publish the mean of the weights (of their moving average, where there is one) after each of the "
            "last so many epochs, not the best epoch's."
        },
    )
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "After training fit a temperature, which the head keeps, and the threshold, which the processor "
            "keeps, on validation."
        },
    )
    half_precision: bool = field(
        default=False,
        metadata={"help": "Round the weights to float16, and store them so, before they are scored."},
    )
    score_test: bool = field(
        default=True,
        metadata={"help": "Score the test part at the end; false leaves it unseen where a choice is made."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a higher validation Dice."}
    )
    precision: str = field(
        default="auto",
        metadata={"help": f"{', '.join(PRECISIONS)}; auto is bf16 where the hardware has it, else fp16 on CUDA."},
    )
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images a batch in validation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate; a checkpoint follows each time."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save further checkpoints: epoch or steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: it would hide a diverging loss."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: samples are made on the fly."})
    metric_for_best_model: str = field(
        default="dice",
        metadata={"help": "The validation Dice per image at original size decides which epoch is kept."},
    )
    greater_is_better: bool = field(
        default=True, metadata={"help": "A higher Dice is better; a tie keeps the earlier."}
    )

    def __post_init__(self):
        check_trainer_fields(self)
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        for name in ("image_size", "train_size", "first_train_size"):
            if (size := getattr(self, name)) is not None and not 1 <= size <= LARGEST_SIZE:
                raise UserError(f"{name} must lie between 1 and {LARGEST_SIZE}, got {size}.")
        if self.first_train_size is not None and self.first_train_size >= (self.train_size or self.image_size):
            raise UserError(
                f"first_train_size={self.first_train_size} grows to train_size (image_size where that is left out), "
                f"{self.train_size or self.image_size}: make it smaller, or leave it out."
            )
        if self.first_train_size is not None and self.max_steps > 0:
            raise UserError("first_train_size grows by epochs: give num_train_epochs in place of max_steps.")
        try:
            yaml.safe_load(self.augmentation)
        except Exception as error:  # of YAML; ValueError of its dates and numbers, and more
            raise UserError(f"augmentation is not YAML: {error}") from error
        if self.copies < 1:
            raise UserError(f"copies must be at least 1, got {self.copies}.")
        if self.start_from is not None and self.backbone_weights not in ("timm", "none"):
            raise UserError(
                "start_from gives the encoder its weights, too: leave backbone_weights out, got "
                f"{self.backbone_weights!r}."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}.")
        if self.average_last is not None and self.average_last < 1:
            raise UserError(f"average_last must be at least 1, got {self.average_last}.")
        if self.unlabelled is not None and not self.teacher:
            raise UserError("unlabelled frames teach nothing by themselves: name a teacher too, or leave them out.")
        if self.teacher_weight <= 0:
            raise UserError(f"teacher_weight must be above 0, got {self.teacher_weight}.")
        if not (torch.cuda.is_available() or torch.backends.mps.is_available() or _is_xpu_available()):
            self.use_cpu = True
        precision = default_precision(self.use_cpu) if self.precision == "auto" else self.precision
        requested = self.bf16, self.fp16
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        if any(requested) and requested != (self.bf16, self.fp16):
            raise UserError(f"bf16 and fp16 follow from precision, {precision} here: set precision alone.")
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if isinstance(self.intensity, str):
            self.intensity = value_of(self.intensity)
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = mapping_of("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        super().__post_init__()


def default_precision(use_cpu):
    """bf16 where the hardware computes in it, fp16 on other CUDA devices, else fp32."""
    if not use_cpu and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if use_cpu and torch.cpu._is_avx512_bf16_supported() else "fp32"


def _is_xpu_available():
    return hasattr(torch, "xpu") and torch.xpu.is_available()
