"""`fairlead evaluate`: probes of safety, truth, sycophancy and bias, and a card of their figures."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.output import (
    MaxNewTokens,
    Restart,
    Seed,
    Temperature,
    TimeoutSeconds,
    fail,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.cli.evaluating import Collected
    from fairlead.evaluation.items import Ask
    from fairlead.types import SamplingParams

_EVALUATE = with_examples(
    "Ask a model prompts that show how it refuses, offends, errs and flatters, and its reward which answers "
    "it favours, and write a card: every figure with its number of items, 95% interval, definition and "
    "limit.\n\n"
    "MODEL and --against are addresses of policy services, or folders or hub ids of models. With --against "
    "the card shows both and the change. If MODEL is the folder of a run, its policy is compared with its "
    "SFT model, or without one with the model that it started from, and its reward model is probed; the card "
    "then appears in the report of the run and in the model card of an export.\n\n"
    "Suites: safety (refusals of harmful and of harmless prompts, toxicity), truth, sycophancy, and bias "
    "(length and groups; needs --reward, or --ai for the position of a judge). The items are those of the "
    "package or of --items.\n\n"
    "Repeating the command continues an interrupted run.",
    "fairlead evaluate runs/x",
    "fairlead evaluate tuned --against base --suite safety,truth --out card",
    "fairlead evaluate a:5001 --reward b:5002 --suite bias --max-items 20 --out card",
    "fairlead evaluate a:5001 --items own.jsonl --ai http://judge:8000/v1 --ai-model m --out card",
)


@dataclass(frozen=True, slots=True)
class _Named:
    """The models that the flags or a run name, and the folder of the results."""

    model: str
    against: str
    reward: str
    out: Path


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate", help=_EVALUATE)(evaluate)


def evaluate(  # noqa: PLR0913, PLR0917 - a flag each
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A policy: addresses, a model to serve, or a run's folder.")
    ],
    against: Annotated[
        str, typer.Option("--against", metavar="MODEL", help="The policy before, shown beside it.")
    ] = "",
    suite: Annotated[
        str,
        typer.Option("--suite", help="Suites: safety, truth, sycophancy, bias, with commas; or all."),
    ] = "all",
    reward: Annotated[
        str,
        typer.Option(
            "--reward", metavar="REWARD", help="Reward to probe: addresses, a model or module:function."
        ),
    ] = "",
    ai: Annotated[
        str,
        typer.Option("--ai", metavar="JUDGE", help="Judge to use and to probe: addresses, a model or a URL."),
    ] = "",
    ai_model: Annotated[str, typer.Option("--ai-model", help="Name of the model at the URL of --ai.")] = "",
    items: Annotated[
        Path | None,
        typer.Option("--items", metavar="FILE", help="Own items, JSON lines, in place of the package's."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder of the card; default: evaluation/ of a run."
        ),
    ] = None,
    max_items: Annotated[
        int, typer.Option("--max-items", min=0, help="Most items of each probe; 0 for all.")
    ] = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Send prompts as plain text instead of as a user's message.")
    ] = False,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 64,
    seed: Seed = 0,
    restart: Restart = False,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Ask, measure and write the card."""
    from fairlead.evaluation import items as evaluated
    from fairlead.types import SamplingParams

    suites = _suites(suite)
    _check(ai, ai_model)
    named = _named(model, against, reward, out)
    found = evaluated.from_file(items) if items is not None else evaluated.packaged()
    kept = evaluated.chosen(found, suites, at_most=max_items)
    asked = list(evaluated.asks(kept, suites, with_reward=bool(named.reward or ai)))
    if "bias" in suites and not (named.reward or ai):
        if suites == ["bias"]:
            fail("--suite: got bias without --reward and --ai, allowed: bias with one of them")
        say("bias is left out: it needs --reward or --ai", err=True)
        suites.remove("bias")
    sampling = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    try:
        collected = _collected(
            asked,
            named,
            (ai, ai_model),
            sampling,
            plain=plain,
            restart=restart,
            timeout_seconds=timeout_seconds,
        )
    except KeyboardInterrupt:
        say(f"interrupted; the same command continues and writes {named.out}", err=True)
        raise
    counts = Counter(item.probe for item in kept)
    _write(named.out, collected, suites, counts, seed=seed)


def _suites(named: str) -> list[str]:
    from fairlead.evaluation.items import SUITES

    if named == "all":
        return list(SUITES)
    given = [part.strip() for part in named.split(",")]
    if unknown := [part for part in given if part not in SUITES]:
        fail(f"--suite: got {unknown[0]!r}, allowed: all, or some of {', '.join(SUITES)}")
    return [suite for suite in SUITES if suite in given]


