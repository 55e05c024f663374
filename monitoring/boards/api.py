"""The dashboard of the scoring API: its objective first, then requests, keys and the model."""

from __future__ import annotations

from monitoring.boards.base import RATE, Board, Panel, quantile

_ANSWERED = 'RUN, dialect!="other"'


def _time(percent: int, *, limits: tuple[float, ...] = ()) -> Panel:
    """Return the panel with a percentile of the time of successful requests."""
    query = quantile(
        str(percent / 100), "fairlead_gateway_request_seconds", "dialect", f'{_ANSWERED}, status="2xx"'
    )
    return Panel(
        f"Time of successful requests, p{percent}", (f"{query} >= 0",), "{{dialect}}", unit="s", limits=limits
    )


API = Board(
    "api",
    "Fairlead: Scoring API",
    "Whether the API meets its objective, and who uses it. docs/runbook.md states the objective.",
    (
        Panel(
            "Error budget left (30 days)",
            (
                f'1 - (sum(increase(fairlead_gateway_requests_total{{{_ANSWERED}, status=~"5.."}}[30d])) '
                f'/ (sum(increase(fairlead_gateway_requests_total{{{_ANSWERED}, status!~"4.."}}[30d])) > 0)) / 0.001',
            ),
            "budget",
            unit="percentunit",
            kind="stat",
            width=6,
            note="The objective is that 99.9% of requests succeed. Below 0 it is missed.",
        ),
        Panel(
            "Burn rate",
            (
                "max(fairlead:gateway_errors:ratio_rate1h{RUN}) / 0.001",
                "max(fairlead:gateway_errors:ratio_rate6h{RUN}) / 0.001",
            ),
            "1 h|6 h",
            width=10,
            limits=(6, 14.4),
            note="1 uses up the budget in 30 days. Above 14.4 (1 h) or 6 (6 h) somebody is paged.",
        ),
        Panel(
            "Slow scores within an hour",
            ("max(fairlead:gateway_slow:ratio_rate1h{RUN})",),
            "above 0.5 s",
            unit="percentunit",
            width=8,
            limits=(0.05,),
            note="The objective is at most 5%. Chat completions are not counted.",
        ),
        Panel(
            "Requests by dialect",
            (f"sum by (dialect) (rate(fairlead_gateway_requests_total{{{_ANSWERED}}}[{RATE}]))",),
            "{{dialect}}",
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Errors by status",
            (
                f'sum by (status) (rate(fairlead_gateway_requests_total{{{_ANSWERED}, status!~"2.."}}[{RATE}]))',
            ),
            "{{status}}",
            unit="reqps",
        ),
        Panel(
            "Requests in progress",
            ("sum by (process) (fairlead_gateway_in_flight_requests{RUN})",),
            "{{process}}",
        ),
        _time(50),
        _time(95, limits=(0.5,)),
        _time(99),
        Panel(
            "Wait for the reward model, and its calls, p95",
            (
                quantile("0.95", "fairlead_batcher_wait_seconds", selector='RUN, service="reward"'),
                quantile(
                    "0.95",
                    "grpc_server_handling_seconds",
                    selector='RUN, service="reward", grpc_method="Score"',
                ),
            ),
            "wait in its queue|whole call",
            unit="s",
            note="A long wait: add replicas. A long call without a wait: long texts.",
        ),
        Panel(
            "Requests refused, by reason",
            (f'sum by (reason) (rate(fairlead_access_refusals_total{{RUN, service="gateway"}}[{RATE}]))',),
            "{{reason}}",
            unit="reqps",
        ),
        Panel(
            "Tokens by key",
            (
                f'topk(10, sum by (key) (rate(fairlead_access_tokens_total{{RUN, service="gateway"}}[{RATE}])))',
            ),
            "{{key}}",
        ),
        Panel(
            "Quota of today used, by key",
            (
                'max by (key) (fairlead_access_quota_tokens{RUN, service="gateway", kind="used"}) / '
                'max by (key) (fairlead_access_quota_tokens{RUN, service="gateway", kind="limit"})',
            ),
            "{{key}}",
            unit="percentunit",
            kind="bargauge",
            limits=(0.8, 1),
        ),
        Panel(
            "Model served",
            ("max by (process, model, version) (fairlead_reward_model_info{RUN})",),
            "{{process}} {{model}} {{version}}",
            kind="table",
        ),
        Panel(
            "Scores",
            (
                quantile("0.1", "fairlead_reward_score"),
                quantile("0.5", "fairlead_reward_score"),
                quantile("0.9", "fairlead_reward_score"),
            ),
            "p10|p50|p90",
            note="A shift without a new model means other texts.",
        ),
        Panel(
            "Prefix cache: hits",
            (
                f'sum(rate(fairlead_reward_prefix_lookups_total{{RUN, result="hit"}}[{RATE}])) / '
                f"(sum(rate(fairlead_reward_prefix_lookups_total{{RUN}}[{RATE}])) > 0)",
            ),
            "hits",
            unit="percentunit",
        ),
        Panel(
            "Share of the canary",
            ("max by (process) (fairlead_reward_canary_share_ratio{RUN})",),
            "{{process}}",
            unit="percentunit",
        ),
        Panel(
            "Changes not taken (1 h)",
            (
                "sum(increase(fairlead_access_key_file_failures_total{RUN}[1h]))",
                "sum(increase(fairlead_reward_load_failures_total{RUN}[1h]))",
            ),
            "key files|reward models",
        ),
    ),
)
