"""API keys: which keys are valid, and how a changed, damaged or deleted key file is handled."""

from __future__ import annotations

import ast
import hmac
import inspect
import json
import logging
import os
import stat
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from fairlead import metrics
from fairlead.cli.main import app
from fairlead.config.infrastructure import KeysSection
from fairlead.errors import ConfigError, InvalidInput, PermissionDenied, Unauthenticated
from fairlead.rpc import api_keys
from fairlead.rpc.api_keys import ApiKey, KeyFile
from services.runtime.access.keys import KeyRing
from tests.metric_values import total


class World:
    """A key file and a key ring that reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.registry = CollectorRegistry()
        self.file = KeyFile()
        self._ring: KeyRing | None = None

    def add(self, key_id: str, **fields: object) -> str:
        key = api_keys.draw(key_id)
        entry = ApiKey(id=key_id, sha256=api_keys.sha256_of(key), **{"scopes": ("score",), **fields})
        self.file = self.file.replaced(entry)
        api_keys.write(self.path, self.file)
        return key

    def ring(self) -> KeyRing:
        section = KeysSection(file=str(self.path))
        return KeyRing(section, access_metrics=metrics.AccessMetrics(self.registry))

    def ring_kept(self) -> KeyRing:
        """One key ring for all examples."""
        if self._ring is None:
            self._ring = self.ring()
        return self._ring

    def refusals(self, reason: str) -> float:
        return total(self.registry, "fairlead_access_refusals_total", reason=reason)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_only_the_exact_key_is_accepted(world: World):
    one, two = world.add("one"), world.add("two", scopes=("generate",))
    ring = world.ring()
    assert ring.authenticate(f"Bearer {one}").id == "one"
    assert ring.authenticate(f"bearer  {two} ").id == "two"
    for bearer, reason in [
        (None, "missing"),
        ("", "missing"),
        ("Bearer", "missing"),
        (f"Basic {one}", "missing"),
        (one, "missing"),
        (f"Bearer {one[:-1]}", "wrong"),
        (f"Bearer {one}0", "wrong"),
        (f"Bearer {one.replace('one', 'two')}", "wrong"),
        (f"Bearer {api_keys.draw('three')}", "wrong"),
        ("Bearer \ud800", "wrong"),
        ("Bearer " + "x" * 100_000, "wrong"),
        # What the file holds must not open: who has read it has no key.
        (f"Bearer {api_keys.sha256_of(one)}", "wrong"),
        (f"Bearer fl_one_{api_keys.sha256_of(one)}", "wrong"),
    ]:
        before = world.refusals(reason)
        with pytest.raises(Unauthenticated) as caught:
            ring.authenticate(bearer)
        assert world.refusals(reason) == before + 1, bearer
        # Neither what was sent nor what is kept comes back.
        assert not bearer or len(bearer) < 8 or bearer not in str(caught.value)
        assert world.file.keys[0].sha256 not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shown=st.text(max_size=200), prefix=st.sampled_from(["", "Bearer ", "Bearer fl_one_", "bearer fl_"]))
def test_invalid_credentials_raise_unauthenticated(world: World, shown: str, prefix: str):
    if not world.file.keys:
        world.add("one")
    ring = world.ring_kept()
    with pytest.raises(Unauthenticated):
        ring.authenticate(prefix + shown)


def test_scopes_and_admin(world: World):
    world.add("one")
    world.add("root", scopes=("admin",))
    one, root = world.file.keys
    one.require("score")
    with pytest.raises(PermissionDenied, match="one does not have the scope generate"):
        one.require("generate")
    for scope in api_keys.SCOPES:
        root.require(scope)


def test_expired_and_revoked_keys_are_refused(world: World):
    now = datetime.now(UTC)
    late = world.add("late", expires=now - timedelta(seconds=1))
    fine = world.add("fine", expires=now + timedelta(hours=1))
    gone = world.add("gone", revoked=True)
    ring = world.ring()
    assert ring.authenticate(f"Bearer {fine}").id == "fine"
    with pytest.raises(Unauthenticated, match="late has expired"):
        ring.authenticate(f"Bearer {late}")
    with pytest.raises(Unauthenticated, match="gone is revoked"):
        ring.authenticate(f"Bearer {gone}")
    # Only who holds the key learns what became of it.
    with pytest.raises(Unauthenticated, match="unknown API key"):
        ring.authenticate(f"Bearer {gone[:-1]}{'0' if gone[-1] != '0' else '1'}")
    assert (world.refusals("expired"), world.refusals("revoked"), world.refusals("wrong")) == (1, 1, 1)


def test_changed_file_is_loaded_and_a_damaged_one_is_not(world: World, caplog):
    one = world.add("one")
    ring = world.ring()
    two = world.add("two")
    assert ring.authenticate(f"Bearer {two}").id == "two"
    caplog.set_level(logging.ERROR)
    for damage in (b"{", b"[]", b'{"keys": [{"id": "x"}]}', b"\xff\xfe", b'{"keys": [], "more": 1}'):
        world.path.write_bytes(damage)
        assert ring.authenticate(f"Bearer {one}").id == "one", damage
    world.path.unlink()
    assert ring.authenticate(f"Bearer {one}").id == "one"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 6
    assert world.registry.get_sample_value("fairlead_access_key_file_failures_total") == 6
    world.file = KeyFile()
    three = world.add("three")
    assert ring.authenticate(f"Bearer {three}").id == "three"
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {one}")


def test_mounted_secret_is_loaded_when_its_links_are_swapped(world: World, tmp_path: Path):
    """As the kubelet does it: keys.json → ..data/keys.json, and ..data → another folder in one rename."""
    one = world.add("one")
    mount = tmp_path / "mount"
    for number in (1, 2):
        (mount / f"..{number}").mkdir(parents=True)
    (mount / "..1" / "keys.json").write_bytes(world.path.read_bytes())
    (mount / "..data").symlink_to("..1")
    (mount / "keys.json").symlink_to("..data/keys.json")
    section = KeysSection(file=str(mount / "keys.json"))
    ring = KeyRing(section, access_metrics=metrics.AccessMetrics(CollectorRegistry()))
    assert ring.authenticate(f"Bearer {one}").id == "one"

    world.file = KeyFile()
    two = world.add("two")
    new = mount / "..2" / "keys.json"
    new.write_bytes(world.path.read_bytes())
    old = os.stat(mount / "keys.json")
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    (mount / "..data_tmp").symlink_to("..2")
    (mount / "..data_tmp").rename(mount / "..data")
    assert ring.authenticate(f"Bearer {two}").id == "two"
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {one}")


def test_service_does_not_start_with_an_unreadable_key_file(tmp_path: Path):
    for content in (None, "{", json.dumps({"keys": [{"id": "UPPER"}]})):
        path = tmp_path / "keys.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=r"keys\.file: got .*keys\.json"):
            KeyRing(KeysSection(file=str(path)), access_metrics=metrics.AccessMetrics(CollectorRegistry()))


def test_duplicate_ids_in_a_file_are_refused(world: World):
    world.add("one")
    values = world.file.model_dump(mode="json", exclude_none=True)
    world.path.write_text(json.dumps({"keys": values["keys"] * 2}))
    with pytest.raises(InvalidInput, match="the id one occurs twice"):
        api_keys.read(world.path)


def test_keys_are_compared_in_constant_time():
    """By structure: only the result of compare_digest decides whether a key matches."""
    tree = ast.parse(inspect.getsource(KeyRing.authenticate).lstrip().replace("\n    ", "\n"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    digests = [call for call in calls if ast.unparse(call.func) == "hmac.compare_digest"]
    assert [ast.unparse(argument) for argument in digests[0].args] == [
        "api_keys.sha256_of(presented)",
        "expected",
    ]
    secret = {"presented", "expected", "fits"}
    for compare in (node for node in ast.walk(tree) if isinstance(node, ast.Compare)):
        names = {node.id for node in ast.walk(compare) if isinstance(node, ast.Name)}
        assert not names & secret, ast.unparse(compare)
    assert hmac.compare_digest.__module__ in ("_operator", "_hashlib")


@pytest.mark.slow
def test_time_of_a_refusal_does_not_depend_on_a_matching_prefix(world: World):
    """Medians of interleaved calls: no prefix of the secret takes longer than an empty one."""
    key = world.add("one")
    ring = KeyRing(
        KeysSection(file=str(world.path)),
        access_metrics=metrics.AccessMetrics(world.registry),
    )
    secret = key.rpartition("_")[2]
    other = "".join("0" if letter != "0" else "1" for letter in secret)
    tries = {
        "nothing": f"Bearer fl_one_{other}",
        "half": f"Bearer fl_one_{secret[:32]}{other[32:]}",
        "all but one": f"Bearer fl_one_{secret[:-1]}{other[-1]}",
        "no such id": f"Bearer fl_two_{other}",
    }
    taken: dict[str, list[int]] = {name: [] for name in tries}
    for _ in range(20_000):
        for name, bearer in tries.items():
            began = time.perf_counter_ns()
            with pytest.raises(Unauthenticated):
                ring.authenticate(bearer)
            taken[name].append(time.perf_counter_ns() - began)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    assert max(medians.values()) < 1.05 * min(medians.values()), medians


def test_cli_creates_lists_and_revokes_keys(tmp_path: Path):
    file = tmp_path / "secrets" / "keys.json"
    run = CliRunner().invoke
    made = run(app, ["keys", "create", "search", "--tokens-per-day", "5000", "--file", str(file)])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.rpartition("_")[2] not in file.read_text()
    section = KeysSection(file=str(file))
    ring = KeyRing(section, access_metrics=metrics.AccessMetrics(CollectorRegistry()))
    assert ring.authenticate(f"Bearer {key}").tokens_per_day == 5000

    again = run(app, ["keys", "create", "search", "--file", str(file)])
    assert (again.exit_code, again.stdout) == (2, "")
    assert "allowed: a new id" in again.stderr
    bad = run(app, ["keys", "create", "x", "--tokens-per-day", "0", "--file", str(file)])
    assert bad.exit_code == 2
    assert "tokens_per_day: got 0" in bad.stderr

    unknown = run(app, ["keys", "create", "y", "--scope", "rank", "--file", str(file)])
    assert unknown.exit_code == 2
    with pytest.raises(InvalidInput, match="got 'rank', allowed: some of score, generate, weights, feedback"):
        api_keys.scopes_of(["rank"])
    other = run(app, ["keys", "create", "--scope", "generate", "--scope", "score", "--file", str(file)])
    shown = json.loads(run(app, ["keys", "list", "--json", "--file", str(file)]).stdout)
    assert [one["scopes"] for one in shown] == [["score"], ["score", "generate"]]
    assert "sha256" not in json.dumps(shown)
    assert run(app, ["keys", "revoke", "search", "--file", str(file)]).exit_code == 0
    with pytest.raises(Unauthenticated, match="revoked"):
        ring.authenticate(f"Bearer {key}")
    assert ring.authenticate(f"Bearer {other.stdout.strip()}").scopes == ("score", "generate")
    assert "revoked" in run(app, ["keys", "list", "--file", str(file)]).stdout
    assert run(app, ["keys", "revoke", "nobody", "--file", str(file)]).exit_code == 2


def test_verbs_follow_a_link_to_the_key_file(tmp_path: Path):
    """A key that is revoked by the link is revoked for a service that reads the file itself."""
    file, link = tmp_path / "etc" / "keys.json", tmp_path / "keys.json"
    run = CliRunner().invoke
    key = run(app, ["keys", "create", "search", "--file", str(file)]).stdout.strip()
    link.symlink_to(file)
    ring = KeyRing(KeysSection(file=str(file)), access_metrics=metrics.AccessMetrics(CollectorRegistry()))
    assert ring.authenticate(f"Bearer {key}").id == "search"
    assert run(app, ["keys", "revoke", "search", "--file", str(link)]).exit_code == 0
    with pytest.raises(Unauthenticated, match="revoked"):
        ring.authenticate(f"Bearer {key}")
    assert link.is_symlink()
