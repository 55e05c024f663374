"""The dashboard of processes, calls, weights, Redis and machines."""

from __future__ import annotations

from monitoring.boards.base import RATE, Board, Panel, mean, quantile

SERVICES = Board(
    "services",
    "Fairlead: Services",
    "Which process is down, slow, overloaded, or has old weights.",
    (
        Panel(
            "Processes",
            (
                'min by (process) (up{RUN, job=~"(.+/)?fairlead"})',
                "min by (process) (fairlead_process_ready{RUN})",
                "max by (process) (fairlead_policy_weight_update{RUN})",
                'sum by (process) (changes(process_start_time_seconds{RUN, job=~"(.+/)?fairlead"}[1h]))',
                'max by (process) (process_resident_memory_bytes{RUN, job=~"(.+/)?fairlead"})',
            ),
            "up|ready|weights of update|restarts in 1 h|memory in bytes",
            kind="table",
            width=16,
        ),
        Panel(
            "Longest waits",
            ('topk(8, max by (process, what) (fairlead_process_waiting_seconds{RUN, what!~"loop|phase"}))',),
            "{{process}} for {{what}}",
            unit="s",
            kind="bargauge",
            limits=(15, 60),
        ),
        Panel(
            "Age of weights in updates",
            (
                "scalar(max(fairlead_trainer_update{RUN})) - (max by (process) (fairlead_policy_weight_update{RUN}) "
                "and on (process) max by (process) (fairlead_process_ready{RUN}) == 1)",
            ),
            "{{process}}",
            limits=(3,),
            note="Only of replicas that are ready.",
        ),
        Panel(
            "Calls by method",
            (
                f'sum by (grpc_method) (rate(grpc_server_handled_total{{RUN, grpc_service=~"fairlead[.].+"}}[{RATE}]))',
            ),
            "{{grpc_method}}",
            unit="reqps",
        ),
        Panel(
            "Calls that failed, by status",
            (
                "sum by (service, grpc_code) (rate(grpc_server_handled_total"
                f'{{RUN, grpc_service=~"fairlead[.].+", grpc_code!~"OK|CANCELLED"}}[{RATE}]))',
            ),
            "{{service}} {{grpc_code}}",
            unit="reqps",
        ),
        Panel(
            "Time of calls, p50",
            (quantile("0.5", "grpc_server_handling_seconds", "grpc_method"),),
            "{{grpc_method}}",
            unit="s",
        ),
        Panel(
            "Time of calls, p99",
            (quantile("0.99", "grpc_server_handling_seconds", "grpc_method"),),
            "{{grpc_method}}",
            unit="s",
        ),
        Panel(
            "Calls repeated by clients",
            (f"sum by (exported_service, reason) (rate(fairlead_client_retries_total{{RUN}}[{RATE}]))",),
            "{{exported_service}} {{reason}}",
            unit="reqps",
        ),
        Panel(
            "Hedged calls",
            (f"sum by (exported_service, result) (rate(fairlead_client_hedges_total{{RUN}}[{RATE}]))",),
            "{{exported_service}} {{result}}",
            unit="reqps",
        ),
        Panel(
            "Retry budgets used up within 10 minutes",
            ("sum by (exported_service) (increase(fairlead_client_budget_exhausted_total{RUN}[10m]))",),
            "{{exported_service}}",
        ),
        Panel(
            "Tokens generated",
            (f"sum by (process) (rate(fairlead_policy_tokens_total{{RUN}}[{RATE}]))",),
            "{{process}}",
            stacked=True,
        ),
        Panel(
            "Slots in use",
            (
                "max by (process) (fairlead_policy_slots_used{RUN}) / max by (process) (fairlead_policy_slots{RUN})",
                "max by (process) (fairlead_policy_waiting_sequences{RUN})",
            ),
            "{{process}}: share of slots|{{process}}: sequences that wait",
        ),
        Panel(
            "Time to the first token, p99",
            (quantile("0.99", "fairlead_policy_first_token_seconds"),),
            "p99",
            "s",
        ),
        Panel(
            "Answers by the reason of their end",
            (f"sum by (reason) (rate(fairlead_policy_finished_total{{RUN}}[{RATE}]))",),
            "{{reason}}",
            unit="ops",
        ),
        Panel(
            "Pause for a weight swap, p99",
            (quantile("0.99", "fairlead_policy_swap_seconds"),),
            "p99",
            unit="s",
        ),
        Panel(
            "Weights received",
            (f"sum by (process, source) (rate(fairlead_weights_fetched_bytes_total{{RUN}}[{RATE}]))",),
            "{{process}} from {{source}}",
            unit="Bps",
        ),
        Panel(
            "Weights damaged, not fetched, of failed sources (1 h)",
            (
                "sum(increase(fairlead_weights_verification_failures_total{RUN}[1h]))",
                "sum(increase(fairlead_policy_fetch_failures_total{RUN}[1h]))",
                "sum(increase(fairlead_weights_source_failures_total{RUN}[1h]))",
            ),
            "damaged pieces|versions not fetched|failed sources",
        ),
        Panel(
            "Wait in the queue of a model, p99",
            (quantile("0.99", "fairlead_batcher_wait_seconds", "process"),),
            "{{process}}",
            unit="s",
        ),
        Panel(
            "Tokens without padding ÷ computed tokens",
            (mean("fairlead_batcher_batch_fill_ratio", "process"),),
            "{{process}}",
            unit="percentunit",
        ),
        Panel(
            "Memory of Redis ÷ its limit",
            (
                "max(fairlead_trainer_queue_memory_bytes{RUN}) / "
                "(max(fairlead_trainer_queue_memory_limit_bytes{RUN}) > 0)",
                "max(redis_memory_used_bytes{RUN}) / (max(redis_memory_max_bytes{RUN}) > 0)",
            ),
            "trainer|redis_exporter",
            unit="percentunit",
            limits=(0.8, 0.95),
            note="No data where Redis has no limit.",
        ),
        Panel(
            "Memory of Redis",
            ("max(fairlead_trainer_queue_memory_bytes{RUN})", "max(fairlead_trainer_queue_bound_bytes{RUN})"),
            "used|bound of the queue",
            unit="bytes",
        ),
        Panel(
            "Calls to Redis that failed",
            (f"sum by (operation) (rate(fairlead_queue_errors_total{{RUN}}[{RATE}]))",),
            "{{operation}}",
            unit="ops",
        ),
        Panel(
            "Tasks of workers by result",
            (f"sum by (result) (rate(fairlead_worker_tasks_total{{RUN}}[{RATE}]))",),
            "{{result}}",
            unit="ops",
        ),
        Panel(
            "Restarts by the supervisor (1 h)",
            (
                "sum by (exported_process, reason) (increase(fairlead_supervisor_restarts_total{RUN}[1h])) > 0",
            ),
            "{{exported_process}} {{reason}}",
            note="Only on one machine.",
        ),
        Panel(
            "CPUs in use",
            (f'sum by (process) (rate(process_cpu_seconds_total{{RUN, job=~"(.+/)?fairlead"}}[{RATE}]))',),
            "{{process}}",
            stacked=True,
        ),
        Panel(
            "Memory",
            ('max by (process) (process_resident_memory_bytes{RUN, job=~"(.+/)?fairlead"})',),
            "{{process}}",
            unit="bytes",
        ),
        Panel(
            "Memory on GPUs",
            ("sum by (process, kind) (fairlead_process_gpu_memory_bytes{RUN})",),
            "{{process}} {{kind}}",
            unit="bytes",
        ),
        Panel(
            "GPUs in use, from DCGM",
            (
                "avg by (process, gpu) (label_replace(DCGM_FI_PROF_GR_ENGINE_ACTIVE, "
                '"process", "$1", "pod", "(.+)") '
                "* on (namespace, process) group_left () max by (namespace, process) (fairlead_process_ready{RUN}) ^ 0)",
            ),
            "{{process}} GPU {{gpu}}",
            unit="percentunit",
            note="Needs NVIDIA's dcgm-exporter, see docs/kubernetes.md.",
        ),
    ),
)
