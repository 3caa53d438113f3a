"""Every setting of TRL's SFTConfig and PEFT's LoraConfig that a recipe does not set (spec/sft.md).

An upgrade that brings a new field fails a test until the field is pinned here, or listed as
unable to change a result, with the reason. So no upstream default ever decides a byte in silence.
"""

from __future__ import annotations

from collections.abc import Mapping

SFT_FROM_PARAMS = frozenset(
    {
        "data_seed",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "max_grad_norm",
        "max_steps",
        "num_train_epochs",
        "output_dir",
        "per_device_train_batch_size",
        "seed",
        "warmup_steps",
        "weight_decay",
    }
)
"""Fields that follow from the recipe, the numerics or the step's scratch folder."""

SFT_PINNED: Mapping[str, object] = {
    # The optimiser.
    "optim": "adamw_torch_fused",
    "optim_args": None,
    "optim_target_modules": None,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "lr_scheduler_kwargs": None,
    "average_tokens_across_devices": True,
    # The loss.
    "loss_type": "nll",
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "router_aux_loss_coef": None,
    "completion_only_loss": True,
    "assistant_only_loss": False,
    # Rows reach the trainer as tokens; it neither renders, cuts, packs nor reorders them.
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "packing": False,
    "padding_free": False,
    "pad_to_multiple_of": None,
    "shuffle_dataset": False,
    "chat_template_path": None,
    "eos_token": None,
    "pad_token": None,
    "train_sampling_strategy": "random",
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "dataloader_in_order": True,
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
    "auto_find_batch_size": False,
    "ignore_data_skip": False,
    "resume_from_checkpoint": None,
    # Arithmetic: the base's dtype is that of its weights, nothing is cast on the way.
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "torch_compile": False,
    "use_liger_kernel": False,
    "activation_checkpointing": False,
    "activation_offloading": False,
    "use_cache": False,
    "full_determinism": False,
    # One process on one device.
    "accelerator_config": {
        "split_batches": False,
        "dispatch_batches": False,
        "even_batches": True,
        "use_seedable_sampler": True,
    },
    "parallelism_config": None,
    "deepspeed": None,
    "fsdp": None,
    "local_rank": -1,
    # Code and models from elsewhere.
    "model_init_kwargs": None,
    "trust_remote_code": False,
    # Nothing is written, reported or evaluated by the trainer.
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "disable_tqdm": True,
    # A loss that is not a number must be seen, not averaged away.
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": False,
    "logging_nan_inf_filter": False,
}

_NO_COMPILER = "torch_compile is off"
_NO_EVALUATION = "the trainer evaluates nothing"
_NO_SAVING = "the trainer saves nothing"
_NO_HUB = "nothing is pushed"
_NO_WORKERS = "rows are loaded in this process"
_ONE_DEVICE = "one process on one device"
_PREPARED = "the rows are tokens already"
_SAYS_ONLY = "it changes what is logged, not what is computed"

SFT_INERT: Mapping[str, str] = {
    "activation_checkpointing_kwargs": "activation checkpointing is off",
    "batch_eval_metrics": _NO_EVALUATION,
    "bf16_full_eval": _NO_EVALUATION,
    "dataloader_multiprocessing_context": _NO_WORKERS,
    "dataloader_persistent_workers": _NO_WORKERS,
    "dataloader_prefetch_factor": _NO_WORKERS,
    "dataset_num_proc": _PREPARED,
    "dataset_text_field": _PREPARED,
    "ddp_backend": _ONE_DEVICE,
    "ddp_broadcast_buffers": _ONE_DEVICE,
    "ddp_bucket_cap_mb": _ONE_DEVICE,
    "ddp_find_unused_parameters": _ONE_DEVICE,
    "ddp_static_graph": _ONE_DEVICE,
    "ddp_timeout": _ONE_DEVICE,
    "debug": _SAYS_ONLY,
    "do_eval": "read by command-line scripts alone",
    "do_predict": "read by command-line scripts alone",
    "do_train": "read by command-line scripts alone",
    "enable_jit_checkpoint": _NO_SAVING,
    "eval_accumulation_steps": _NO_EVALUATION,
    "eval_delay": _NO_EVALUATION,
    "eval_do_concat_batches": _NO_EVALUATION,
    "eval_packing": _NO_EVALUATION,
    "eval_steps": _NO_EVALUATION,
    "eval_use_gather_object": _NO_EVALUATION,
    "fp16_full_eval": _NO_EVALUATION,
    "fsdp_config": _ONE_DEVICE,
    "gradient_checkpointing": "the old name of activation_checkpointing, which decides",
    "gradient_checkpointing_kwargs": "activation checkpointing is off",
    "greater_is_better": _NO_EVALUATION,
    "hub_always_push": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_revision": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_token": _NO_HUB,
    "include_for_metrics": _NO_EVALUATION,
    "include_num_input_tokens_seen": _SAYS_ONLY,
    "label_names": _NO_EVALUATION,
    "length_column_name": "rows are not sampled by length",
    "liger_kernel_config": "no such kernels are used",
    "log_level": _SAYS_ONLY,
    "log_level_replica": _SAYS_ONLY,
    "log_on_each_node": _SAYS_ONLY,
    "metric_for_best_model": _NO_EVALUATION,
    "packing_strategy": "rows are not packed",
    "per_device_eval_batch_size": _NO_EVALUATION,
    "prediction_loss_only": _NO_EVALUATION,
    "project": "nothing is reported",
    "restore_callback_states_from_checkpoint": "nothing is resumed",
    "run_name": "nothing is reported",
    "save_on_each_node": _NO_SAVING,
    "save_only_model": _NO_SAVING,
    "save_steps": _NO_SAVING,
    "save_total_limit": _NO_SAVING,
    "skip_memory_metrics": _SAYS_ONLY,
    "torch_compile_backend": _NO_COMPILER,
    "torch_compile_mode": _NO_COMPILER,
    "torch_empty_cache_steps": "it frees memory, on accelerators",
    "trackio_bucket_id": "nothing is reported",
    "trackio_space_id": "nothing is reported",
    "trackio_static_space_id": "nothing is reported",
    "truncation_mode": "rows are not truncated",
}
"""Fields that cannot change a result, each with the reason."""

LORA_FROM_PARAMS = frozenset({"lora_alpha", "lora_dropout", "r", "target_modules"})

LORA_PINNED: Mapping[str, object] = {
    "task_type": "CAUSAL_LM",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "modules_to_save": None,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "layer_replication": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "trainable_token_indices": None,
    "target_parameters": None,
    "velora_config": None,
    "alora_invocation_tokens": None,
    "monteclora_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "ensure_weight_tying": False,
    "inference_mode": False,
}

_OTHER_INIT = "it belongs to another way of making the first weights"

LORA_INERT: Mapping[str, str] = {
    "auto_mapping": "the step writes its own adapter_config.json",
    "base_model_name_or_path": "the step writes its own adapter_config.json",
    "corda_config": _OTHER_INIT,
    "eva_config": _OTHER_INIT,
    "loftq_config": _OTHER_INIT,
    "lora_ga_config": _OTHER_INIT,
    "megatron_config": "the model is not built by Megatron",
    "megatron_core": "the model is not built by Megatron",
    "peft_type": "the class sets it",
    "peft_version": "the step writes its own adapter_config.json",
    "qalora_group_size": "use_qalora is off",
    "revision": "the step writes its own adapter_config.json",
    "runtime_config": "it is about offloading",
}
"""Fields that cannot change a result, each with the reason."""
