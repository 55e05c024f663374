"""`fairlead best-of-n`: n answers to each prompt, the best ones as demonstrations, and what n is worth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.output import (
    MaxNewTokens,
    Restart,
    Seed,
    Stop,
    TimeoutSeconds,
    TopP,
    fail,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.cli.named_models import FunctionScorer
    from fairlead.types import SamplingParams

_BEST_OF_N = with_examples(
    "Sample n answers to each prompt, score them, and keep the best: demonstrations for `fairlead sft` "
    "(rejection sampling).\n\n"
    "POLICY is an address of a policy service, or a folder or hub id to start one for. REWARD and --gold are "
    "addresses, models, or functions module:function of prompts and answers.\n\n"
    "The folder gets samples.jsonl (all answers with their scores), demonstrations.jsonl, and a report: for "
    "every n up to --n the expected score of the best answer, its gold score, and the bound of its distance "
    "from the policy, log n − (n−1)/n. Repeating the command continues an interrupted run.",
    "fairlead best-of-n prompts.jsonl --policy localhost:5001 --reward localhost:5002 --out best",
    "fairlead best-of-n p.jsonl --policy runs/x/sft --reward runs/x/reward_model --n 32 --out best",
    "fairlead best-of-n p.jsonl --policy a:5001,b:5001 --reward c:5002 --gold judge:score --out best",
)
_NUM_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("best-of-n", help=_BEST_OF_N)(best_of_n)


def best_of_n(  # noqa: PLR0913, PLR0917 - a flag each
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS", help="JSON lines or Parquet, a prompt each; - is standard input."),
    ],
    policy: Annotated[
        str, typer.Option("--policy", metavar="POLICY", help="Policy: addresses, or a model to serve.")
    ],
    reward: Annotated[
        str,
        typer.Option("--reward", metavar="REWARD", help="Reward: addresses, a model, or module:function."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the results.")],
    gold: Annotated[
        str,
        typer.Option("--gold", metavar="REWARD", help="A second reward, for the report."),
    ] = "",
    n: Annotated[int, typer.Option("--n", min=1, max=4096, help="Answers to each prompt.")] = 16,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Best answers of each prompt to keep.")] = 1,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Keep only answers with at least this score.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.001, help="Sampling temperature.")
    ] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    stop: Stop = None,
    seed: Seed = 0,
    restart: Restart = False,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Sample, score, keep the best and report."""
    from fairlead.cli.named_models import FunctionScorer, contents, is_function, serving
    from fairlead.cli.sampled import read_prompts
    from fairlead.types import SamplingParams

    if keep > n:
        fail(f"--keep: got {keep}, allowed: at most --n, {n}")
    asked = read_prompts(prompts)
    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        stop_strings=tuple(stop or ()),
        seed=seed,
    )
    if is_function(policy):
        fail(f"--policy: got {policy!r}, allowed: HOST:PORT, or a folder or hub id of a model")
    rewards = {"score": ("--reward", reward)} | ({"gold": ("--gold", gold)} if gold else {})
    try:
        with ExitStack() as stack:
            enter = stack.enter_context
            functions = {
                key: enter(closing(FunctionScorer(named, field=flag)))
                for key, (flag, named) in rewards.items()
                if is_function(named)
            }
            policies = enter(serving("policy", policy, ready_seconds=timeout_seconds))
            scorers = {
                key: functions.get(key) or enter(serving("reward", named, ready_seconds=timeout_seconds))
                for key, (_, named) in rewards.items()
            }
            found, versions = asyncio.run(
                _sample(
                    asked,
                    policies,
                    scorers,
                    sampling,
                    made_from=contents(policy=policy, reward=reward, gold=gold),
                    n=n,
                    out=out,
                    restart=restart,
                    timeout_seconds=timeout_seconds,
                )
            )
    except KeyboardInterrupt:
        say(f"interrupted; the same command continues and writes {out}", err=True)
        raise
    kept, left_out = _write_demonstrations(out, found, keep=keep, min_score=min_score)
    figures = {
        **versions,
        **growth(found, seed=seed),
        "demonstrations": kept,
        "prompts_without_demonstration": left_out,
    }
    _report(out, figures, found)


