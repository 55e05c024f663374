"""Access to the HTTP gateway in front of a real reward service: keys, limits, TLS."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fairlead.rpc.api_keys import draw
from services.gateway.scopes import need_of
from services.runtime.http.limit_headers import NAMES
from tests.gateway_world import Gateway, gateway, policy_server, reward_server
from tests.metric_values import total
from tests.unit.fairlead.rpc.tls_world import Authority
from tests.unit.services.reward.reward_world import reward_service
from tests.unit.services.runtime.keys_world import Keys

BODY = {"prompt": "w1 w2", "responses": ["w3", "w4 w5"]}
NUM_TOKENS = 11


@pytest.fixture
async def http(reward_folder, keys: Keys):
    sections = {"keys.file": str(keys.path)}
    async with reward_server(reward_folder) as reward, gateway(reward=reward, sections=sections) as found:
        yield found


async def post(http: Gateway, key: str | None, path: str = "/v1/rewards", body: object = BODY):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await http.post(path, body, **headers)


def refusals(http: Gateway, reason: str) -> float:
    return total(http.registry, "fairlead_access_refusals_total", reason=reason)


async def test_refused_keys_get_a_status_and_a_reason(http: Gateway, keys: Keys):
    past = datetime.now(UTC) - timedelta(days=1)
    cases = {
        "missing": (None, 401, "no API key"),
        "wrong": (draw("nobody"), 401, "unknown API key"),
        "revoked": (keys.add("gone", revoked=True), 401, "gone is revoked"),
        "expired": (keys.add("late", expires=past), 401, "late has expired"),
        "scope": (keys.add("writer", scopes=("generate",)), 403, "writer does not have the scope score"),
    }
    for reason, (key, status, words) in cases.items():
        answer = await post(http, key)
        assert (answer.status, refusals(http, reason)) == (status, 1), reason
        assert words in answer.error["message"]
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        text = answer.body.decode()
        assert key is None or key.rpartition("_")[2] not in text
        assert str(keys.path) not in text
    assert (await post(http, keys.add("good"))).status == 200


async def test_every_dialect_reports_a_missing_key_in_its_own_format(http: Gateway, keys: Keys):
    asked = {
        "/get_reward": ({"query": ["w1 w2"]}, "detail"),
        "/classify": ({"input": "w1 w2"}, "error"),
        "/v2/models/reward/infer": ({"inputs": []}, "error"),
    }
    good = keys.add("good")
    for path, (body, field) in asked.items():
        answer = await post(http, None, path, body)
        assert answer.status == 401
        assert "API key" in str(answer.json[field])
        assert (await post(http, good, path, body)).status in (200, 400, 404)


async def test_exceeded_rates_and_quotas_return_a_delay(http: Gateway, keys: Keys):
    slow = keys.add("slow", requests_per_second=0.01)
    assert (await post(http, slow)).status == 200
    answer = await post(http, slow)
    assert answer.status == 429
    assert 90 < int(answer.headers["retry-after"]) <= 100
    assert answer.error["type"] == "resource_exhausted"

    # Tokens are counted after scoring, so the request that reaches the quota is still answered.
    limited = keys.add("limited", tokens_per_day=NUM_TOKENS)
    first = await post(http, limited)
    assert (first.status, first.json["total_tokens"]) == (200, NUM_TOKENS)
    answer = await post(http, limited)
    assert answer.status == 429
    assert "has used its quota of 11 tokens for today" in answer.error["message"]
    assert (refusals(http, "requests"), refusals(http, "quota")) == (1, 1)


async def test_request_above_token_limit_of_key_is_refused_before_scoring(http: Gateway, keys: Keys):
    small = keys.add("small", max_request_tokens=NUM_TOKENS)
    assert (await post(http, small)).status == 200
    for path, body in {
        "/v1/rewards": {**BODY, "responses": ["w3", "w4 w5 w6"]},
        "/v1/rewards:rank": {**BODY, "responses": ["w3", "w4 w5 w6"]},
    }.items():
        answer = await post(http, small, path, body)
        assert (answer.status, answer.error["type"], answer.error["field"]) == (
            400,
            "invalid_argument",
            "responses",
        )
        assert answer.error["message"] == "responses: got '12 tokens', allowed: at most 11 in one request"
    # Refused requests do not count.
    limited = keys.add("limited", max_request_tokens=NUM_TOKENS, tokens_per_day=NUM_TOKENS)
    assert (await post(http, limited, body={**BODY, "responses": ["w3 " * 20]})).status == 400
    assert (await post(http, limited)).status == 200


async def test_generation_above_token_limit_of_key_is_refused_before_it_starts(keys: Keys, tmp_path: Path):
    small = keys.add("small", scopes=("generate",), max_request_tokens=20)
    asked = {"messages": [{"role": "user", "content": "w1 w2"}]}
    async with policy_server(tmp_path / "policy", chat_template="{{ messages[0]['content'] }}") as policy:
        async with gateway(policy=policy.address, sections={"keys.file": str(keys.path)}) as http:
            for stream in (False, True):
                for tokens, status in ((18, 200), (19, 400)):
                    body = {**asked, "max_completion_tokens": tokens, "stream": stream}
                    answer = await post(http, small, "/v1/chat/completions", body)
                    assert answer.status == status, answer.body
                assert "at most 20 in one request" in answer.error["message"]


async def test_key_in_either_header_and_in_the_description(http: Gateway, keys: Keys):
    good, other = keys.add("good"), keys.add("other", scopes=("generate",))
    for headers, status in (
        ({"x-api-key": good}, 200),
        ({"X-API-Key": good, "Authorization": f"Bearer {good}"}, 200),
        ({"x-api-key": good, "authorization": f"Bearer {other}"}, 403),
        ({"x-api-key": f"{good}0"}, 401),
        ({"x-api-key": ""}, 401),
        ({}, 401),
    ):
        assert (await http.ask("POST", "/v1/rewards", BODY, headers)).status == status, headers
    schema = (await http.get("/openapi.json")).json
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (need_of(path) is not None), path
            names = [one["$ref"].rpartition("/")[2] for one in operation["parameters"] if "$ref" in one]
            assert names == ["X-Request-Id", "X-Request-Timeout"]
    assert "security" not in schema["paths"]["/healthz"]["get"]
    assert "swagger-ui-bundle.js" in (await http.get("/docs")).body.decode()


async def test_rates_of_a_key_are_in_the_headers_of_its_responses(http: Gateway, keys: Keys):
    key = keys.add("rated", requests_per_second=0.01, tokens_per_minute=6_000)
    answer = await post(http, key)
    found = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    assert set(found) == set(NAMES)
    assert (found["x-ratelimit-limit-requests"], found["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert 90 < float(found["x-ratelimit-reset-requests"].removesuffix("s")) <= 100
    assert found["x-ratelimit-limit-tokens"] == "6000"
    assert 6_000 - NUM_TOKENS <= int(found["x-ratelimit-remaining-tokens"]) < 6_000
    refused = await post(http, key)
    assert (refused.status, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
    for headers in ((await post(http, keys.add("free"))).headers, (await http.get("/healthz")).headers):
        assert not set(NAMES) & set(headers)


async def test_open_paths_and_paths_that_need_other_scopes(http: Gateway, keys: Keys):
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
        assert (await http.get(path)).status == 200, path
    assert (await http.get("/v2/models/reward/ready")).status == 200
    assert (await http.get("/v2/models/reward/versions/1/ready")).status == 404
    for path in ("/v2/models/reward/ready/x", "/v2/models/a/b/ready", "/v2/models/reward"):
        assert (await http.get(path)).status == 401, path
    any_key = keys.add("any", scopes=("feedback",))
    assert (await http.get("/v1/models")).status == 401
    assert (await http.get("/v1/models", authorization=f"Bearer {any_key}")).status == 200
    good, root = keys.add("good"), keys.add("root", scopes=("admin",))
    assert (await http.get("/metrics", authorization=f"Bearer {good}")).status == 403
    assert (await http.get("/metrics", authorization=f"Bearer {root}")).status == 200
    # Without a key, unknown paths look like known ones.
    for path in ("/nothing", "/v1/rewards/nothing", "/v1/models/nothing"):
        assert (await http.get(path)).status == 401, path
        for key in (good, any_key):
            assert (await http.get(path, authorization=f"Bearer {key}")).status == 404, path
    for path in ("/v2/repository/models/x/load", "/v2/models/../../metrics", "/nothing"):
        assert need_of(path) in ("admin", "score")


async def test_api_page_needs_no_key_and_no_other_host(http: Gateway):
    page = await http.get("/docs")
    assert page.status == 200
    text = page.body.decode()
    assert "://" not in text
    files = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(files) == 3  # script, style, icon
    for path in (*files, *re.findall(r"url: '([^']+)'", text)):
        assert (await http.get(path)).status == 200, path
    script = (await http.get("/docs/files/swagger-ui-bundle.js")).body
    assert b"SwaggerUIBundle" in script
    for path in ("/docs/files/nothing.js", "/docs/files/../core.py", "/docs/files/%2e%2e/core.py"):
        answer = await http.get(path)
        assert (answer.status, answer.error["type"]) == (404, "not_found"), path


async def test_gateway_calls_services_with_its_own_key(reward_folder, keys: Keys, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    inner = Keys(tmp_path / "inner")
    monkeypatch.setenv("FAIRLEAD_API_KEY", inner.add("gateway"))
    outer = keys.add("caller")
    sections = {"keys.file": str(keys.path)}
    async with reward_service(reward_folder, keys=inner.section) as world:
        async with gateway(reward=world.address, sections=sections) as http:
            assert (await post(http, outer)).status == 200


def context(authority: Authority, *, name: str = "") -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(authority.ca))
    if name:
        found.load_cert_chain(*authority.issue(name, name))
    return found


@pytest.mark.parametrize("style", ["full", "server", "off"])
async def test_gateway_uses_tls_on_both_sides(reward_folder, tmp_path, style: str):
    authority = Authority(tmp_path)
    section = authority.server(mutual=True)
    sections = {f"tls.{name}": value for name, value in section.model_dump().items()}
    client = {
        "full": context(authority, name="caller.local"),
        "server": context(authority),
        "off": None,
    }[style]
    async with reward_service(reward_folder, tls=section) as world:
        async with gateway(reward=world.address, sections=sections, client=client, tls=style) as http:
            assert (await post(http, None)).status == 200
            if style == "full":
                http.tls = context(authority)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await post(http, None)
            if style != "off":
                (tmp_path / "other").mkdir()
                http.tls = context(Authority(tmp_path / "other", "theirs"))
                with pytest.raises(ssl.SSLCertVerificationError):
                    await post(http, None)
                http.tls = None
                with pytest.raises((ConnectionError, OSError)):
                    await post(http, None)


async def test_renewed_certificate_is_used_without_a_restart(reward_folder, tmp_path):
    authority = Authority(tmp_path)
    sections = {f"tls.{name}": value for name, value in authority.server().model_dump().items()}
    async with reward_service(reward_folder, tls=authority.server()) as world:
        async with gateway(reward=world.address, sections=sections, client=context(authority)) as http:
            assert (await post(http, None)).status == 200
            new = Authority(tmp_path, "new")
            new.issue("server")
            with pytest.raises(ssl.SSLCertVerificationError):
                await post(http, None)
            http.tls = context(new)
            assert (await http.get("/healthz")).status == 200
