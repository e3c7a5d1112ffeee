"""The recipe: what is trained and how, in Axolotl's key names, plus one `potluck:` block.

A recipe has three kinds of keys. *Agreed* keys must be equal on all peers and make the fingerprint.
*Local* keys may differ (a small machine takes a smaller micro-batch), but the founder's values are sent
to joiners as a start. *Private* keys (data, folders) never leave a machine and are never taken from one:
a peer that could name them could point this node at its owner's files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from node.config.sections import DatasetSpec, PathText, PotluckBlock, Section, ShortText
from node.core.errors import ConfigError, RunMismatch
from node.core.text import brief
from node.core.versions import UPGRADE_HERE

MAX_SHARED_BYTES = 64 * 1024
"""Upper bound on a published recipe; a full one is under 3 KiB."""

PRIVATE_KEYS = frozenset({"datasets", "output_dir"})
LOCAL_KEYS = PRIVATE_KEYS | {
    "base_model",  # the digest of the weights stands for it in the fingerprint
    "revision_of_model",
    "val_set_size",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "evals_per_epoch",
    "eval_steps",
    "saves_per_epoch",
    "save_steps",
    "potluck.on_bad_row",
}

LATER_KEYS: frozenset[str] = frozenset()
"""Agreed keys that came after 0.1, whose default means what was done before there was the key.

