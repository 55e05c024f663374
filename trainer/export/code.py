"""The code in a model card, which loads the model in its folder and uses it as the services of the run do.

A test runs each of them in the folder of its card.
"""

from __future__ import annotations

_POLICY = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or where this folder is, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{prompt}
output = model.generate(**inputs)  # samples as in training; do_sample=False is greedy
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_PLAIN_PROMPT = 'inputs = tokenizer("…", return_tensors="pt")'

_CHAT_PROMPT = """\
messages = [{"role": "user", "content": "…"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""

_REWARD = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "{folder}"  # or where this folder is, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)


{encode}


def score(prompt, response):
    with torch.inference_mode():
        raw = model(input_ids=torch.tensor([encode(prompt, response)])).logits[0, 0]
    return raw.item() + model.config.fairlead_reward_bias


print(score({prompt}, "…"))"""

_PLAIN_PAIR = """\
def encode(prompt, response):
    ids = tokenizer(prompt)["input_ids"]
    ids += tokenizer(response, add_special_tokens=False)["input_ids"]
    return ids + model.config.fairlead_answer_end["text"]"""

_CHAT_PAIR = """\
def encode(prompt, response):
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    turns = [*prompt, {"role": "assistant", "content": response}]
    answer = tokenizer.apply_chat_template(turns, tokenize=False)[len(before) :]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    end = model.config.fairlead_answer_end["conversation"]  # what the template writes after it is not read
    if end[0] in ids:
        ids = ids[: len(ids) - 1 - ids[::-1].index(end[0])]
    return tokenizer(before, add_special_tokens=False)["input_ids"] + ids + end"""


def policy(*, chat: bool) -> str:
    """Return code that answers one prompt.

    Args:
        chat: whether prompts are conversations, rendered by the chat template.
    """
    return _POLICY.format(prompt=_CHAT_PROMPT if chat else _PLAIN_PROMPT)


def reward(*, chat: bool, member: str = "") -> str:
    """Return code that scores a response: `score(prompt, response)`; a prompt is messages with `chat`.

    Args:
        chat: whether prompts are conversations, rendered by the chat template.
        member: folder of a member of an ensemble, relative to the card.
    """
    return _REWARD.format(
        folder=member or ".",
        encode=_CHAT_PAIR if chat else _PLAIN_PAIR,
        prompt='[{"role": "user", "content": "…"}]' if chat else '"…"',
    )
