"""What other people's keys mean here: data, no code.

Names may end in `*`. Sources: the keys of Axolotl's configuration schema and of its example recipes;
LLaMA-Factory's argument names.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def _each(names: str, meaning: T) -> dict[str, T]:
    return dict.fromkeys(names.split(), meaning)


_TRACKERS = "each machine's owner chooses: `--track tensorboard`, `wandb` or `trackio`"
_KERNELS = "Potluck has kernels of its own, so this has no effect"
_ATTENTION = "Potluck chooses the attention for each device"
_PRECISION = "the compute type follows `bf16`, else float32"
_TOKENS = "the special tokens of the model's own tokenizer are used"
_CLASSES = "Potluck finds the model's and tokenizer's classes itself"
_FILES = "Potluck manages its own caches, checkpoints and logs"
_RESUME = "a run always resumes by itself; `--fresh` starts over"
_PADDING = "Potluck never pads, so this has no effect"
_UPLOAD = "nothing is uploaded; `potluck export` writes the adapter"
_LAUNCH = "Potluck starts its own processes"

NOTED: MappingProxyType[str, str] = MappingProxyType(
    _each(
        "wandb_* use_wandb mlflow_* use_mlflow comet_* use_comet use_tensorboard trackio_* use_trackio "
        "swanlab_* use_swanlab gradio_* otel_* use_otel_metrics report_to include_tokens_per_second",
        _TRACKERS,
    )
    | _each(
        "liger_* lora_*_kernel torch_compile* plugins cut_cross_entropy unsloth_* use_kernels "
        "chunked_cross_entropy* flash_attn_fuse_* flash_attn_cross_entropy flash_attn_rms_norm fuse_* "
        "activation_offloading scaling_softmax",
        _KERNELS,
    )
    | _each(
        "flash_attention attn_implementation sdp_attention xformers_attention eager_attention flex_attention "
        "sage_attention flash_optimum flex_attn_compile_kwargs s2_attention",
        _ATTENTION,
    )
    | _each(
        "tf32 fp16 float16 bfloat16 float32 bnb_config_kwargs peft_autocast_adapter_dtype",
        _PRECISION,
    )
    | _each(
        "special_tokens eot_tokens train_on_eos train_on_eot default_system_message",
        _TOKENS,
    )
    | _each(
        "model_type tokenizer_type tokenizer_use_fast tokenizer_legacy processor_type is_*_derived_model "
        "low_cpu_mem_usage device_map max_memory gpu_memory_limit base_model_ignore_patterns model_kwargs "
        "lora_on_cpu tokenizer_save_jinja_files lora_fan_in_fan_out",
        _CLASSES,
    )
    | _each(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory dataset_shard_* "
        "dataloader_* logging_steps save_total_limit save_strategy eval_strategy evaluation_strategy "
        "save_only_model save_safetensors save_first_step load_best_model_at_end metric_for_best_model "
        "greater_is_better eval_table_size eval_max_new_tokens eval_causal_lm_metrics do_causal_lm_eval "
        "do_bench_eval debug strict profiler_* gc_steps loss_watchdog_* dataset_exact_deduplication "
        "shuffle_merged_datasets shuffle_before_merging_datasets skip_prepare_dataset remove_unused_columns "
        "early_stopping_patience use_ray torchao_*",
        _FILES,
    )
    | _each(
        "resume_from_checkpoint auto_resume_from_checkpoints",
        _RESUME,
    )
    | _each(
        "pad_to_sequence_len eval_sample_packing eval_batch_size sample_packing_* multipack_real_batches "
        "group_by_length sample_packing_eff_est total_num_tokens batch_flattening pad_to_multiple_of "
        "min_sample_len",
        _PADDING,
    )
    | _each(
        "hub_model_id hub_strategy hub_revision push_dataset_to_hub hf_use_auth_token push_to_hub",
        _UPLOAD,
    )
    | _each(
        "local_rank ddp ddp_* world_size gradient_checkpointing_kwargs use_reentrant axolotl_config_path "
        "mean_resizing_embeddings",
        _LAUNCH,
    )
)
"""Keys that are accepted and have no effect, with the one line that says so."""


class Refusal(NamedTuple):
    """Why a key stops the run, and what to write instead."""

    reason: str
    hint: str
    harmless: frozenset[object] = frozenset({False})
    """Values with which the key changes nothing and is passed over."""


_SPLITS = Refusal("Potluck splits the work over the machines itself", "delete it")
_METHOD = Refusal(
    "Potluck trains LoRA adapters on examples, and no other method", "delete it, or train this run with Axolotl"
)
_WEIGHTS = Refusal(
    "the base model's own weights and vocabulary stay as they are", "delete it; the adapter covers the linear layers"
)
_CHANGES = Refusal("it changes what is learned and is not available here", "delete it if the run can do without")

REFUSED: MappingProxyType[str, Refusal] = MappingProxyType(
    _each(
        "fsdp fsdp_* deepspeed",
        Refusal(_SPLITS.reason, "delete it; `potluck join` adds machines"),
    )
    | _each(
        "tensor_parallel_size context_parallel_size sequence_parallel_degree dp_shard_size dp_replicate_size "
        "expert_parallel_size heads_k_stride",
        _SPLITS._replace(harmless=frozenset({0, 1})),
    )
    | _each(
        "rl reward_model process_reward_model pretraining_dataset relora relora_* jagged_restart_* kd_* orpo_* "
        "dpo_* kto_* trl rl_beta simpo_gamma diffusion llada qat quantization gptq",
        _METHOD,
    )
    | _each(
        "lora_modules_to_save unfrozen_parameters tokens added_tokens_overrides resize_token_embeddings_to_32x "
        "shrink_embeddings expand_moe peft_layers_to_transform peft_layers_pattern lora_target_parameters "
        "peft_trainable_token_indices",
        _WEIGHTS,
    )
    | _each(
        "neftune_noise_alpha noisy_embedding_alpha loraplus_* lr_scheduler_kwargs cosine_min_lr_ratio "
        "cosine_constant_lr_ratio lr_groups lr_quadratic_warmup optim_args optim_target_modules embedding_lr* "
        "adam_beta3 adam_epsilon2 rope_scaling overrides_of_model_config peft peft_init_lora_weights "
        "curriculum_sampling llama4_linearized_experts sp_aware_*",
        _CHANGES,
    )
    | {
        "trust_remote_code": Refusal(
            "code that comes with a model is never run", "delete it; the supported families need none"
        ),
        "load_in_8bit": Refusal(
            "8-bit weights are not supported",
            "write load_in_4bit: true with adapter: qlora, or adapter: lora for 16-bit weights",
        ),
        "chat_template_jinja": Refusal(
            "a recipe comes from the network and may not carry a program",
            "put the template into the model folder's chat_template.jinja",
        ),
        "lora_model_dir": Refusal(
            "starting from another adapter is not available yet",
            "delete it; `potluck export merged` first makes a base model of it",
        ),
        "tokenizer_config": Refusal("the tokenizer of base_model is used", "delete it"),
        "base_model_config": Refusal("the configuration of base_model is used", "delete it"),
        "test_datasets": Refusal("held-out examples are taken from the data itself", "use val_set_size: 0.05"),
    }
)
"""Keys that would change the run and that Potluck cannot follow."""

LLAMA_FACTORY: MappingProxyType[str, str] = MappingProxyType(
    {
        "model_name_or_path": "base_model",
        "model_revision": "revision_of_model",
        "finetuning_type": "adapter",
        "quantization_bit": "load_in_4bit",
        "quantization_method": "load_in_4bit",
        "lora_target": "lora_target_modules",
        "use_rslora": "peft_use_rslora",
        "use_dora": "peft_use_dora",
        "cutoff_len": "sequence_len",
        "packing": "sample_packing",
        "neat_packing": "sample_packing",
        "train_on_prompt": "train_on_inputs",
        "template": "chat_template",
        "dataset": "datasets",
        "dataset_dir": "datasets",
        "val_size": "val_set_size",
        "per_device_train_batch_size": "micro_batch_size",
        "per_device_eval_batch_size": "micro_batch_size",
        "num_train_epochs": "num_epochs",
        "lr_scheduler_type": "lr_scheduler",
        "optim": "optimizer",
        "adapter_name_or_path": "lora_model_dir",
    }
)
"""LLaMA-Factory's names and ours."""

