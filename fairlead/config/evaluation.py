"""`[evaluation]`: how held-out prompts are answered before, during and after training."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.section import Section


class EvaluationSection(Section):
    """Evaluation on held-out prompts."""

    every_updates: int = Field(default=0, ge=0)
    """Updates between evaluations during PPO, through the services; the last update is always evaluated, and
    the best checkpoint becomes `policy_best/`. 0 never evaluates."""
    max_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """An evaluation during PPO that takes longer is given up; training goes on."""
    num_prompts: int = Field(default=256, ge=1)
    """Answers compared, over as many held-out prompts as there are."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature; 0 is greedy."""
    num_report_samples: int = Field(default=10, ge=0, le=1_000)
    """Answers shown side by side in the report."""