async def _sample(  # noqa: PLR0913 - on the way of the flags
    asked: Sequence[Any],
    policies: list[str],
    rewards: Mapping[str, FunctionScorer | list[str]],
    sampling: SamplingParams,
    *,
    made_from: Mapping[str, object],
    n: int,
    out: Path,
    restart: bool,
    timeout_seconds: float,
) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Return a line with its scored answers for each prompt, and what they were made by.

    Policies are addresses; `rewards` has functions or addresses by the keys of their scores, `made_from`
    digests of models.
    """
    import dataclasses

    from fairlead.cli.named_models import policy_at, scorer_at
    from fairlead.cli.sampled import Asked, collect

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        policy = await enter(policy_at(policies, timeout_seconds=timeout_seconds))
        scorers = {
            key: await enter(scorer_at(found, timeout_seconds=timeout_seconds))
            if isinstance(found, list)
            else found
            for key, found in rewards.items()
        }

        async def work(one: Asked) -> Mapping[str, object]:
            # Equal prompts must not get equal answers.
            seeded = dataclasses.replace(sampling, seed=sampling.seed + one.number)
            answers = await policy.answers(one.prompt, seeded, n)
            texts = [answer.text for answer in answers]
            scores = {key: await scorer.scores(one.prompt, texts) for key, scorer in scorers.items()}
            responses = [
                {
                    "text": answer.text,
                    "finish_reason": answer.finish_reason.value if answer.finish_reason else None,
                    "num_tokens": len(answer.token_ids),
                    **{key: found[index] for key, found in scores.items()},
                }
                for index, answer in enumerate(answers)
            ]
            return {"responses": responses}

        versions: dict[str, object] = {
            "policy": policy.version,
            "reward": scorers["score"].version,
            "gold": scorers["gold"].version if "gold" in scorers else "",
        }
        settings = {
            **versions,
            **made_from,
            "n": n,
            "sampling": dataclasses.asdict(sampling),
            "added": ["responses"],
        }
        found = await collect(out, asked, work, settings=settings, restart=restart, doing="sampling")
    return found, {**versions, "n": n}


def growth(found: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, object]:
    """Return the figures of the report: for every n the expected score and gold score of the best of n.

    Args:
        found: lines with scored `responses`.
        seed: of the intervals, by resampling prompts.
    """
    from fairlead.clients.best_of_n import divergence, expected_best, sizes
    from fairlead.clients.win_rate import mean_interval

    scores = [[float(one["score"]) for one in line["responses"]] for line in found]
    keys = ["score", *(["gold"] if all("gold" in line["responses"][0] for line in found) else [])]
    rows = []
    for n in sizes(min(map(len, scores))):
        row: dict[str, object] = {"n": n, "kl_bound": divergence(n)}
        for key in keys:
            best = [
                expected_best(own, n, [float(one[key]) for one in line["responses"]])
                for own, line in zip(scores, found, strict=True)
            ]
            row[key] = fmean(best)
            row[f"{key}_interval"] = list(mean_interval(best, seed=seed)) if len(best) > 1 else None
        rows.append(row)
    ended = [one["finish_reason"] == "stop" for line in found for one in line["responses"]]
    return {"prompts": len(found), "ended": fmean(ended), "best_of_n": rows}


def _write_demonstrations(
    out: Path, found: Sequence[Mapping[str, Any]], *, keep: int, min_score: float | None
) -> tuple[int, int]:
    """Write the best answers; return their number, and that of the prompts without any."""
    from fairlead.cli import lines

    count = without = 0
    with lines.writing(out / "demonstrations.jsonl") as write:
        for line in found:
            chosen = list(_best(line["responses"], keep=keep, min_score=min_score))
            without += not chosen
            count += len(chosen)
            for one in chosen:
                write({"prompt": _prompt(line), "completion": one["text"], "score": one["score"]})
    return count, without


def _best(
    responses: Sequence[Mapping[str, Any]], *, keep: int, min_score: float | None
) -> Iterator[Mapping[str, Any]]:
    """Yield the best different answers that ended by themselves: a cut one would teach to stop anywhere."""
    texts: set[str] = set()
    for one in sorted(responses, key=lambda one: -one["score"]):
        ended = one["finish_reason"] == "stop" and one["text"].strip()
        if len(texts) == keep or (min_score is not None and one["score"] < min_score):
            return
        if ended and one["text"] not in texts:
            texts.add(one["text"])
            yield one


def _prompt(line: Mapping[str, Any]) -> object:
    """Return the prompt of a line as SFT reads it: text, or messages before an answer."""
    from fairlead.cli.sampled import prompt_of

    found = prompt_of(line, added="responses")
    if isinstance(found, str):
        return found
    return [{"role": message.role, "content": message.content} for message in found.messages]


def _report(out: Path, figures: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    from fairlead.cli import sampled

    rows = figures["best_of_n"]
    names = {"score": "score of the best", "gold": "its gold score"}
    keys = [key for key in names if key in rows[0]]

    def cell(row: Mapping[str, Any], key: str) -> str:
        interval = row[f"{key}_interval"]
        return f"{row[key]:+.3f}" + (f" ({interval[0]:+.3f} … {interval[1]:+.3f})" if interval else "")

    cells = [[str(row["n"]), f"{row['kl_bound']:.2f}", *(cell(row, key) for key in keys)] for row in rows]
    columns = ["n", "KL at most, nats", *(names[key] for key in keys)]
    made_by = f"Policy {figures['policy']}; reward {figures['reward']}"
    made_by += f"; gold {figures['gold']}" if figures["gold"] else ""
    lines = [
        "# Best of n",
        "",
        f"{made_by}; {figures['prompts']} prompts, {figures['n']} answers each, of which "
        f"{figures['ended']:.0%} ended.",
        "",
        "Expected score of the answer that the reward prefers among n, over all ways to draw n of the "
        f"{figures['n']} (Nakano et al. 2021), with 95% intervals by resampling prompts; a single prompt has "
        "none.",
        "",
        sampled.table(columns, cells),
        f"{figures['demonstrations']} demonstrations are in demonstrations.jsonl; "
        f"{figures['prompts_without_demonstration']} prompts have none, because no answer that is good "
        "enough ended.",
        "",
    ]
    sampled.report(out, figures, "\n".join(lines))
    widths = [4, 16, *([28] * len(keys))]
    for row in (columns, *cells):
        typer.echo("  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))
    typer.echo(f"{out}: {figures['demonstrations']} demonstrations of {figures['prompts']} prompts")
    if not figures["demonstrations"]:
        example = json.dumps(found[0]["responses"][0]["text"][:80], ensure_ascii=False)
        say(f"no demonstrations: no answer ended and was good enough, such as {example}", err=True)
