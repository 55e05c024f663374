"""The dashboard of a run: whether the policy learns, and what the trainer waits for."""

from __future__ import annotations

from monitoring.boards.base import RATE, Board, Panel, mean, quantile, statistics

RUN = Board(
    "run",
    "Fairlead: Run",
    "Whether the policy learns, and what the trainer waits for.",
    (
        Panel(
            "Updates",
            ("max(fairlead_trainer_update{RUN})", "max(fairlead_trainer_target_updates{RUN})"),
            "done|target",
            kind="stat",
            width=6,
        ),
        Panel(
            "Time to the end",
            (
                "(max(fairlead_trainer_target_updates{RUN}) - max(fairlead_trainer_update{RUN})) "
                '* avg(avg_over_time(fairlead_trainer_statistic{RUN, name="seconds"}[30m]))',
            ),
            unit="s",
            kind="stat",
            width=6,
            note="Updates left times their mean duration of the last half hour.",
        ),
        Panel(
            "Since the last update",
            ("time() - max(fairlead_trainer_last_update_timestamp_seconds{RUN})",),
            unit="s",
            kind="stat",
            width=6,
        ),
        Panel(
            "Phase of the trainer",
            ("max by (phase) (fairlead_trainer_phase{RUN}) == 1",),
            "{{phase}}",
            kind="stat",
            width=6,
            texts=("", "now"),
        ),
        Panel(
            "Reward",
            (statistics("reward|reward_with_kl|eval_reward|eval_heldout_reward"),),
            "{{name}}",
            width=12,
            note="If eval_heldout_reward falls while reward rises, the reward model is being gamed.",
        ),
        Panel("Divergence from the reference", (statistics("kl|kl_k2|kl_k3|eval_kl"),), "{{name}}", width=12),
        Panel(
            "Guard against reward hacking",
            ("max by (signal) (fairlead_trainer_guard{RUN})",),
            "{{signal}}",
            kind="state-timeline",
            width=24,
            texts=("quiet", "warn", "stop"),
            limits=(1, 2),
            note="The limits are settings of the run, guard.<signal>_warn_above and so on.",
        ),
        Panel(
            "Signals of the guard",
            (statistics("guard_.+"),),
            "{{name}}",
            width=12,
        ),
        Panel("Spread of the reward", (statistics("reward_std|group_score_std"),), "{{name}}", width=12),
        Panel("Entropy", (statistics("entropy"),), "{{name}}"),
        Panel("Length of answers", (statistics("response_length|eval_length"),), "{{name}}"),
        Panel("Answers that end", (statistics("eos_rate|eval_eos_rate"),), "{{name}}", unit="percentunit"),
        Panel("Losses", (statistics("policy_loss|value_loss"),), "{{name}}"),
        Panel("Norms of gradients", (statistics("policy_gradient_norm|critic_gradient_norm"),), "{{name}}"),
        Panel(
            "Steps of PPO",
            (statistics("clip_fraction|explained_variance|policy_kl|skipped_steps"),),
            "{{name}}",
        ),
        Panel("Log-probs of sampler and trainer", (statistics("mismatch_mean|mismatch_max"),), "{{name}}"),
        Panel(
            "Time of the trainer by phase",
            (f"sum by (phase) (rate(fairlead_trainer_phase_seconds_total{{RUN}}[{RATE}]))",),
            "{{phase}}",
            unit="percentunit",
            stacked=True,
            note="Mostly `wait`: the trainer starves. No `wait`: the services wait for the trainer.",
        ),
        Panel("Seconds an update", (statistics("seconds"),), "{{name}}", unit="s"),
        Panel(
            "Mean time of a rollout by stage",
            (mean("fairlead_worker_stage_seconds", "stage"),),
            "{{stage}}",
            unit="s",
            stacked=True,
        ),
        Panel(
            "Tasks by event",
            (f"sum by (event) (rate(fairlead_trainer_tasks_total{{RUN}}[{RATE}]))",),
            "{{event}}",
            unit="ops",
        ),
        Panel(
            "Dead letters within an hour, by reason",
            ("sum by (reason) (increase(fairlead_trainer_dead_letters_total{RUN}[1h])) > 0 or vector(0)",),
            "{{reason}}",
            kind="bargauge",
            limits=(1,),
        ),
        Panel(
            "Staleness, p99",
            (quantile("0.99", "fairlead_trainer_staleness_updates", "part"),),
            "{{part}}",
        ),
        Panel(
            "Age of rollouts",
            (f"sum by (le) (rate(fairlead_trainer_rollout_age_seconds_bucket{{RUN}}[{RATE}]))",),
            "{{le}}",
            unit="s",
            kind="heatmap",
        ),
        Panel(
            "Entries of the queue",
            ("max by (what) (fairlead_trainer_queue_entries{RUN})",),
            "{{what}}",
            stacked=True,
        ),
        Panel(
            "CPU time of a rollout, by service",
            (
                'sum by (service) (rate(process_cpu_seconds_total{RUN, job=~"(.+/)?fairlead"}[5m])) / ignoring '
                '(service) group_left () (sum(rate(fairlead_trainer_tasks_total{RUN, event="trained"}[5m])) > 0)',
            ),
            "{{service}}",
            unit="s",
            stacked=True,
        ),
        Panel("Tokens trained on", (f"sum(rate(fairlead_trainer_tokens_total{{RUN}}[{RATE}]))",), "tokens/s"),
        Panel(
            "FLOP/s of the GPUs in use",
            ("fairlead_trainer_mfu_ratio{RUN}",),
            "{{process}}",
            unit="percentunit",
        ),
        Panel(
            "Step of a stage without services",
            (
                "max by (stage) (fairlead_stage_step{RUN}) / (max by (stage) (fairlead_stage_total_steps{RUN}) > 0)",
            ),
            "{{stage}}",
            unit="percentunit",
            note="SFT, the reward model, preferences.",
        ),
        Panel(
            "Loss of a stage without services",
            ('fairlead_stage_figure{RUN, name=~"loss|heldout_loss"}',),
            "{{stage}} {{name}}",
            width=12,
        ),
        Panel(
            "Accuracy on held-out comparisons",
            ('fairlead_stage_figure{RUN, name="heldout_accuracy"}',),
            "{{stage}}",
            unit="percentunit",
            width=12,
        ),
    ),
)