LLAMA_FACTORY_DROPPED = frozenset(
    _each(
        "stage do_train do_eval max_samples overwrite_cache preprocessing_num_workers overwrite_output_dir "
        "plot_loss flash_attn enable_liger_kernel upcast_layernorm disable_gradient_checkpointing ddp_timeout",
        None,
    )
)
"""LLaMA-Factory's names that are simply left out here."""

ALIASES: MappingProxyType[str, str] = MappingProxyType(
    {
        "lora_rank": "lora_r",
        "rank": "lora_r",
        "r": "lora_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
        "lr": "learning_rate",
        "epochs": "num_epochs",
        "batch_size": "micro_batch_size",
        "max_length": "sequence_len",
        "max_seq_length": "sequence_len",
        "max_seq_len": "sequence_len",
        "model": "base_model",
        "model_name": "base_model",
        "data": "datasets",
        "steps": "max_steps",
        "scheduler": "lr_scheduler",
        "warmup": "warmup_steps",
        "max_gradient_norm": "max_grad_norm",
        "gradient_accumulation": "gradient_accumulation_steps",
    }
)
"""Names that people guess and that spelling alone does not lead from."""

_OWN_TEMPLATE = "the model's own chat template is used"
_ONE_ADAMW = "Potluck has one AdamW with fp32 moments, the same bits on every machine; all AdamW names mean it"

