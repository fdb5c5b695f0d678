"""Which fields of transformers' TrainingArguments a run takes: each works, or is refused with what to use instead."""

from dataclasses import MISSING, fields

from transformers.integrations import get_available_reporting_integrations

from hub_unets.training.errors import UserError

_PUSH = "publish a finished run with hub-unets push"
_LANGUAGE = "it is for language models"
_SHARDED = "networks of this size fit on one device: start several processes instead"
REFUSED = {  # field: what to use instead, or why there is nothing to set
    "label_smoothing_factor": "the losses are those of loss.*; focal weighs sure pixels less",
    "data_seed": "seed is the seed of order and augmentation too",
    "train_sampling_strategy": "every image comes copies times an epoch, in an order of seed",
    "group_by_length": "images have no length",
    "length_column_name": "images have no length",
    "average_tokens_across_devices": "the loss is the mean over the images of all processes",
    "include_num_input_tokens_seen": _LANGUAGE,
    "use_liger_kernel": _LANGUAGE,
    "liger_kernel_config": _LANGUAGE,
    "use_cache": _LANGUAGE,
    "neftune_noise_alpha": _LANGUAGE,
    "optim_target_modules": "it is for GaLore and APOLLO, which are for large linear layers",
    "bf16_full_eval": "precision holds for validation too",
    "fp16_full_eval": "precision holds for validation too",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "eval_on_start": "hub-unets evaluate scores what a run starts from",
    "prediction_loss_only": "validation needs the Dice",
    "eval_do_concat_batches": "validation keeps counts of pixels only",
    "eval_use_gather_object": "validation keeps counts of pixels only",
    "include_for_metrics": "validation keeps counts of pixels only",
    "batch_eval_metrics": "validation keeps counts of pixels only",
    "load_best_model_at_end": "the best epoch is what is scored in any case",
    "save_on_each_node": "output_dir must be a folder that all machines share",
    "enable_jit_checkpoint": "repeating the command goes on from the last checkpoint: see save_steps",
    "resume_from_checkpoint": "repeating the command resumes; start_from goes on from another run",
    "restore_callback_states_from_checkpoint": "repeating the command resumes exactly",
    "push_to_hub": _PUSH,
    "hub_token": "log in with hf auth login, and " + _PUSH,
    "hub_private_repo": _PUSH,
    "hub_model_id": _PUSH,
    "hub_strategy": _PUSH,
    "hub_always_push": _PUSH,
    "hub_revision": _PUSH,
    "accelerator_config": "a step's images, and their order, are those of seed and the batch size",
    "parallelism_config": _SHARDED,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
    "dataloader_drop_last": "it would leave images out of the validation",
    "dataloader_in_order": "the order must not depend on the workers, so that a run resumes exactly",
    "label_names": "the labels are the masks",
    "remove_unused_columns": "samples are made on the fly",
    "skip_memory_metrics": "results.json holds the peak memory",
    "debug": "a loss that is not finite ends the run at its step",
    "do_train": "leave it out: a run trains",
    "do_eval": "eval_strategy sets when to validate",
    "do_predict": "score_test sets whether the test part is scored",
    "local_rank": "the launcher sets it in the environment",
}
WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
REPORTS = ("run_name", "project", "logging_dir", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
METRICS = ("dice", "iou", "precision", "recall", "f1", "accuracy", "pooled_dice", "loss")


def check_trainer_fields(arguments):
    """Raise UserError, naming the field and what to use, where a field would do nothing or harm.

    Args:
        arguments: RunArguments as they were given, before transformers completes them.
    """
    changed = {item.name for item in fields(arguments) if _off(getattr(arguments, item.name)) != _off(_default(item))}
    for name, cure in REFUSED.items():
        if name in changed:
            raise UserError(f"{name} can't be set: {cure}.")
    for name in WORKERS:
        if name in changed and not arguments.dataloader_num_workers:
            raise UserError(f"{name} needs workers: set dataloader_num_workers, or leave it out.")
    if arguments.metric_for_best_model.removeprefix("eval_") not in METRICS:
        raise UserError(
            f"metric_for_best_model must be one of {', '.join(METRICS)}, got {arguments.metric_for_best_model!r}."
        )
    _check_reports(arguments, changed)


def _check_reports(arguments, changed):
    """Raise UserError unless what the run reports to is installed, and named where reports are described."""
    names = [arguments.report_to] if isinstance(arguments.report_to, str) else list(arguments.report_to or ())
    installed = get_available_reporting_integrations()
    for name in set(names) - {"none", "all", *installed}:
        raise UserError(
            f"report_to {name} is unknown or not installed; installed are: {', '.join(installed) or 'none'}."
        )
    for name in REPORTS:
        if name in changed and set(names) <= {"none"}:
            raise UserError(f"{name} is for report_to: set that too, or leave it out.")


def _off(value):
    return None if not value or value == "no" else value  # the parser may give any of these for the same default


def _default(field):
    return (
        field.default
        if field.default is not MISSING
        else None
        if field.default_factory is MISSING
        else field.default_factory()
    )
