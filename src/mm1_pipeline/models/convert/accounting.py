"""Nothing of a checkpoint is passed over in silence: every field of its configuration and every
tensor is read, known to change nothing (with a reason), or refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Reason = str
"""Why a field or a tensor may be left out."""

UNREAD_FIELDS: Mapping[str, Reason] = {
    name: reason
    for reason, names in {
        "says who wrote the file": (
            "_name_or_path architectures model_type transformers_version transformers.js_config "
            "unsloth_fixed unsloth_version"
        ),
        "how weights are stored; their files say it": "torch_dtype dtype",
        "the tokenizer's": (
            "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id "
            "decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class "
            "suppress_tokens begin_suppress_tokens bad_words_ids"
        ),
        "how answers are drawn, not what is computed": (
            "max_length min_length do_sample early_stopping num_beams num_beam_groups "
            "diversity_penalty temperature top_k top_p typical_p repetition_penalty "
            "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
            "num_return_sequences remove_invalid_values exponential_decay_length_penalty "
            "return_dict_in_generate output_scores prefix"
        ),
        "what a call returns": (
            "return_dict output_hidden_states output_attentions use_cache use_return_dict"
        ),
        "how it is computed, with equal results": (
            "torchscript use_bfloat16 attn_implementation _attn_implementation "
            "_attn_implementation_autoset chunk_size_feed_forward gradient_checkpointing"
        ),
        "of a classifier": "id2label label2id num_labels problem_type finetuning_task",
        "of a training, or of random weights": (
            "initializer_range initializer_factor attention_dropout hidden_dropout dropout "
            "dropout_rate projection_dropout tf_legacy_loss task_specific_params"
        ),
    }.items()
    for name in names.split()
}
"""Fields of any config.json that change no result, and why."""

OFF_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False, True),  # True is what a decoder is
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""Fields of any config.json that have to be off."""


class Fields:
    """The fields of one configuration, of which none may be left unread.

    Args:
        content: of the JSON object.
        source: where it lies, for messages.
    """

    def __init__(self, content: Mapping[str, Any], source: str) -> None:
        self._content = content
        self._source = source
        self._known: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._content.get(name) is not None

    def read(self, name: str, default: Any = None) -> Any:
        """The value of a field; the default where it is missing, None where it is null.

        The two differ: a class of transformers takes its own default for the first only.
        """
        self._known.add(name)
        return self._content.get(name, default)

    def number(self, name: str, default: float | None = None) -> Any:
        """The value of a field that has to be a number; missing or null take the default.

        Raises:
            ValueError: it is missing without a default, or no number.
        """
        value = self.read(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{self._source}: found no {name}, which is needed.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self._source}, {name}: found {value!r}, expected a number.")
        return value

    def count(self, name: str, largest: int) -> int:
        """The value of a field that says how many of something there are.

        Raises:
            ValueError: it is missing, no whole number, or not from 1 to `largest`.
        """
        value = self.number(name)
        if not isinstance(value, int) or not 1 <= value <= largest:
            expected = f"a whole number from 1 to {largest:,}"
            raise ValueError(f"{self._source}, {name}: found {value!r}, expected {expected}.")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuses a field that has another value than one of these; null and missing are fine.

        Raises:
            ValueError: naming field and value.
        """
        value = self.read(name)
        if value is not None and not any(_equal(value, one) for one in allowed):
            expected = " or ".join(repr(one) for one in allowed) or "nothing"
            raise self.refusal(name, value, expected)

    def skip(self, names: Iterable[str]) -> None:
        """Marks fields as known to change nothing."""
        self._known.update(names)

    def refusal(self, name: str, found: Any, expected: str) -> ValueError:
        """The error for a value with which something else would be computed."""
        return ValueError(
            f"{self._source}, {name}: found {found!r}, expected {expected}; this project would "
            "compute something else than the checkpoint was trained for."
        )

    def finish(self) -> None:
        """Refuses what is left: nobody knows whether it changes results.

        Raises:
            ValueError: naming the fields.
        """
        self.skip(UNREAD_FIELDS)
        for name, allowed in OFF_FIELDS.items():
            self.expect(name, *allowed)
        unknown = sorted(
            name
            for name, value in self._content.items()
            if name not in self._known and value is not None
        )
        if unknown:
            shown = ", ".join(f"{name} ({self._content[name]!r:.60})" for name in unknown[:6])
            raise ValueError(
                f"{self._source}: found fields that are not known here: {shown}. They may change "
                "what the model computes. Remove them from the file if you know that they do not."
            )


def check_tensors(
    source: object,
    found: Iterable[str],
    needed: Iterable[str],
    what: str,
    reason_to_skip: Callable[[str], Reason | None],
) -> None:
    """Refuses a checkpoint that lacks tensors, or has some that nobody reads.

    Args:
        source: the checkpoint, for messages.
        found: names of all of its tensors.
        needed: names that are read.
        what: a noun for what is made of it.
        reason_to_skip: why a tensor may be left out; None refuses it.

    Raises:
        ValueError: naming tensors.
    """
    present, wanted = set(found), set(needed)
    if missing := sorted(wanted - present, key=natural):
        others = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise ValueError(
            f"{source}: found no tensor {missing[0]!r}{others}, which {what} needs. The weights "
            "are incomplete, or of another model than its configuration says."
        )
    unread = sorted(
        (name for name in present - wanted if reason_to_skip(name) is None), key=natural
    )
    if unread:
        shown = ", ".join(repr(name) for name in unread[:4])
        raise ValueError(
            f"{source}: found {len(unread)} tensors that {what} does not have, such as {shown}. "
            "Without them it would compute something else: it is another architecture."
        )


def natural(name: str) -> list[Any]:
    """Sorts layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in _parts(name)]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _equal(value: Any, one: Any) -> bool:
    """As ==, but True is not 1: a count is not a switch."""
    return value == one and isinstance(value, bool) == isinstance(one, bool)
