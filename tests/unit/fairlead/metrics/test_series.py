"""Metrics exist from the start: the first event of a counter is seen by `increase()`."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.metrics.edge import MAX_KEYS, OTHER_KEY
from fairlead.metrics.series import PhaseClock
from fairlead.rpc.call_types import call_type
from fairlead.v1 import policy_service_pb2, reward_service_pb2
from tests.metric_values import total

LATER = {
    "fairlead_process_gpu_memory_bytes": "needs a GPU",
    "grpc_client_handled": "begins with the first connection to a service",
    "fairlead_client_retries": "begins with the first connection to a service",
    "fairlead_client_hedges": "begins with the first connection to a service",
    "fairlead_client_budget_exhausted": "begins with the first connection to a service",
    "grpc_server_started": "begins with the services of the server",
    "grpc_server_handled": "begins with the services of the server",
    "grpc_server_msg_received": "begins with the services of the server",
    "grpc_server_msg_sent": "begins with the services of the server",
    "grpc_server_handling_seconds": "begins with the services of the server",
    "fairlead_access_quota_tokens": "begins with the first key that has a quota",
    "fairlead_reward_model_info": "begins with the first model",
    "fairlead_policy_cache_bytes": "begins with the engine",
    "fairlead_policy_weight_incarnation": "begins with the first weights",
    "fairlead_policy_weight_update": "begins with the first weights",
    "fairlead_feedback_store_seconds": "by method of the store",
    "fairlead_trainer_last_update_timestamp_seconds": "begins with the stage",
    "fairlead_trainer_statistic": "begins with the first update",
    "fairlead_trainer_mfu_ratio": "needs a GPU",
    "fairlead_trainer_queue_entries": "begins with the first answer of Redis",
    "fairlead_trainer_queue_memory_bytes": "begins with the first answer of Redis",
    "fairlead_trainer_queue_memory_limit_bytes": "begins with the first answer of Redis",
    "fairlead_trainer_queue_outcome_bytes": "begins with the first update",
    "fairlead_trainer_queue_bound_bytes": "begins with the prompts",
    "fairlead_stage_last_step_timestamp_seconds": "begins with the stage",
    "fairlead_stage_figure": "begins with the first step",
}
"""Metrics that cannot have a series in a process that has done nothing, and why."""


def _registry(area: type) -> CollectorRegistry:
    registry = CollectorRegistry()
    if area is metrics.RunMetrics:
        area(RunConfig(), registry=registry)
    elif area is metrics.SupervisorMetrics:
        area(["trainer"], registry=registry)
    else:
        area(registry=registry)
    return registry


def test_every_metric_has_a_series_in_a_fresh_process():
    silent = {
        metric.name for area in metrics.AREAS for metric in _registry(area).collect() if not metric.samples
    }
    assert silent <= LATER.keys()


def test_no_series_reports_when_another_was_created():
    for area in metrics.AREAS:
        assert "_created" not in generate_latest(_registry(area)).decode()


def test_methods_of_a_server_begin_at_zero():
    registry = CollectorRegistry()
    service = reward_service_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
    metrics.ServerMetrics(registry).add_service(service, ["Score", "ScoreStream"])
    labels = {"grpc_type": "unary", "grpc_service": service, "grpc_method": "Score"}
    assert registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": "UNAVAILABLE"}) == 0
    assert registry.get_sample_value("grpc_server_started_total", labels) == 0
    streamed = labels | {"grpc_type": "bidi_stream", "grpc_method": "ScoreStream"}
    assert registry.get_sample_value("grpc_server_msg_received_total", streamed) == 0


@pytest.mark.parametrize(
    ("service", "method", "expected"),
    [
        ("fairlead.v1.PolicyService", "Generate", "unary"),
        ("fairlead.v1.PolicyService", "GenerateBatch", "server_stream"),
        ("fairlead.v1.RewardService", "ScoreStream", "bidi_stream"),
        ("fairlead.v1.RewardService", "Unknown", "unary"),
        ("some.Service", "Call", "unary"),
    ],
)
def test_type_of_a_call_is_that_of_its_service(service: str, method: str, expected: str):
    assert policy_service_pb2.DESCRIPTOR.services_by_name  # loaded
    assert call_type(service, method) == expected


def test_keys_beyond_the_limit_share_a_label():
    registry = CollectorRegistry()
    access = metrics.AccessMetrics(registry)
    access.set_keys([f"key-{number}" for number in range(MAX_KEYS + 50)])
    access.refuse("quota", "key-0")
    access.refuse("quota", f"key-{MAX_KEYS + 1}")
    access.refuse("quota", f"key-{MAX_KEYS + 2}")
    access.count_tokens(-5, "key-0")
    assert total(registry, "fairlead_access_refusals_total", reason="quota", key="key-0") == 1
    assert total(registry, "fairlead_access_refusals_total", reason="quota", key=OTHER_KEY) == 2
    assert total(registry, "fairlead_access_tokens_total") == 0
    keys = {
        sample.labels["key"] for metric in registry.collect() for sample in metric.samples if sample.labels
    }
    assert len(keys) == MAX_KEYS + 2  # and none


def test_quota_shows_what_a_key_has_used():
    registry = CollectorRegistry()
    access = metrics.AccessMetrics(registry)
    access.set_keys(["ada"])
    access.set_quotas(lambda: {"ada": (40, 100)})
    assert total(registry, "fairlead_access_quota_tokens", key="ada", kind="used") == 40
    assert total(registry, "fairlead_access_quota_tokens", key="ada", kind="limit") == 100


def test_phase_seconds_include_the_current_phase(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("fairlead.metrics.series.time.time", lambda: now)
    clock = PhaseClock(("wait", "train"))
    assert clock.read() == {"wait": 0.0, "train": 0.0}
    clock.enter("wait", 100.0)
    now = 103.0
    assert clock.read() == {"wait": 3.0, "train": 0.0}
    clock.enter("train", 103.0)
    now = 104.0
    clock.enter("", 104.0)
    now = 110.0
    assert clock.read() == {"wait": 3.0, "train": 1.0}


def test_unknown_sizes_of_the_queue_are_not_a_number():
    registry = CollectorRegistry()
    trainer = metrics.TrainerMetrics(registry)
    trainer.set_queue({"waiting": math.nan}, memory_bytes=math.nan, limit_bytes=0.0)
    assert math.isnan(registry.get_sample_value("fairlead_trainer_queue_memory_bytes") or 0.0)
    assert registry.get_sample_value("fairlead_trainer_queue_memory_limit_bytes") == 0


def test_infos_describe_build_and_run():
    registry = CollectorRegistry()
    config = RunConfig(name="mine")
    metrics.RunMetrics(config, stage="ppo", registry=registry)
    assert total(registry, "fairlead_run_info", run="mine", stage="ppo", model="scratch") == 1
    assert total(registry, "fairlead_build_info") == 1
    changed = config.model_copy(update={"seed": 1})
    assert metrics.process.recipe_hash(config) != metrics.process.recipe_hash(changed)
