"""The gateway in a browser's page (CORS), under a path prefix, and through proxies that name the caller."""

from __future__ import annotations

import logging

import pytest

from fairlead.config import load
from fairlead.errors import ConfigError
from services.runtime.http.proxies import ProxyChain
from tests.gateway_world import gateway
from tests.unit.services.gateway.test_gateway_edge import BODY, ScriptedReward, world

PAGE = "https://tools.example.com"


async def test_pages_of_configured_origins_may_call():
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key, x-other"}
    async with world(ScriptedReward(), cors_origins=[PAGE]) as http:
        preflight = await http.ask("OPTIONS", "/v1/rewards", headers={"origin": PAGE} | asked)
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        assert preflight.headers["access-control-allow-headers"] == "x-api-key, x-other"
        for path, body, status in (("/v1/rewards", BODY, 200), ("/v1/rewards", {}, 400), ("/no", BODY, 404)):
            answer = await http.post(path, body, origin=PAGE)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        foreign = await http.post("/v1/rewards", BODY, origin="https://evil.example")
        assert "access-control-allow-origin" not in foreign.headers
        foreign = await http.ask("OPTIONS", "/v1/rewards", headers={"origin": "https://evil.example"} | asked)
        assert (foreign.status, foreign.headers.get("access-control-allow-origin")) == (400, None)
    async with world(ScriptedReward()) as http:
        answer = await http.post("/v1/rewards", BODY, origin=PAGE)
        assert "access-control-allow-origin" not in answer.headers
        assert (await http.ask("OPTIONS", "/v1/rewards", headers={"origin": PAGE} | asked)).status == 405


async def test_prefix_of_a_proxy_that_removes_it_or_not(caplog):
    caplog.set_level(logging.INFO)
    async with world(ScriptedReward(), root_path="/scoring") as http:
        for prefix in ("", "/scoring"):
            assert (await http.post(f"{prefix}/v1/rewards", BODY)).status == 200
            assert (await http.get(f"{prefix}/readyz")).status == 200
            page = (await http.get(f"{prefix}/docs")).body.decode()
            assert '"/scoring/openapi.json"' in page.replace("'", '"')
            assert '"/scoring/docs/files/swagger-ui-bundle.js"' in page
            assert (await http.get(f"{prefix}/docs/files/swagger-ui.css")).status == 200
            schema = (await http.get(f"{prefix}/openapi.json")).json
            assert schema["servers"] == [{"url": "/scoring"}]
            wrong = await http.post(f"{prefix}/classify", {})
            assert wrong.error["type"] == "invalid_request_error"
            assert (await http.get(f"{prefix}/v2/trace/setting")).status == 501
        assert (await http.get("/scoringx/readyz")).status == 404
        assert (await http.get("/scoring/scoring/readyz")).status == 404
        assert http.count(dialect="fairlead", status="200") == 2
    paths = {vars(one)["path"] for one in caplog.records if one.name == "services.gateway.access"}
    assert "/v1/rewards" in paths
    assert "/scoring/v1/rewards" not in paths


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("10.0.0.1", ["203.0.113.7:5123"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["\r\nX: 1"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("192.0.2.1", ["203.0.113.7"], "192.0.2.1"),
        ("10.0.0.1", ["1.1.1.1," + "10.0.0.9," * 5_000], "10.0.0.9"),
    ],
)
def test_forwarded_address_is_believed_as_far_as_proxies_are_trusted(peer, forwarded, client):
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    assert ProxyChain(["10.0.0.0/8"]).client({"client": (peer, 5), "headers": headers}) == client
    assert ProxyChain([]).client({"client": (peer, 5), "headers": headers}) == peer


async def test_address_of_the_caller_is_logged(caplog):
    caplog.set_level(logging.INFO)
    for trusted in ([], ["127.0.0.0/8"]):
        async with world(ScriptedReward(), trusted_proxies=trusted) as http:
            await http.post("/v1/rewards", BODY, x_forwarded_for="203.0.113.7")
    lines = [vars(record) for record in caplog.records if record.name == "services.gateway.access"]
    assert [line["peer"] for line in lines] == ["127.0.0.1", "203.0.113.7"]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("cors_origins", ["tools.example.com"], "an origin without a path"),
        ("cors_origins", ["https://tools.example.com/"], "an origin without a path"),
        ("root_path", "scoring", "a path such as /scoring"),
        ("root_path", "/scoring/", "a path such as /scoring"),
        ("trusted_proxies", ["proxy"], "IPv4 or IPv6 network"),
        ("trusted_proxies", ["10.0.0.1/8"], "has host bits set"),
    ],
)
def test_invalid_values_are_refused_at_the_start(key, value, allowed):
    with pytest.raises(ConfigError, match=f"^gateway.{key}.* allowed: .*{allowed}"):
        load(overrides={f"gateway.{key}": value})


async def test_prefix_that_a_path_of_the_api_has_is_refused():
    with pytest.raises(ConfigError, match="gateway.root_path: got '/v1'"):
        async with gateway(reward="127.0.0.1:1", root_path="/v1"):
            pass
