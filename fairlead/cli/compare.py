"""`fairlead compare`: two policies answer the same prompts, a judge compares, and the win rate is
reported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.output import (
    MaxNewTokens,
    Restart,
    Seed,
    Stop,
    Temperature,
    TimeoutSeconds,
    fail,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.cli.judges import Judge
    from fairlead.cli.named_models import FunctionScorer
    from fairlead.types import SamplingParams

_COMPARE = with_examples(
    "Let two policies answer the same prompts and report how often A's answer is better, with ties counted "
    "half and a 95% interval by resampling prompts.\n\n"
    "A and B are addresses of policy services, or folders or hub ids of models of any size and tokenizer. "
    "The judge is one of: --reward (addresses, a model, or module:function of prompts and answers, such as a "
    "known gold score); --ai (a policy service, a model, or the URL of an endpoint with OpenAI's chat "
    "completions), which reads both answers in both orders; or --verdicts, a file that people fill in. "
    "Without a judge the answers are sampled and pairs.jsonl is written for people.\n\n"
    "Repeating the command continues an interrupted run.",
    "fairlead compare runs/x/preference runs/x/sft prompts.jsonl --reward other/reward_model --out cmp",
    "fairlead compare a:5001 b:5001 prompts.jsonl --reward judge:gold --group topic --out cmp",
    "fairlead compare a:5001 b:5001 p.jsonl --ai https://api.openai.com/v1 --ai-model gpt-5 --out cmp",
    "fairlead compare runs/x/policy runs/x/sft p.jsonl --out cmp --verdicts judged.jsonl",
)


@dataclass(frozen=True, slots=True)
class _Judging:
    """The flags that name the judge."""

    reward: str
    ai: str
    ai_model: str
    instruction: Path | None
    tie_margin: float

    @property
    def kind(self) -> str:
        """Which judge: `reward`, `ai` or `people`."""
        return "reward" if self.reward else "ai" if self.ai else "people"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare", help=_COMPARE)(compare)


def compare(  # noqa: PLR0913, PLR0917 - a flag each
    a: Annotated[str, typer.Argument(metavar="A", help="A policy: addresses, or a model to serve.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The policy that it is compared with.")],
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS", help="JSON lines or Parquet, a held-out prompt each."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the results.")],
    reward: Annotated[
        str, typer.Option("--reward", metavar="REWARD", help="Judge by score: the higher one wins.")
    ] = "",
    ai: Annotated[
        str, typer.Option("--ai", metavar="JUDGE", help="Judge by a language model: addresses, model or URL.")
    ] = "",
    ai_model: Annotated[str, typer.Option("--ai-model", help="Name of the model at the URL of --ai.")] = "",
    instruction: Annotated[
        Path | None,
        typer.Option("--instruction", help="File with the message to --ai: {prompt}, {first}, {second}."),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option("--verdicts", help="Judge by people: pairs.jsonl with `better` = first, second or tie."),
    ] = None,
    group: Annotated[
        str, typer.Option("--group", metavar="KEY", help="Key of a prompt's line to report win rates by.")
    ] = "",
    n: Annotated[int, typer.Option("--n", min=1, max=64, help="Answers of each policy to a prompt.")] = 1,
    tie_margin: Annotated[
        float, typer.Option("--tie-margin", min=0, help="Scores that differ by less are ties.")
    ] = 0.0,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    stop: Stop = None,
    seed: Seed = 0,
    restart: Restart = False,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Sample, judge and report."""
    from fairlead.cli import sampled
    from fairlead.types import SamplingParams

    judging = _Judging(reward, ai, ai_model, instruction, tie_margin)
    _check(judging, (a, b), verdicts)
    asked = sampled.read_prompts(prompts)
    if group and (bad := next((one for one in asked if not one.line.has(group)), None)):
        fail(f"--group: got {group!r}, which {bad.line.file}:{bad.line.number} does not have")
    sampling = SamplingParams(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        stop_strings=tuple(stop or ()),
        seed=seed,
    )
    try:
        found, made_by = _sampled(
            asked, (a, b), judging, sampling, n=n, out=out, restart=restart, timeout_seconds=timeout_seconds
        )
    except KeyboardInterrupt:
        say(f"interrupted; the same command continues and writes {out}", err=True)
        raise
    _write_pairs(out, found)
    if judging.kind == "people":
        if verdicts is None:
            pairs = out / "pairs.jsonl"
            typer.echo(f'{pairs}: add "better": "first", "second" or "tie" to each line of a copy, then')
            typer.echo("repeat the command with --verdicts COPY; which answer comes first is drawn by lot")
            return
        made_by["judge"] = str(verdicts)
        found = _judged_by_people(found, verdicts)
    figures = {**made_by, **_figures(found, group=group, seed=seed)}
    _report(out, figures)


