"""Score items, priorities, scores and served models ↔ messages of reward_service.proto."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fairlead.codec.tokens import messages_from_pb, messages_to_pb, model_info_from_pb, model_info_to_pb
from fairlead.errors import InvalidInput
from fairlead.types import (
    Priority,
    RewardInfo,
    ScoreItem,
    Scores,
    ServedReward,
    TextPair,
    TokenPair,
    WholeText,
)
from fairlead.v1 import reward_admin_service_pb2, reward_service_pb2


def score_item_to_pb(item: ScoreItem) -> reward_service_pb2.ScoreItem:
    """Return an item as a message."""
    if isinstance(item, WholeText):
        return reward_service_pb2.ScoreItem(whole_text=item.text)
    if isinstance(item, TextPair):
        return reward_service_pb2.ScoreItem(
            text=reward_service_pb2.TextPair(
                prompt=item.prompt, response=item.response, messages=messages_to_pb(item.messages)
            )
        )
    return reward_service_pb2.ScoreItem(
        tokens=reward_service_pb2.TokenPair(
            prompt_token_ids=item.prompt_token_ids,
            response_token_ids=item.response_token_ids,
            append_end=item.append_end,
        )
    )


def score_items_from_pb(messages: Sequence[reward_service_pb2.ScoreItem]) -> list[ScoreItem]:
    """Return items from messages.

    Raises:
        InvalidInput: if an item is empty.
    """
    items: list[ScoreItem] = []
    for index, message in enumerate(messages):
        content = message.WhichOneof("content")
        if content == "text":
            text = message.text
            items.append(TextPair(text.prompt, text.response, messages_from_pb(text.messages)))
        elif content == "tokens":
            tokens = message.tokens
            items.append(
                TokenPair(tuple(tokens.prompt_token_ids), tuple(tokens.response_token_ids), tokens.append_end)
            )
        elif content == "whole_text":
            items.append(WholeText(message.whole_text))
        else:
            raise InvalidInput("items", index=index, got="nothing", allowed="text, tokens or whole_text")
    return items


_PRIORITY_TO_PB = {
    Priority.ONLINE: reward_service_pb2.SCORE_PRIORITY_ONLINE,
    Priority.BULK: reward_service_pb2.SCORE_PRIORITY_BULK,
}


def priority_to_pb(priority: Priority) -> reward_service_pb2.ScorePriority.ValueType:
    """Return a priority as a message."""
    return _PRIORITY_TO_PB[priority]


def priority_from_pb(value: int) -> Priority:
    """Return a priority from a message; unspecified is `ONLINE`.

    Raises:
        InvalidInput: for an unknown number.
    """
    found = {int(number): priority for priority, number in _PRIORITY_TO_PB.items()} | {0: Priority.ONLINE}
    if value not in found:
        raise InvalidInput("priority", got=value, allowed=f"one of {sorted(found)}")
    return found[value]


def scores_to_pb(scores: Scores) -> reward_service_pb2.ScoreResponse:
    """Return scores as a message."""
    return reward_service_pb2.ScoreResponse(
        scores=scores.scores,
        model_version=scores.model_version,
        num_tokens=scores.num_tokens,
        queue_seconds=scores.queue_seconds,
        compute_seconds=scores.compute_seconds,
        calibration_temperature=scores.calibration_temperature,
        terms=[
            reward_service_pb2.TermScores(name=name, scores=values) for name, values in scores.terms.items()
        ],
    )


def scores_from_pb(message: reward_service_pb2.ScoreResponse) -> Scores:
    """Return scores from a message."""
    return Scores(
        scores=tuple(message.scores),
        model_version=message.model_version,
        num_tokens=tuple(message.num_tokens),
        queue_seconds=message.queue_seconds,
        compute_seconds=message.compute_seconds,
        calibration_temperature=message.calibration_temperature,
        terms={term.name: tuple(term.scores) for term in message.terms},
    )


def reward_info_to_pb(info: RewardInfo) -> reward_service_pb2.GetRewardInfoResponse:
    """Return a description of a reward replica as a message."""
    canary = info.canary_model
    return reward_service_pb2.GetRewardInfoResponse(
        model=model_info_to_pb(info.model),
        model_version=info.model_version,
        calibration_temperature=info.calibration_temperature,
        canary_model_version=info.canary_model_version,
        canary_share=info.canary_share,
        canary_model=model_info_to_pb(canary) if canary is not None else None,
        canary_calibration_temperature=info.canary_calibration_temperature,
    )


def reward_info_from_pb(message: reward_service_pb2.GetRewardInfoResponse) -> RewardInfo:
    """Return a description of a reward replica from a message."""
    return RewardInfo(
        model=model_info_from_pb(message.model),
        model_version=message.model_version,
        calibration_temperature=message.calibration_temperature,
        canary_model_version=message.canary_model_version,
        canary_share=message.canary_share,
        canary_model=model_info_from_pb(message.canary_model) if message.HasField("canary_model") else None,
        canary_calibration_temperature=message.canary_calibration_temperature,
    )


def served_to_pb(served: Sequence[ServedReward]) -> list[reward_admin_service_pb2.ServedRewardModel]:
    """Return served models as messages."""
    return [
        reward_admin_service_pb2.ServedRewardModel(
            model=model_info_to_pb(one.info.model),
            model_version=one.info.model_version,
            calibration_temperature=one.info.calibration_temperature,
            share=one.share,
        )
        for one in served
    ]


def served_from_pb(messages: Iterable[reward_admin_service_pb2.ServedRewardModel]) -> list[ServedReward]:
    """Return served models from messages."""
    return [
        ServedReward(
            RewardInfo(model_info_from_pb(one.model), one.model_version, one.calibration_temperature),
            one.share,
        )
        for one in messages
    ]