VALUES: MappingProxyType[str, MappingProxyType[str, tuple[object, str]]] = MappingProxyType(
    {
        "optimizer": MappingProxyType(
            {
                "adamw_*": ("adamw_torch", _ONE_ADAMW),
                "adamw": ("adamw_torch", _ONE_ADAMW),
                "paged_adamw*": ("adamw_torch", _ONE_ADAMW),
            }
        ),
        "lr_scheduler": MappingProxyType(
            {"constant_with_warmup": ("constant", "`constant` has a warm-up here if you ask for one")}
        ),
        "gradient_checkpointing": MappingProxyType(
            {
                "offload*": (True, "activations are recomputed, not moved off the device"),
                "unsloth": (True, "activations are recomputed"),
            }
        ),
        "bf16": MappingProxyType({"full": (True, "the adapter itself stays in float32")}),
        "chat_template": MappingProxyType(
            {
                "tokenizer_default_fallback_*": ("tokenizer_default", _OWN_TEMPLATE),
                **_each(
                    "llama3* llama4 mistral* gemma* phi_* phi3* phi4* qwen* exaone* falcon* granite* command_a "
                    "deepseek* jamba* metharme* alpaca cohere aya olmo* smollm*",
                    ("tokenizer_default", _OWN_TEMPLATE),
                ),
            }
        ),
    }
)
"""Values of Axolotl's that mean one of ours: pattern -> (our value, note)."""

DATASET_TYPES: MappingProxyType[str, str] = MappingProxyType(
    {
        "chat_template": "messages",
        "completion": "text",
        "pretrain": "text",
        "alpaca": "alpaca",
        "sharegpt": "sharegpt",
        "messages": "messages",
        "prompt_completion": "prompt_completion",
        "text": "text",
    }
)
"""`datasets[].type` in Axolotl's words and in ours."""

_ANSWERS = "the assistant's answers and their ends are learnt, nothing else"
_WHOLE = "the whole data set is read, rows of any kind by their file's ending"

DATASET_NOTED: MappingProxyType[str, str] = MappingProxyType(
    _each("train_on_eos train_on_eot roles_to_train message_field_training message_field_training_detail", _ANSWERS)
    | _each("ds_type shards shards_idx preprocess_shards", _WHOLE)
    | _each("chat_template conversation drop_system_message split_thinking", "the recipe's chat_template decides")
    | _each("roles field_thinking field_tools field_system logprobs_field temperature skip", "it has no meaning here")
)
"""Keys of one data set that are accepted and have no effect, with the one line that says so."""

DATASET_REFUSED: MappingProxyType[str, Refusal] = MappingProxyType(
    {
        "trust_remote_code": Refusal(
            "code that comes with a data set is never run", "delete it, or convert the data to jsonl first"
        ),
        "chat_template_jinja": REFUSED["chat_template_jinja"],
        "input_format": Refusal(
            "rows are of the kinds messages, prompt/completion, alpaca, sharegpt and text",
            "convert the data to messages",
        ),
    }
)
