"""The dashboard of the feedback service."""

from __future__ import annotations

from monitoring.boards.base import RATE, Board, Panel, quantile

FEEDBACK = Board(
    "feedback",
    "Fairlead: Feedback",
    "Whether people can work, and what comes in.",
    (
        Panel(
            "Open tasks", ('sum(fairlead_feedback_tasks{RUN, state="open"})',), "open", kind="stat", width=6
        ),
        Panel("Tasks in work", ("sum(fairlead_feedback_leases_open{RUN})",), "leases", kind="stat", width=6),
        Panel(
            "Expired leases", ("sum(fairlead_feedback_leases_expired{RUN})",), "leases", kind="stat", width=6
        ),
        Panel(
            "Erasures not finished",
            ("sum(fairlead_feedback_erasures_open{RUN})",),
            "erasures",
            kind="stat",
            width=6,
            limits=(1,),
        ),
        Panel(
            "Judgments within an hour",
            ("sum by (kind) (increase(fairlead_feedback_judgments_total{RUN}[1h]))",),
            "{{kind}}",
        ),
        Panel(
            "Skips within an hour, by reason",
            ("sum by (reason) (increase(fairlead_feedback_skips_total{RUN}[1h]))",),
            "{{reason}}",
            note="Many of `unclear` or `broken`: look at the tasks.",
        ),
        Panel(
            "Tasks by state", ("sum by (state) (fairlead_feedback_tasks{RUN})",), "{{state}}", stacked=True
        ),
        Panel(
            "Requests by status",
            (f"sum by (status) (rate(fairlead_feedback_requests_total{{RUN}}[{RATE}]))",),
            "{{status}}",
            unit="reqps",
        ),
        Panel(
            "Time of requests, p95",
            (quantile("0.95", "fairlead_feedback_request_seconds", "route") + " >= 0",),
            "{{route}}",
            unit="s",
        ),
        Panel(
            "Time of calls to the store, p95",
            (quantile("0.95", "fairlead_feedback_store_seconds", "what") + " >= 0",),
            "{{what}}",
            unit="s",
        ),
        Panel(
            "Time to hand in a judgment, p95",
            (quantile("0.95", "fairlead_feedback_hand_in_seconds"),),
            "p95",
            unit="s",
        ),
        Panel(
            "Judgments that came late (1 h)",
            ("sum(increase(fairlead_feedback_late_total{RUN}[1h]))",),
            "late",
        ),
        Panel(
            "Exchanges taken, by result",
            (f"sum by (result) (rate(fairlead_feedback_exchanges_total{{RUN}}[{RATE}]))",),
            "{{result}}",
            unit="ops",
        ),
        Panel(
            "Exchanges dropped by gateways (1 h)",
            ("sum by (reason) (increase(fairlead_gateway_exchanges_dropped_total{RUN}[1h]))",),
            "{{reason}}",
        ),
    ),
)
