"""The plan of a run on one machine: processes, addresses, environment, and errors before any start."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.errors import ConfigError
from fairlead.local.addresses import Ports, allocate, is_free_port, split_address
from fairlead.local.plan import QUEUE_RANK, base_environment, ppo_plan, stage_plan
from fairlead.local.probes import READY_PATH, GrpcHealth, HttpHealth
from fairlead.local.process import ProcessSpec

FILE = Path("run.toml")
VALKEY = ProcessSpec(name="valkey", command=("valkey-server",), drain_rank=QUEUE_RANK)


def listener() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen(1)
    return taken


def plan(**overrides: object) -> dict[str, ProcessSpec]:
    config: RunConfig = load(overrides={key.replace("__", "."): value for key, value in overrides.items()})
    specs = ppo_plan(config, allocate(config), config_file=FILE, queue=VALKEY)
    return {spec.name: spec for spec in specs}


def test_plan_has_every_process_and_replica():
    specs = plan(policy__replicas=2, rollout_worker__replicas=3)
    assert list(specs) == [
        *("valkey", "trainer", "policy-0", "policy-1", "reward-0", "reference-0"),
        *("rollout-worker-0", "rollout-worker-1", "rollout-worker-2"),
    ]
    assert [name for name, spec in specs.items() if spec.is_main] == ["trainer"]
    assert specs["trainer"].command[1:] == ("-m", "trainer.ppo", "--config", "run.toml")
    assert specs["rollout-worker-2"].command[1:] == ("-m", "services.rollout_worker", "--config", "run.toml")


def test_drain_order_is_clients_services_queue():
    ranks = {name: spec.drain_rank for name, spec in plan().items()}
    assert ranks["trainer"] == ranks["rollout-worker-0"]
    assert ranks["trainer"] < ranks["policy-0"] == ranks["reward-0"] == ranks["reference-0"] < ranks["valkey"]


def test_processes_share_addresses_and_each_replica_has_its_bind():
    specs = plan(policy__replicas=2)
    values = {spec.environment["FAIRLEAD_POLICY__ADDRESSES"] for spec in specs.values() if spec is not VALKEY}
    assert len(values) == 1
    addresses = json.loads(values.pop())
    assert len(set(addresses)) == 2
    assert [specs[f"policy-{index}"].environment["FAIRLEAD_POLICY__BIND"] for index in (0, 1)] == addresses
    assert specs["policy-1"].probe == GrpcHealth(addresses[1])
    ports = [
        spec.environment["FAIRLEAD_OBSERVE__METRICS_PORT"] for spec in specs.values() if spec is not VALKEY
    ]
    assert len(set(ports)) == len(ports)
    assert specs["trainer"].probe == HttpHealth(
        "127.0.0.1", int(specs["trainer"].environment["FAIRLEAD_OBSERVE__METRICS_PORT"]), READY_PATH
    )


def test_children_can_load_their_configuration(monkeypatch: pytest.MonkeyPatch):
    for name, value in plan()["reward-0"].environment.items():
        monkeypatch.setenv(name, value)
    config = load()
    assert config.reward.addresses == (config.reward.bind,)
    assert config.observe.metrics_port > 0


def test_policy_readiness_timeout_starts_after_the_trainer_is_ready():
    assert plan()["policy-0"].ready_after == ("trainer",)
    assert plan(policy__serve_initial=True)["policy-0"].ready_after == ()
    assert plan()["reward-0"].ready_after == ()
    assert set(plan()["rollout-worker-0"].ready_after) == {"valkey", "policy-0", "reward-0", "reference-0"}


def test_configured_addresses_are_used():
    port = Ports().free("test")
    spec = plan(reward__addresses=[f"localhost:{port}"])["reward-0"]
    assert spec.environment["FAIRLEAD_REWARD__BIND"] == f"localhost:{port}"
    spec = plan(reward__addresses=[f"localhost:{port}"], reward__bind="0.0.0.0:0")["reward-0"]
    assert spec.environment["FAIRLEAD_REWARD__BIND"] == f"0.0.0.0:{port}"
    assert spec.probe == GrpcHealth(f"127.0.0.1:{port}")


def test_clients_know_the_addresses_of_later_replicas():
    first, later = Ports().free("test"), Ports().free("test")
    specs = plan(policy__addresses=[f"127.0.0.1:{first}", f"127.0.0.1:{later}"])
    assert "policy-1" not in specs
    assert specs["policy-0"].environment["FAIRLEAD_POLICY__BIND"] == f"127.0.0.1:{first}"
    addresses = json.loads(specs["rollout-worker-0"].environment["FAIRLEAD_POLICY__ADDRESSES"])
    assert addresses == [f"127.0.0.1:{first}", f"127.0.0.1:{later}"]


def test_grpc_transport_adds_a_weights_service_known_to_policies():
    assert "weights-0" not in plan()
    specs = plan(weights__transport="grpc", policy__replicas=2, weights__cache="caches")
    address = specs["weights-0"].environment["FAIRLEAD_WEIGHTS__BIND"]
    assert specs["weights-0"].command[1:] == ("-m", "services.weights", "--config", "run.toml")
    assert specs["weights-0"].probe == GrpcHealth(address)
    # It keeps serving while the clients that fetch weights drain.
    assert specs["weights-0"].drain_rank == specs["policy-0"].drain_rank
    policies = [specs["policy-0"].environment, specs["policy-1"].environment]
    assert {policy["FAIRLEAD_WEIGHTS__ADDRESSES"] for policy in policies} == {json.dumps([address])}
    caches = {policy["FAIRLEAD_WEIGHTS__CACHE"] for policy in policies}
    assert caches == {f"caches/policy-{policy['FAIRLEAD_POLICY__BIND'].split(':')[1]}" for policy in policies}


def test_service_on_another_machine_is_not_started():
    specs = plan(reward__addresses=["203.0.113.7:5002"], reference__addresses=["dns:///reference:5003"])
    assert "reward-0" not in specs
    assert "reference-0" not in specs
    assert json.loads(specs["rollout-worker-0"].environment["FAIRLEAD_REWARD__ADDRESSES"]) == [
        "203.0.113.7:5002"
    ]
    assert json.loads(specs["rollout-worker-0"].environment["FAIRLEAD_REFERENCE__ADDRESSES"]) == [
        "dns:///reference:5003"
    ]


def test_gateway_that_collects_knows_the_feedback_service():
    specs = plan(gateway__replicas=1, gateway__collect="asked", feedback__replicas=1)
    (address,) = json.loads(specs["gateway-0"].environment["FAIRLEAD_FEEDBACK__ADDRESSES"])
    assert address == specs["feedback-0"].environment["FAIRLEAD_FEEDBACK__BIND"]


def test_configured_gateway_is_started_on_its_port():
    assert not [name for name in plan() if name.startswith("gateway")]
    port = Ports().free("test")
    specs = plan(gateway__replicas=1, gateway__addresses=[f"127.0.0.1:{port}"])
    assert list(specs)[-1] == "gateway-0"
    gateway = specs["gateway-0"]
    assert gateway.command[1:] == ("-m", "services.gateway", "--config", "run.toml")
    assert gateway.environment["FAIRLEAD_GATEWAY__BIND"] == f"127.0.0.1:{port}"
    assert (
        gateway.environment["FAIRLEAD_REWARD__ADDRESSES"]
        == specs["trainer"].environment["FAIRLEAD_REWARD__ADDRESSES"]
    )
    assert gateway.probe == HttpHealth(
        "127.0.0.1", int(gateway.environment["FAIRLEAD_OBSERVE__METRICS_PORT"]), READY_PATH
    )
    assert set(gateway.ready_after) == {"policy-0", "reward-0", "reference-0"}
    assert gateway.drain_rank < specs["reward-0"].drain_rank
    assert list(plan(gateway__replicas=2, feedback__replicas=1))[-3:] == [
        "gateway-0",
        "gateway-1",
        "feedback-0",
    ]


def test_configured_metrics_ports_follow_one_another():
    first = next(
        port
        for port in range(21_000, 32_000, 10)
        if all(is_free_port("127.0.0.1", port + i) for i in range(5))
    )
    specs = plan(observe__metrics_port=first)
    ports = {
        name: spec.environment["FAIRLEAD_OBSERVE__METRICS_PORT"]
        for name, spec in specs.items()
        if name != "valkey"
    }
    assert ports["trainer"] == str(first)
    assert sorted(map(int, ports.values())) == list(range(first, first + 5))
    assert plan(observe__metrics_port=-1)["trainer"].probe is None


def test_port_in_use_is_reported_with_process_and_port():
    with listener() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            plan(reward__addresses=[f"127.0.0.1:{port}"])
        assert str(caught.value) == (
            f"reward.addresses: got 'port {port} for reward-0, which is in use on 127.0.0.1', "
            "allowed: a free port, or 0 to choose one"
        )
        with pytest.raises(ConfigError) as caught:
            plan(observe__metrics_port=port)
        assert str(caught.value) == (
            f"observe.metrics_port: got 'port {port} for metrics of trainer, "
            "which is in use on 127.0.0.1', "
            "allowed: a free port, or 0 to choose one"
        )


def test_port_configured_twice_is_reported_with_both_processes():
    port = Ports().free("test")
    with pytest.raises(ConfigError) as caught:
        plan(policy__addresses=[f"127.0.0.1:{port}"], reward__addresses=[f"127.0.0.1:{port}"])
    assert str(caught.value) == (
        f"reward.addresses: got 'port {port} for reward-0, which is already assigned to policy-0', "
        "allowed: a different port for each process"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"policy__replicas": 2, "policy__addresses": ["127.0.0.1:21001"]},
            "one address per replica (2), further ones with a port, or one with port 0",
        ),
        (
            {"policy__addresses": ["127.0.0.1:21001", "127.0.0.1:0"]},
            "one address per replica (1), further ones with a port, or one with port 0",
        ),
        ({"policy__replicas": 2, "policy__bind": "127.0.0.1:21001"}, "no value if replicas > 1"),
        ({"policy__addresses": ["localhost"]}, "host:port"),
        ({"policy__addresses": ["localhost:99999"]}, "host:port"),
    ],
)
def test_addresses_that_do_not_fit_are_refused(overrides: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        plan(**overrides)
    assert caught.value.allowed == message


def test_free_ports_are_free_and_distinct():
    ports = Ports()
    given = [ports.free("test") for _ in range(50)]
    assert len(set(given)) == 50
    assert all(is_free_port("127.0.0.1", port) for port in given)
    assert split_address("[::1]:80", field="x") == ("::1", 80)


def test_settings_of_the_environment_do_not_reach_children_but_secrets_do():
    config = load(overrides={"queue.redis_url": "redis://:open@queue:1", "queue.redis_password": "sesame"})
    caller = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "PATH": "/bin",
        "FAIRLEAD_PPO__UPDATES": "7",
        "FAIRLEAD_SEED": "3",
        "FAIRLEAD_OTHER": "kept",
    }
    assert base_environment(config, caller | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}) == {
        "PATH": "/bin",
        "FAIRLEAD_OTHER": "kept",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "ACTIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "FAIRLEAD_QUEUE__REDIS_URL": "redis://:open@queue:1",
        "FAIRLEAD_QUEUE__REDIS_PASSWORD": "sesame",
    }
    chosen = base_environment(load(), {})
    assert int(chosen["OMP_NUM_THREADS"]) >= 1
    assert chosen["OMP_WAIT_POLICY"] == "PASSIVE"


def test_stage_has_one_process_without_restarts():
    (spec,) = stage_plan(load(), "reward_model", config_file=FILE, force=True)
    assert spec.name == "reward-model"
    assert spec.command[1:] == ("-m", "trainer.reward_model", "--config", "run.toml", "--force")
    assert spec.is_main
    assert not spec.restarts


def gpus_of(*gpus: str, **overrides: object) -> dict[str, str]:
    config: RunConfig = load(overrides={key.replace("__", "."): value for key, value in overrides.items()})
    specs = ppo_plan(config, allocate(config), config_file=FILE, queue=VALKEY, gpus=gpus)
    found = {spec.name: spec.environment.get("CUDA_VISIBLE_DEVICES", "") for spec in specs}
    return {name: value for name, value in found.items() if value}


def test_every_rank_has_a_gpu_and_the_services_share_the_others():
    assert gpus_of() == gpus_of("0") == {}
    assert gpus_of(*"0123", ranks__per_node=2, policy__replicas=2) == {
        "trainer": "0,1",
        "policy-0": "2",
        "policy-1": "3",
        "reward-0": "2",
        "reference-0": "3",
    }
    assert gpus_of("4", "5", ranks__per_node=2) == {
        "trainer": "4,5",
        "policy-0": "4",
        "reward-0": "5",
        "reference-0": "4",
    }
    # A divided model has a GPU for each of its parts, also where those left by the trainer are too few.
    divided = {"ranks__per_node": 2, "reward__tensor_parallel": 2}
    assert gpus_of(*"0123", **divided)["reward-0"] == "3,2"
    assert sorted(gpus_of(*"012", **divided)["reward-0"].split(",")) == ["1", "2"]
    chosen = {"trainer": "3,2", "reward-0": "1"}
    found = gpus_of(*"0123", ranks__per_node=2, reference__device="cpu", local__gpus=chosen)
    assert found == {"trainer": "3,2", "policy-0": "2", "reward-0": "1"}
    with pytest.raises(ConfigError, match=r"ranks.per_node: got 3, allowed: at most the number of GPUs, 2"):
        gpus_of("0", "1", ranks__per_node=3)
    assert "trainer" not in gpus_of("0", "1", ranks__per_node=3, ppo__device="cpu")
    with pytest.raises(
        ConfigError, match=r"local.gpus: got 'policy-1', allowed: the processes trainer, policy-0"
    ):
        gpus_of(local__gpus={"policy-1": "0"})


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_layers_cannot_be_divided_among_are_refused_before_the_start(ranks: int):
    config = load(overrides={"ranks.per_node": ranks, "ranks.tensor_parallel": 2})
    message = rf"ranks.tensor_parallel: got 2, allowed: .* divides ranks.per_node, {ranks}"
    with pytest.raises(ConfigError, match=message):
        ppo_plan(config, allocate(config), config_file=FILE, queue=VALKEY)
    with pytest.raises(ConfigError, match=message):
        stage_plan(config, "sft", config_file=FILE)


def test_no_reference_service_if_the_trainer_computes_its_logprobs():
    config = load(overrides={"reference.engine": "trainer", "ppo.lora.rank": 8})
    specs = ppo_plan(config, allocate(config), config_file=FILE, queue=VALKEY, gpus=("0", "1"))
    assert [spec.name for spec in specs if spec.name.startswith("re")] == ["reward-0"]
    assert not any("FAIRLEAD_REFERENCE__ADDRESSES" in spec.environment for spec in specs)
    with pytest.raises(
        ConfigError, match=r"reference.engine: got 'trainer', allowed: .* without \[ppo.lora\]"
    ):
        load(overrides={"reference.engine": "trainer"})
    with pytest.raises(ConfigError, match=r"reference.path: got 'other', allowed: no path"):
        load(overrides={"reference.engine": "trainer", "ppo.lora.rank": 8, "reference.path": "other"})


def test_several_ranks_are_started_by_the_launcher_on_one_machine_only():
    ranks = load(overrides={"ranks.per_node": 2})
    (spec,) = stage_plan(ranks, "sft", config_file=FILE, force=True)
    launcher = ("-m", "trainer.distributed.launch", "trainer.sft", "--config", "run.toml", "--force")
    assert spec.command[1:] == launcher
    assert plan(ranks__per_node=2)["trainer"].command[1:4] == (*launcher[:2], "trainer.ppo")
    with pytest.raises(ConfigError, match="ranks.nodes: got 2, allowed: 1 for a run on one machine"):
        plan(ranks__nodes=2)
