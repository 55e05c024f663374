"""Configuration: precedence, misspelt and retired keys, refused values, the shipped files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.config.run import parse_overrides
from fairlead.errors import ConfigError

ROOT = Path(__file__).parents[4]


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_precedence_is_flags_environment_file_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, "[ppo]\nupdates = 2\nepochs = 2\nbatch_size = 8\nmini_batch_size = 8\n")
    monkeypatch.setenv("FAIRLEAD_PPO__EPOCHS", "3")
    monkeypatch.setenv("FAIRLEAD_PPO__BATCH_SIZE", "16")
    config = load(path, overrides={"ppo.batch_size": "24"})
    assert (config.ppo.updates, config.ppo.epochs, config.ppo.batch_size) == (2, 3, 24)
    assert config.ppo.clip_range == 0.2


def test_environment_sets_lists_as_json(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAIRLEAD_POLICY__ADDRESSES", '["a:1", "b:2"]')
    assert load().policy.addresses == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ppo]\nupdats = 3", "ppo.updats: got 'an unknown key', allowed: did you mean `ppo.updates`?"),
        ("[pppo]\nupdates = 3", "pppo: got 'an unknown key', allowed: did you mean `ppo`?"),
        ("[ppo]\nupdates = 'many'", "ppo.updates: got 'many', allowed: Input should be a valid integer"),
        ("[ppo]\nupdates = 0", "ppo.updates: got 0, allowed: Input should be greater than or equal to 1"),
        (
            "[ppo]\nkl_coefficient = nan",
            "ppo.kl_coefficient: got nan, allowed: Input should be a finite number",
        ),
        ("name = '../up'", "name: got '../up', allowed: String should match pattern"),
        ("[ppo", "config: got "),
        ("[reward]\naliases = ['']", "reward.aliases.0: got '', allowed: String should match pattern"),
        (
            "[reward]\naliases = ['a', 'a']",
            "reward.aliases: got ['a', 'a'], allowed: each name once, not 'a' several times",
        ),
        (
            "[reward]\naliases = ['policy']",
            "reward.aliases: got 'policy', allowed: names that [policy] does not have",
        ),
        (
            "[reward]\nmodel_name = 'a'\n[policy]\naliases = ['a']",
            "policy.aliases: got 'a', allowed: names that [reward] does not have",
        ),
    ],
)
def test_error_names_the_key(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert str(caught.value).startswith(message)


def test_missing_file_and_misspelt_variable_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="a TOML file that exists"):
        load(tmp_path / "absent.toml")
    monkeypatch.setenv("FAIRLEAD_PPO__UPDATS", "3")
    with pytest.raises(ConfigError, match="did you mean `ppo.updates`"):
        load()


def test_mini_batch_size_must_divide_and_truncated_sampling_needs_consent():
    message = "ppo: got 'settings that .*mini_batch_size 5 does not divide batch_size 8; set it to 2 or 4"
    with pytest.raises(ConfigError, match=message):
        load(overrides={"ppo.batch_size": 8, "ppo.mini_batch_size": 5})
    with pytest.raises(ConfigError, match="allow_truncated_distribution"):
        load(overrides={"sampling.top_p": 0.9})
    assert load(overrides={"sampling.top_p": 0.9, "sampling.allow_truncated_distribution": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ppo.batch_size": 10, "ppo.mini_batch_size": 10},
            r"batch_size 10 is not a multiple of num_samples 4: .* set it to 8 or 12",
        ),
        (
            {"ppo.batch_size": 3, "ppo.mini_batch_size": 3},
            r"batch_size 3 is not a multiple of num_samples 4: .* set it to 4$",
        ),
        (
            {"policy.max_samples": 3},
            r"ppo.num_samples: got 4, allowed: at most 3, because policy.max_samples",
        ),
        (
            {"policy.max_slots": 2},
            r"ppo.num_samples: got 4, allowed: at most 2, because policy.max_slots = 2",
        ),
        ({"reward.batching.max_items": 3}, "at most 3, because reward.batching.max_items = 3"),
        ({"reference.batching.max_items": 3}, "at most 3, because reference.batching.max_items = 3"),
        (
            {"reward.batching.max_queue_tokens": 200},
            "at most 3, because reward.batching.max_queue_tokens = 200 limits the tokens of a request",
        ),
        ({"ppo.num_samples": 0}, "ppo.num_samples: got 0"),
    ],
)
def test_groups_must_fit_the_batch_and_the_services(changes: dict[str, object], message: str):
    fitting: dict[str, object] = {"ppo.batch_size": 8, "ppo.mini_batch_size": 4, "ppo.num_samples": 4}
    assert load(overrides=fitting).ppo.tasks_per_update == 2
    # A deterministic run decodes one answer at a time.
    assert load(overrides=fitting | {"deterministic": True}).policy.max_slots == 1
    with pytest.raises(ConfigError, match=message):
        load(overrides=fitting | changes)


def test_password_is_never_shown():
    config = load(overrides={"queue.redis_password": "hunter2-secret"})
    assert "hunter2" not in repr(config) + str(config) + config.model_dump_json()
    with pytest.raises(ConfigError) as caught:
        load(overrides={"queue.redis_password": ["hunter2-secret"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=lambda path: path.name)
def test_shipped_file_loads(path: Path):
    assert load(path).name


def test_new_key_wins_over_old_key_of_the_same_source(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = load(write(tmp_path, "[queue]\ntls_ca = 'old.pem'\nredis_tls_ca = 'new.pem'\n"))
    assert config.queue.redis_tls_ca == "new.pem"
    assert caplog.messages == ["queue.tls_ca is ignored, because queue.redis_tls_ca is set too"]


def test_old_key_of_a_flag_wins_over_new_key_of_the_file(tmp_path: Path):
    path = write(tmp_path, "[queue]\nredis_tls_ca = 'file.pem'\n")
    assert load(path, overrides={"queue.tls_ca": "flag.pem"}).queue.redis_tls_ca == "flag.pem"


def test_bad_value_of_an_old_key_is_refused_by_the_key_that_holds_it():
    with pytest.raises(ConfigError, match=r"reward\.max_message_bytes: got 5, allowed: .* 1024"):
        load(overrides={"reward.max_message_bytes": 5})
    with pytest.raises(ConfigError, match=r"queue\.redis_tls_ca: got 3, allowed: .* string"):
        load(overrides={"queue.tls_ca": 3})


def test_section_that_is_not_a_table_is_refused():
    with pytest.raises(ConfigError, match="queue: got 3"):
        load(overrides={"queue": 3})


@pytest.mark.parametrize(
    ("flag", "read"),
    [
        ("name=20260923", lambda config: config.name == "20260923"),
        ("policy.path=7", lambda config: config.policy.path == "7"),
        (
            "queue.redis_password=1234",
            lambda config: config.queue.redis_password.get_secret_value() == "1234",
        ),
        ('name="quoted"', lambda config: config.name == "quoted"),
        ("ppo.updates=7", lambda config: config.ppo.updates == 7),
    ],
)
def test_flag_of_a_text_key_may_look_like_a_number(flag: str, read: Callable[[RunConfig], bool]):
    assert read(load(overrides=parse_overrides([flag])))


@pytest.mark.parametrize("section", ["sft", "reward_model", "preference", "ppo"])
def test_divided_matrices_are_not_compiled(section: str):
    settings = {f"{section}.compile": True, "ranks.per_node": 2}
    assert getattr(load(overrides=settings), section).compile
    with pytest.raises(ConfigError, match=rf"{section}\.compile.*false with ranks.tensor_parallel above 1"):
        load(overrides={**settings, "ranks.tensor_parallel": 2})