def _check(judging: _Judging, policies: tuple[str, str], verdicts: Path | None) -> None:
    from fairlead.cli.judges import instruction_of
    from fairlead.cli.named_models import is_function

    for name, policy in zip("AB", policies, strict=True):
        if is_function(policy):
            fail(f"{name}: got {policy!r}, allowed: HOST:PORT, or a folder or hub id of a model")
    flags = {"--reward": judging.reward, "--ai": judging.ai, "--verdicts": verdicts}
    given = [flag for flag, value in flags.items() if value]
    if len(given) > 1:
        fail(f"{given[1]}: got {given[0]} as well, allowed: one judge")
    is_url = judging.ai.startswith(("http://", "https://"))
    if bool(judging.ai_model) != is_url:
        fail("--ai-model: allowed with, and needed for, the URL of an endpoint in --ai")
    if judging.instruction is not None and not judging.ai:
        fail("--instruction: allowed with --ai")
    instruction_of(judging.instruction)
    if judging.tie_margin and not judging.reward:
        fail("--tie-margin: allowed with --reward")


def _sampled(
    asked: Sequence[Any],
    policies: tuple[str, str],
    judging: _Judging,
    sampling: SamplingParams,
    *,
    n: int,
    out: Path,
    restart: bool,
    timeout_seconds: float,
) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Start what has to be started, and return the judged lines and what they were made by."""
    from fairlead.cli.named_models import FunctionScorer, contents, is_function, serving

    with ExitStack() as stack:
        judge_at: FunctionScorer | list[str] = []
        if is_function(judging.reward):
            judge_at = stack.enter_context(closing(FunctionScorer(judging.reward, field="--reward")))
        at = [
            stack.enter_context(serving("policy", name, ready_seconds=timeout_seconds)) for name in policies
        ]
        if judging.reward and not is_function(judging.reward):
            judge_at = stack.enter_context(serving("reward", judging.reward, ready_seconds=timeout_seconds))
        elif judging.ai and not judging.ai_model:
            judge_at = stack.enter_context(serving("policy", judging.ai, ready_seconds=timeout_seconds))
        return asyncio.run(
            _collect(
                asked,
                (at[0], at[1], judge_at),
                judging,
                sampling,
                made_from=contents(
                    a=policies[0],
                    b=policies[1],
                    reward=judging.reward,
                    ai=judging.ai,
                    instruction=str(judging.instruction or ""),
                ),
                n=n,
                out=out,
                restart=restart,
                timeout_seconds=timeout_seconds,
            )
        )


async def _collect(  # noqa: PLR0913 - on the way of the flags
    asked: Sequence[Any],
    addresses: tuple[list[str], list[str], FunctionScorer | list[str]],
    judging: _Judging,
    sampling: SamplingParams,
    *,
    made_from: Mapping[str, object],
    n: int,
    out: Path,
    restart: bool,
    timeout_seconds: float,
) -> tuple[list[dict[str, Any]], dict[str, object]]:
    from fairlead.cli.named_models import policy_at
    from fairlead.cli.sampled import Asked, collect

    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(policy_at(at, timeout_seconds=timeout_seconds))
            for at in addresses[:2]
        ]
        judge = await stack.enter_async_context(
            _judge(judging, addresses[2], timeout_seconds=timeout_seconds)
        )

        async def work(one: Asked) -> Mapping[str, object]:
            seeded = dataclasses.replace(sampling, seed=sampling.seed + one.number)
            answers = await asyncio.gather(*(policy.answers(one.prompt, seeded, n) for policy in both))
            compared = []
            for first, second in zip(*answers, strict=True):
                pair: dict[str, object] = {
                    "a": first.text,
                    "b": second.text,
                    "tokens_a": len(first.token_ids),
                    "tokens_b": len(second.token_ids),
                }
                if judge is not None:
                    pair |= (
                        {"verdict": 0.5}
                        if first.text == second.text
                        else await judge.compare(one.prompt, first.text, second.text)
                    )
                compared.append(pair)
            return {"compared": compared}

        made_by: dict[str, object] = {
            "a": both[0].version,
            "b": both[1].version,
            "judge": judge.version if judge is not None else "",
        }
        settings = {
            **made_by,
            **made_from,
            "n": n,
            "sampling": dataclasses.asdict(sampling),
            "tie_margin": judging.tie_margin,
            "instruction": str(judging.instruction or ""),
            "added": ["compared"],
        }
        found = await collect(out, asked, work, settings=settings, restart=restart, doing="comparing")
    return found, {**made_by, "n": n}


@asynccontextmanager
async def _judge(
    judging: _Judging, at: FunctionScorer | list[str], *, timeout_seconds: float
) -> AsyncIterator[Judge | None]:
    """Yield the judge, a function or a model at addresses; None for people, who judge later."""
    from fairlead.cli import judges
    from fairlead.cli.named_models import policy_at, scorer_at

    if not isinstance(at, list):
        yield judges.RewardJudge(at, judging.tie_margin)
    elif judging.reward:
        async with scorer_at(at, timeout_seconds=timeout_seconds) as scorer:
            yield judges.RewardJudge(scorer, judging.tie_margin)
    elif judging.ai_model:
        speaker = judges.OpenAISpeaker(judging.ai, judging.ai_model, timeout_seconds)
        yield judges.AIJudge(speaker, judges.instruction_of(judging.instruction))
    elif judging.ai:
        async with policy_at(at, timeout_seconds=timeout_seconds) as policy:
            instruction = judges.instruction_of(judging.instruction)
            yield judges.AIJudge(judges.PolicySpeaker(policy), instruction)
    else:
        yield None


def _blind(line: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], bool, Mapping[str, Any]]]:
    """Yield each pair of a line as (prompt, first, second), whether A comes first, and the pair itself.

    The order is drawn by a hash of the texts, so that it is the same when verdicts come back.
    """
    from fairlead.cli.sampled import prompt_of

    asked = str(prompt_of(line, added="compared"))
    for pair in line["compared"]:
        digest = hashlib.sha256("\0".join((asked, *sorted((pair["a"], pair["b"])))).encode()).digest()
        in_order = bool(digest[0] & 1) == (pair["a"] <= pair["b"])
        first, second = (pair["a"], pair["b"]) if in_order else (pair["b"], pair["a"])
        yield (asked, first, second), in_order, pair


def _write_pairs(out: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write every different pair of answers for people, without the names of the policies."""
    from fairlead.cli import lines

    written: set[tuple[str, str, str]] = set()
    with lines.writing(out / "pairs.jsonl") as write:
        for line in found:
            for key, _, pair in _blind(line):
                if pair["a"] != pair["b"] and key not in written:
                    written.add(key)
                    write(dict(zip(("prompt", "first", "second"), key, strict=True)))


