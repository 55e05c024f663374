"""A small Llama with random weights and a tokenizer trained on the run's own texts.

SFT starts from it when `[model] path` is empty. BOS precedes every prompt, so an empty prompt is still one
token; pad, BOS, EOS and unknown are distinct ids.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.config.data import ScratchModel
from fairlead.errors import ConfigError

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
_SPECIAL = [PAD, BOS, EOS, UNKNOWN]


def make_tokenizer(texts: Iterable[str], scratch: ScratchModel) -> PreTrainedTokenizerFast:
    """Return a word-level or byte-level BPE tokenizer trained on the texts.

    Raises:
        ConfigError: if the vocabulary for `bpe` is smaller than 256 bytes and the special tokens.
    """
    if scratch.tokenizer == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer: trainers.Trainer = trainers.WordLevelTrainer(
            vocab_size=scratch.vocabulary_size, special_tokens=_SPECIAL, show_progress=False
        )
    else:
        minimum = 256 + len(_SPECIAL)
        if scratch.vocabulary_size < minimum:
            raise ConfigError(
                "model.scratch.vocabulary_size",
                got=scratch.vocabulary_size,
                allowed=f"at least {minimum} with tokenizer = 'bpe'",
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=scratch.vocabulary_size,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, scratch: ScratchModel, *, seed: int | None
) -> LlamaForCausalLM:
    """Return a Llama of the given sizes with tied embeddings, in float32; weights depend only on the seed.

    Without a seed it has no values: its tensors are on the meta device.

    Raises:
        ConfigError: if the heads do not divide the hidden size.
    """
    if scratch.hidden_size % (2 * scratch.num_heads):
        raise ConfigError(
            "model.scratch.num_heads",
            got=scratch.num_heads,
            allowed=f"a number for which hidden_size {scratch.hidden_size} / num_heads is an even integer",
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        # Llama's own ratio of 8/3, rounded up to a multiple of 8.
        intermediate_size=-(-scratch.hidden_size * 8 // 24) * 8,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_heads,
        max_position_embeddings=scratch.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if seed is None:
        with torch.device("meta"):
            return LlamaForCausalLM(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