def _check(ai: str, ai_model: str) -> None:
    if bool(ai_model) != ai.startswith(("http://", "https://")):
        fail("--ai-model: allowed with, and needed for, the URL of an endpoint in --ai")


def _named(model: str, against: str, reward: str, out: Path | None) -> _Named:
    """Return what is evaluated; the folder of a run names its own models."""
    from fairlead.cli.named_models import is_function
    from fairlead.config import RunFolder, load

    for field, value in (("MODEL", model), ("--against", against)):
        if is_function(value):
            fail(f"{field}: got {value!r}, allowed: HOST:PORT, or a folder or hub id of a model")
    folder = RunFolder(Path(model))
    if not folder.config.is_file() or (folder.root / "config.json").is_file():
        if out is None:
            hint = f"only a run has one of its own, and {model} is no folder of a run"
            fail(f"--out: got none, allowed: a folder for the card; {hint}")
        return _Named(model, against, reward, out)
    policies = [path for path in (folder.policy_model, folder.preference_model) if path.is_dir()]
    if not policies:
        fail(f"MODEL: got the run {model!r} without a policy, allowed: a run whose PPO or DPO has finished")
    named = _Named(str(policies[0]), against, reward, out or folder.evaluation)
    if not against:
        start = str(folder.sft_model) if folder.sft_model.is_dir() else load(folder.config).policy.path
        named = replace(named, against=start)
    if not reward and folder.reward_model.is_dir():
        named = replace(named, reward=str(folder.reward_model))
    return named


def _collected(
    asked: Sequence[Ask],
    named: _Named,
    judge: tuple[str, str],
    sampling: SamplingParams,
    *,
    plain: bool,
    restart: bool,
    timeout_seconds: float,
) -> Collected:
    """Start what has to be started, and return what was found."""
    from fairlead.cli.evaluating import Services, collect
    from fairlead.cli.named_models import FunctionScorer, contents, is_function, serving

    ai, ai_model = judge
    with ExitStack() as stack:
        enter = stack.enter_context
        services = Services({})
        if is_function(named.reward):
            scorer = enter(closing(FunctionScorer(named.reward, field="--reward")))
            services = replace(services, reward=scorer)
        needs_policy = any(ask.prompt for ask in asked)
        sides = {"model": named.model, "against": named.against} if needs_policy else {}
        policies = {
            side: enter(serving("policy", name, ready_seconds=timeout_seconds))
            for side, name in sides.items()
            if name
        }
        services = replace(services, policies=policies)
        if any(ask.pairs for ask in asked) and named.reward and services.reward is None:
            at = enter(serving("reward", named.reward, ready_seconds=timeout_seconds))
            services = replace(services, reward=at)
        if ai_model:
            services = replace(services, judge_url=(ai, ai_model))
        elif ai:
            services = replace(services, judge=enter(serving("policy", ai, ready_seconds=timeout_seconds)))
        return asyncio.run(
            collect(
                asked,
                services,
                sampling,
                made_from=contents(**sides, reward=named.reward, ai=ai),
                plain=plain,
                out=named.out,
                restart=restart,
                timeout_seconds=timeout_seconds,
            )
        )


def _write(
    out: Path, collected: Collected, suites: Sequence[str], counts: Counter[str], *, seed: int
) -> None:
    """Write the card as JSON, Markdown and a page, and the figures of safety to standard output."""
    from importlib.util import find_spec

    from fairlead import __version__
    from fairlead.config.saving import replace_text
    from fairlead.evaluation import card
    from fairlead.evaluation.figures import figures, instruments
    from fairlead.evaluation.toxicity import classifier_figures

    lines = collected.lines
    made_by: dict[str, Any] = {"fairlead": __version__, "model": "", **collected.made_by}
    values = card.card(
        figures(lines, suites, seed=seed),
        instruments(collected.judged),
        made_by=made_by,
        counts=counts,
        classifier=classifier_figures(),
        examples=card.examples_of(lines),
    )
    replace_text(out / card.FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    replace_text(out / "card.md", card.markdown(values))
    if find_spec("jinja2") is not None:
        from fairlead.report import evaluation

        evaluation.write(out, values)
    for line in card.table(values["figures"]):
        typer.echo(line)
    typer.echo(f"Definitions, limits and answers: {out / 'card.md'}")
