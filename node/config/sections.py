"""The nested parts of a recipe: one data set, the averaging rule, and the `potluck:` block."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ShortText = Annotated[str, Field(min_length=1, max_length=200)]
PathText = Annotated[str, Field(min_length=1, max_length=1024)]
DatasetType = Literal["messages", "prompt_completion", "alpaca", "sharegpt", "text"]


class Section(BaseModel):
    """Base of all recipe parts: immutable, no unknown keys, no infinities, descriptions from the docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class MessageMapping(Section):
    """The keys of one turn, where they are not `role` and `content`."""

    role: ShortText = "role"
    """Key of the speaker."""
    content: ShortText = "content"
    """Key of the text."""


class DatasetSpec(Section):
    """One source of training examples. It never leaves this machine."""

    path: PathText
    """File, folder, or hub id of the data."""
    type: DatasetType | None = None
    """Format of the rows; found by looking at them when unset. Axolotl's `chat_template` is `messages`, its
    `completion` is `text`."""
    name: ShortText | None = None
    """Configuration name of a hub data set."""
    split: ShortText = "train"
    """Split of a hub data set."""
    revision: ShortText | None = None
    """Commit or tag of a hub data set."""
    data_files: Annotated[tuple[PathText, ...], Field(max_length=1000)] = ()
    """Files inside `path`; all readable ones when empty."""
    field: ShortText = "text"
    """Column that holds the text of a `text` row."""
    field_messages: ShortText | None = None
    """Column that holds the turns; `messages`, or `conversations` for sharegpt, when unset."""
    message_property_mappings: MessageMapping | None = None
    """Keys of one turn; `role`/`content`, or `from`/`value` for sharegpt, when unset."""

    @field_validator("data_files", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Averaging(Section):
    """How the swarm turns many gradients into one step."""

    mode: Literal["gradient"] = "gradient"
    """`gradient`: sum gradients until the swarm has seen `target_batch_tokens`, then one identical step."""
    target_batch_tokens: Annotated[int, Field(ge=0, le=1 << 32)] = 0
    """Tokens of all peers together behind one step. 0 means micro_batch_size x gradient_accumulation_steps x
    sequence_len, and a loaded recipe holds that product."""
    compression: Literal["none", "bf16"] = "none"
    """Numbers on the wire: `none` sends fp32, `bf16` half the bytes."""
    round_timeout_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Seconds after which a round that has not committed is dropped, at the latest: once it is known how long rounds
    with these peers take, they are given that and some more."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Nodes that must take part in a round; 1 lets a node that is alone train alone."""

    @field_validator("mode", mode="before")
    @classmethod
    def _refuse_what_is_planned(cls, value: object) -> object:
        if value == "diloco":
            raise ValueError("'diloco' (many local steps per round) is not available yet; use mode: gradient")
        return value


class PotluckBlock(Section):
    """The one block that Axolotl does not have; delete it and the recipe is theirs again."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w .:@+-]+$")] | None = None
    """Name of the run, for people. Another name is another run."""
    stages: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Parts that the model is cut into, of whole decoder layers; each node holds as many as fit, in a row. 1: every
    node holds all layers. `auto`: the founder leaves a model below 1 GiB whole, and cuts a larger one into 16 parts or
    more of 1 GiB at most."""
    wire: Literal["star", "chain"] = "star"
    """How hidden states travel between parts: `star` sends them back to the data's owner after each part; `chain` lets
    the nodes hand them on to each other, which spares the owner's link. For one's own PCs."""
    activations: Literal["none", "bf16", "int8", "lowbit"] = "lowbit"
    """Hidden states on the wire: `none` as they are computed, `bf16`, `int8` in groups of 64, `lowbit` rotated, 6 bits
    there and 4 bits back."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """What to do with a row of data that cannot be used: stop and name it, or leave it out and count."""
    trust: Literal["friends"] = "friends"
    """Who may take part: `friends` are the people that were given the address."""
    averaging: Averaging = Averaging()
    """The averaging rule."""

    @field_validator("trust", mode="before")
    @classmethod
    def _refuse_what_is_planned(cls, value: object) -> object:
        if value in ("strangers", "private"):
            raise ValueError(f"'{value}' is not available yet; use trust: friends with people that you know")
        return value