def _judged_by_people(found: Sequence[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Return the lines whose pairs people have judged, with verdicts."""
    from fairlead.cli.judges import read_verdicts
    from fairlead.errors import ConfigError

    known = read_verdicts(file)
    judged = []
    missing = 0
    for line in found:
        pairs: list[dict[str, Any]] = []
        for key, in_order, pair in _blind(line):
            if pair["a"] == pair["b"]:
                pairs.append({**pair, "verdict": 0.5})
            elif key in known:
                pairs.append({**pair, "verdict": known[key] if in_order else 1 - known[key]})
            else:
                missing += 1
        if pairs:
            judged.append({**line, "compared": pairs})
    if not judged:
        got = f"no pair of this comparison in {file}"
        raise ConfigError("--verdicts", got=got, allowed="pairs.jsonl of this folder with `better`")
    if missing:
        say(f"{missing} pairs have no verdict and are left out", err=True)
    return judged


def _figures(found: Sequence[Mapping[str, Any]], *, group: str, seed: int) -> dict[str, object]:
    from fairlead.cli.judges import order_dependence
    from fairlead.clients.win_rate import by_group, win_rate

    verdicts = [[float(pair["verdict"]) for pair in line["compared"]] for line in found]
    every = [pair for line in found for pair in line["compared"]]
    figures: dict[str, object] = {
        **win_rate(verdicts, seed=seed).as_json(),
        "tokens_a": fmean(pair["tokens_a"] for pair in every),
        "tokens_b": fmean(pair["tokens_b"] for pair in every),
        "position_bias": order_dependence(every),
    }
    if group:
        groups = [str(line[group]) for line in found]
        figures["groups"] = {
            name: rate.as_json() for name, rate in by_group(verdicts, groups, seed=seed).items()
        }
    return figures


def _report(out: Path, figures: Mapping[str, Any]) -> None:
    from fairlead.cli import sampled

    rows = {"all": figures, **figures.get("groups", {})}
    columns = ["prompts of", "win rate of A", "95% interval", "wins", "ties", "losses", "prompts"]
    cells = [
        [
            name,
            f"{row['win_rate']:.3f}",
            f"{row['interval'][0]:.3f} … {row['interval'][1]:.3f}",
            *(str(row[key]) for key in ("wins", "ties", "losses", "prompts")),
        ]
        for name, row in rows.items()
    ]
    lines = [
        "# Comparison of two policies",
        "",
        f"A: {figures['a']}  ",
        f"B: {figures['b']}  ",
        f"Judge: {figures['judge']}",
        "",
        "A tie counts half; intervals are by resampling prompts. Mean length of an answer: "
        f"{figures['tokens_a']:.1f} tokens of A, {figures['tokens_b']:.1f} of B.",
        "",
        sampled.table(columns, cells),
    ]
    if bias := figures["position_bias"]:
        lines += [
            f"Position bias of the judge: it prefers the first answer in {bias['first_preferred']:.1%} of "
            f"its replies without a tie; {bias['inconsistent']:.1%} of the comparisons changed with the "
            f"order and count as ties; {bias['unreadable']:.1%} of the replies had no verdict.",
            "",
        ]
    sampled.report(out, figures, "\n".join(lines))
    low, high = figures["interval"]
    typer.echo(
        f"A wins {figures['win_rate']:.1%} (95% interval {low:.1%} to {high:.1%}) of {figures['prompts']} "
        f"prompts; "
        f"{figures['wins']} wins, {figures['ties']} ties, {figures['losses']} losses; see {out / 'report.md'}"
    )
