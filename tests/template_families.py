"""Tiny checkpoints of six families of chat templates, which differ in how an assistant's turn ends.

ChatML: another EOS than the end of a turn, and a line break after it. Llama 3: BOS, no line break. Gemma 3:
EOS is never written. Phi-3: the end of a turn takes the white space after it, EOS follows the conversation,
and no BOS is written though the tokenizer adds one to plain text. Mistral: EOS itself ends a turn. Qwen 3
without thinking: an argument of the template is part of it. The generation configurations list the ids as
those of the real models do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.data.template import bind
from tests.tiny import add_head

TEXTS = ("the lamp is broken .", "where is my parcel ?", "we are sorry for that , and send a new one .")


@dataclass(frozen=True)
class Family:
    """The chat template of a family and its special tokens."""

    template: str
    bos: str | None
    eos: str
    stop: str
    """The token that ends an assistant's turn."""
    after: str
    """What the template writes after it at the end of a conversation."""
    others: tuple[str, ...] = ()
    """Other tokens that the template writes."""
    strips: bool = False
    """Whether the stop token takes the white space after it."""


QWEN3 = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>' }}{{ '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
"""The part of the template of Qwen 3 that concerns thinking."""

FAMILIES: Mapping[str, Family] = {
    "chatml": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
        "<|endoftext|>",
        "<|im_end|>",
        "\n",
        ("<|im_start|>",),
    ),
    "llama3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma3": Family(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        "\n",
        ("<start_of_turn>",),
    ),
    "phi3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<s>",
        "<|endoftext|>",
        "<|end|>",
        "\n<|endoftext|>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
        strips=True,
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
        "</s>",
        "",
        ("[INST]", "[/INST]"),
    ),
    "qwen3_no_thinking": Family(
        bind(QWEN3, {"enable_thinking": False}),
        None,
        "<|endoftext|>",
        "<|im_end|>",
        "\n",
        ("<|im_start|>", "<think>", "</think>"),
    ),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the special tokens and the chat template of a family."""
    family = FAMILIES[name]
    definition = Tokenizer(models.BPE())
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    definition.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    definition.train_from_iterator(TEXTS, trainer)
    names = ("<pad>", family.bos, family.eos, family.stop, *family.others)
    definition.add_special_tokens(
        [
            AddedToken(one, special=True, rstrip=family.strips and one == family.stop)
            for one in dict.fromkeys(filter(None, names))
        ]
    )
    if family.bos:
        start = (family.bos, definition.token_to_id(family.bos))
        definition.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[start]
        )
    special = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": "<pad>"}
    found = PreTrainedTokenizerFast(tokenizer_object=definition, **special)
    found.chat_template = family.template
    return found


def causal_lm(name: str, folder: Path, *, context: int = 256) -> Path:
    """Save a language model of a family with random parameters."""
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(family.stop)]
    model.generation_config.eos_token_id = list(dict.fromkeys(ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_model(name: str, folder: Path) -> Path:
    """Save a reward model of a family in Fairlead's format, without the key of its answers' end."""
    causal_lm(name, folder)
    return add_head(folder, tokenizer_of(name), seed=0, bias=0.5)