With its default such a key is neither in the fingerprint nor in what joiners get: a run keeps its name when its nodes
are upgraded, and a node that does not know the key may join.
"""

Probability = Annotated[float, Field(ge=0, lt=1)]
StepsOrShare = Annotated[float, Field(ge=0, le=1e9)]
ModuleName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.]+$")]


class Recipe(Section):
    """Everything that defines a run. Build it with `load_recipe` or `Recipe.from_shared_json`."""

    base_model: PathText
    """Model to adapt: a local folder, a GGUF file, or a hub name."""
    revision_of_model: ShortText | None = None
    """Commit, tag or branch of a hub model."""

    adapter: Literal["qlora", "lora"] = "qlora"
    """`qlora` keeps the frozen weights in 4 bits, `lora` in 16."""
    load_in_4bit: bool = Field(default_factory=lambda d: d.get("adapter") == "qlora")
    """Whether the frozen weights are quantised to NF4; follows `adapter` when unset. This key decides."""
    lora_r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter."""
    lora_alpha: Annotated[float, Field(gt=0, le=65536)] = 32
    """Scale of the adapter: its output is multiplied by alpha / r (alpha / sqrt(r) with rsLoRA)."""
    lora_dropout: Probability = 0.0
    """Share of the adapter's inputs that is zeroed in training."""
    lora_target_modules: Annotated[tuple[ModuleName, ...], Field(max_length=64)] = ()
    """Names of the linear layers to adapt (`q_proj`, `down_proj`, ...); all of them when empty."""
    lora_target_linear: bool = Field(default_factory=lambda d: not d.get("lora_target_modules"))
    """Adapt every linear layer of the decoder; true unless `lora_target_modules` names some."""
    peft_use_rslora: bool = False
    """Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    peft_use_dora: bool = False
    """Learn the magnitude of each column apart (DoRA, arXiv 2402.09353)."""

    sequence_len: Annotated[int, Field(ge=8, le=1 << 20)] = 512
    """Longest example, in tokens."""
    sample_packing: bool = False
    """Lay several examples into one sequence; attention never crosses from one into the next."""
    train_on_inputs: bool = False
    """Also learn the questions, not only the answers."""
    chat_template: Literal["tokenizer_default", "chatml"] = "tokenizer_default"
    """`tokenizer_default`: the model's own template (a plain one if it has none); `chatml`: ChatML."""
    excess_length_strategy: Literal["drop", "truncate", "raise"] = "drop"
    """What happens to a longer example. Text is cut into pieces instead and loses nothing."""
    datasets: Annotated[tuple[DatasetSpec, ...], Field(max_length=1000)] = ()
    """Training data of this node. Never sent to anyone."""
    val_set_size: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Held-out examples: a share of the data below 1, a count from 1 on."""

    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Examples (or, packed, sequences of `sequence_len` tokens) in one forward pass."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1 << 16)] = 4
    """Micro-batches behind one step, where `target_batch_tokens` is unset."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; `auto` where the device has it, else float32."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    """Peak learning rate."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """Steps of linear warm-up. 3 % of all steps, 100 at most, when neither this nor the ratio is set."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of all steps that is warm-up."""
    optimizer: Literal["adamw_torch"] = "adamw_torch"
    """AdamW with fp32 moments, the same bits on every CPU. All of Axolotl's AdamW names mean this one."""
    adam_beta1: Probability = 0.9
    """Decay of the first moment."""
    adam_beta2: Probability = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Norm that the averaged gradient is clipped to; 0 switches clipping off."""
    max_steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Optimizer steps of the whole run."""
    num_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default_factory=lambda d: None if d.get("max_steps") else 1.0
    )
    """Passes of a node over its own data; 1 unless `max_steps` is set. With both, the first reached ends the run."""

    evals_per_epoch: Annotated[float, Field(ge=0, le=1e4)] | None = None
    """Evaluations on the held-out examples in one pass over the data; 0 for none."""
    eval_steps: StepsOrShare | None = None
    """Steps between evaluations; below 1 a share of all steps; 0 for none."""
    saves_per_epoch: Annotated[float, Field(ge=0, le=1e4)] | None = None
    """Checkpoints in one pass over the data."""
    save_steps: StepsOrShare | None = None
    """Steps between checkpoints; below 1 a share of all steps."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of the adapter's first weights, the held-out split and the shuffling."""
    output_dir: PathText = "./outputs"
    """Axolotl's folder for results. Potluck keeps a run under its home; `potluck export peft --output` writes it."""

    potluck: PotluckBlock = PotluckBlock()
    """What Axolotl has no key for."""

    @model_validator(mode="after")
    def _agree_with_itself(self) -> Self:
        if self.adapter == "qlora" and not self.load_in_4bit:
            raise ValueError("adapter: qlora needs load_in_4bit: true (for 16-bit weights write adapter: lora)")
        if not (self.lora_target_linear or self.lora_target_modules):
            raise ValueError("nothing to adapt: set lora_target_linear: true or list lora_target_modules")
        for one, other in (
            ("warmup_steps", "warmup_ratio"),
            ("eval_steps", "evals_per_epoch"),
            ("save_steps", "saves_per_epoch"),
        ):
            if self.__dict__[one] is not None and self.__dict__[other] is not None:
                raise ValueError(f"{one} and {other} say the same thing twice; keep one of them")
        if self.val_set_size > 1 and self.val_set_size != int(self.val_set_size):
            raise ValueError(f"val_set_size: {self.val_set_size} is neither a share below 1 nor a whole count")
        if not self.potluck.averaging.target_batch_tokens:
            tokens = self.micro_batch_size * self.gradient_accumulation_steps * self.sequence_len
            averaging = self.potluck.averaging.model_copy(update={"target_batch_tokens": min(tokens, 1 << 32)})
            # The model is frozen for everybody else; this is still its construction.
            self.__dict__["potluck"] = self.potluck.model_copy(update={"averaging": averaging})
        return self

    def warmup(self, total_steps: int) -> int:
        """Return the number of warm-up steps in a run of `total_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_ratio is not None:
            return math.ceil(self.warmup_ratio * total_steps)
        return min(100, int(0.03 * total_steps))

    def eval_interval(self, *, steps_per_epoch: float, total_steps: int) -> int | None:
        """Return the steps between evaluations, or None for none but the last; four times an epoch when unset."""
        per_epoch = 4.0 if self.evals_per_epoch is None else self.evals_per_epoch
        return _interval(self.eval_steps, per_epoch, steps_per_epoch, total_steps)

    def save_interval(self, *, steps_per_epoch: float, total_steps: int) -> int | None:
        """Return the steps between checkpoints, or None for none but the last; once an epoch when unset."""
        per_epoch = 1.0 if self.saves_per_epoch is None else self.saves_per_epoch
        return _interval(self.save_steps, per_epoch, steps_per_epoch, total_steps)

    def agreed(self) -> dict[str, Any]:
        """Return the keys that all peers must agree on, dotted name to JSON value."""
        later = self._unset_later_keys()
        leaves = _leaves(self.model_dump(mode="json"))
        return {name: value for name, value in leaves if not _is_in(name, LOCAL_KEYS) and name not in later}

    def fingerprint(self, model_digest: str) -> str:
        """Return the run's identity: SHA-256, in hex, over the agreed keys and the base model.

        Args:
            model_digest: Hex digest of the base model's configuration and weights.
        """
        return hashlib.sha256(_canonical({"model": model_digest, "recipe": self.agreed()}).encode()).hexdigest()

    def shared_json(self) -> str:
        """Return the part that joiners get, as canonical JSON: all but the private keys."""
        tree = self.model_dump(mode="json", exclude=set(PRIVATE_KEYS))
        for name in self._unset_later_keys():
            *parents, leaf = name.split(".")
            branch = tree
            for parent in parents:
                branch = branch[parent]
            del branch[leaf]
        return _canonical(tree)

    def _unset_later_keys(self) -> set[str]:
        """Return the `LATER_KEYS` that have their defaults."""
        if not LATER_KEYS:
            return set()
        default = dict(_leaves(type(self)(base_model="any").model_dump(mode="json")))
        mine = dict(_leaves(self.model_dump(mode="json")))
        return {name for name in LATER_KEYS if mine[name] == default[name]}

    @classmethod
    def from_shared_json(cls, text: str | bytes, local: Mapping[str, object] | None = None) -> Recipe:
        """Build the recipe of a swarm from what a peer published, with this machine's own local keys.

        Args:
            text: JSON from an untrusted peer.
            local: Values of this machine by dotted name (`micro_batch_size`, `datasets`, ...).

        Raises:
            RunMismatch: The text is no valid recipe of this version.
            ConfigError: `local` names a key on which all peers must agree, or its value is not allowed.
        """
        size = len(text.encode() if isinstance(text, str) else text)
        if size > MAX_SHARED_BYTES:
            raise RunMismatch(f"the swarm's recipe has {size} bytes; at most {MAX_SHARED_BYTES} are read")
        try:
            shared = json.loads(text)
            if not isinstance(shared, dict) or PRIVATE_KEYS & shared.keys():
                raise RunMismatch(
                    "the swarm's recipe names data or folders of this machine, or is no mapping",
                    hint="do not join this swarm: no honest node publishes such a recipe",
                )
            # Lax mode would let a peer send "yes" for true; what was published is exactly typed.
            recipe = cls.model_validate_json(text, strict=True)
        except (ValueError, RecursionError) as error:  # ValidationError and JSONDecodeError are ValueErrors
            reason = first_problem(error) if isinstance(error, ValidationError) else "it is no JSON"
            raise RunMismatch(
                f"the swarm's recipe cannot be read: {reason}",
                hint=f"If a newer Potluck has founded the swarm: {UPGRADE_HERE}",
            ) from error
        return recipe.with_local(local) if local else recipe

    def with_local(self, local: Mapping[str, object]) -> Recipe:
        """Return a copy with some local keys (dotted names) of this machine's own.

        Raises:
            ConfigError: A key on which all peers must agree, or a value that is not allowed.
        """
        tree = self.model_dump(mode="python")
        for name, value in local.items():
            if not _is_in(name, LOCAL_KEYS):
                raise ConfigError(
                    f"'{name}' cannot be changed on this machine alone: all peers must agree on it",
                    hint=f"own to a machine are: {', '.join(sorted(LOCAL_KEYS))}",
                )
            *parents, leaf = name.split(".")
            branch: Any = tree
            for parent in parents:
                branch = branch.get(parent) if isinstance(branch, dict) else None
            if not isinstance(branch, dict):
                raise ConfigError(f"'{name}': there is no such key", hint="give the whole list or mapping")
            branch[leaf] = value
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            raise ConfigError(first_problem(error)) from error


def differing_fields(mine: Recipe, theirs: Recipe) -> list[tuple[str, object, object]]:
    """Return the agreed keys whose values differ, as (dotted name, mine, theirs), in the order of the names."""
    a, b = mine.agreed(), theirs.agreed()
    return [(name, a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def first_problem(error: ValidationError) -> str:
    """Return the first complaint as `name: what is wrong`."""
    problem = error.errors(include_url=False, include_context=False)[0]
    where = brief(".".join(str(part) for part in problem["loc"]), 80)
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _interval(steps: float | None, per_epoch: float, steps_per_epoch: float, total_steps: int) -> int | None:
    if steps is not None:
        every = steps * total_steps if 0 < steps < 1 else steps
    else:
        every = steps_per_epoch / per_epoch if per_epoch else 0
    return max(1, math.ceil(every)) if every else None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_in(name: str, keys: frozenset[str]) -> bool:
    return name in keys or name.partition(".")[0] in keys


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
