"""The HTTP dialects of the gateway: Fairlead's own, OpenAI's, OpenRLHF's, vLLM's, SGLang's and KServe's.

One module per dialect, each with its bodies and its routes. `routers` is the entry point.
"""

from __future__ import annotations

from fastapi import APIRouter

from services.gateway.backend import Backend
from services.gateway.collection import Collector
from services.gateway.dialects import (
    open_inference,
    openai_chat,
    openai_models,
    openrlhf,
    rewards,
    sglang,
    vllm,
)
from services.gateway.exchange_log import ExchangeLog


def routers(
    backend: Backend,
    *,
    exchange_log: ExchangeLog | None,
    collector: Collector | None,
    chat_max_tokens: int,
) -> list[APIRouter]:
    """Return the routes of every dialect, in the order of the API page.

    Args:
        backend: the services to call.
        exchange_log: where chat completions are logged, if they are.
        collector: sends prompts to the feedback service, if it is asked for.
        chat_max_tokens: maximum tokens of a chat completion whose request sets no limit.
    """
    simple = (rewards, openrlhf, vllm, sglang, open_inference, openai_models)
    chat = openai_chat.router(
        backend, exchange_log=exchange_log, collector=collector, default_max_tokens=chat_max_tokens
    )
    return [*(dialect.router(backend) for dialect in simple), chat]
