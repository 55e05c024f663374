"""Everything that one seed trains and samples, in its own folder; a finished step is not repeated.

Pages → three pretrained models → the quickstart's loop on the smallest; the others are fine-tuned only → the
answers of all of them to the held-out questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from examples.headline import answers, pages, sizes
from examples.headline.answers import Stage
from examples.headline.sizes import Size
from examples.parcel_help.corpus import Question, questions
from examples.parcel_help.files import Files
from examples.parcel_help.quickstart import run_quickstart
from fairlead.config import RunConfig
from fairlead.data.records import is_heldout
from fairlead.local.standby import Standby
from fairlead.rounds.configuration import round_config
from fairlead.rounds.files import write_rows
from fairlead.rounds.iteration import steps_key
from fairlead.rounds.steps import Steps
from fairlead.rounds.training import Training

HELDOUT_PAGES = 400

Show = Callable[[str], None]
OnStep = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained and sampled for every seed."""

    sizes: tuple[Size, ...] = sizes.SIZES
    """Sizes of models, the smallest first."""
    num_pages: int = 3_000
    """Pages to pretrain on."""
    num_demonstrations: int = 3_200
    """Demonstrations to fine-tune on."""
    num_rounds: int = 1
    """Rounds of the loop that tunes the smallest model."""
    num_answers: int = 16
    """Answers of each model to each held-out question."""
    changes: dict[str, object] = field(default_factory=dict)
    """Settings of the quickstart to change, by dotted key."""


@dataclass(frozen=True, slots=True)
class Seed:
    """The runs and files of one seed."""

    plan: Plan
    """What is trained."""
    seed: int
    """The seed of every draw: pages, weights, demonstrations, tasks, labelers, PPO and sampling."""
    folder: Path
    """Their folder."""
    larger_of: Seed | None = None
    """The seed whose larger models are used; None trains its own. Those have been trained on some of the
    questions that are held out here, which is in their favour."""

    @property
    def answers(self) -> Path:
        """The answers of every model."""
        return self.folder / "answers.jsonl"

    @property
    def prompts(self) -> Path:
        """The held-out questions, a prompt each, for `fairlead compare`."""
        return self.folder / "heldout_questions.jsonl"

    @property
    def tuned(self) -> RunConfig:
        """The run that tunes the smallest model."""
        base = self.pretrained(self.plan.sizes[0]).folder.sft_model
        return sizes.tuning(seed=self.seed, folder=self.folder, base=base, changes=self.plan.changes)

    @property
    def last_round(self) -> RunConfig:
        """The last round of that run."""
        return round_config(self.tuned, self.plan.num_rounds - 1)

    @property
    def heldout_questions(self) -> list[str]:
        """The questions that no stage has seen, in a fixed order."""
        config = self.tuned
        return [one.text for one in questions() if is_heldout(config, one.text)]

    @property
    def known_questions(self) -> list[Question]:
        """The questions that may occur in pages."""
        config = self.tuned
        return [one for one in questions() if not is_heldout(config, one.text)]

    def pretrained(self, size: Size) -> RunConfig:
        """Return the run that pretrains a size."""
        if self.larger_of is not None and size != self.plan.sizes[0]:
            return self.larger_of.pretrained(size)
        train, heldout = (self.folder / "pages" / f"{name}.jsonl" for name in ("train", "heldout"))
        return sizes.pretraining(size, seed=self.seed, folder=self.folder, train=train, heldout=heldout)

    def fine_tuned(self, size: Size) -> RunConfig:
        """Return the run that fine-tunes a size; for the smallest, it is the one that tunes."""
        if size == self.plan.sizes[0]:
            return self.tuned
        if self.larger_of is not None:
            return self.larger_of.fine_tuned(size)
        return sizes.fine_tuning(
            size,
            seed=self.seed,
            folder=self.folder,
            base=self.pretrained(size).folder.sft_model,
            demonstrations=Files(self.tuned.folder.root / "data").demonstrations,
            changes=self.plan.changes,
        )

    def steps(self, console: Console | None = None) -> list[tuple[str, str, Callable[[], None]]]:
        """Return the steps in order: name, title and what to do; `console` shows the progress of stages."""
        console = console or Console(stderr=True)
        smallest, *larger = self.plan.sizes
        if self.larger_of is not None:
            larger = []
        found: list[tuple[str, str, Callable[[], None]]] = [("pages", "writing pages", self._write_pages)]
        found += [
            (f"pretrain-{size.name}", f"pretraining {size.name}", partial(self._pretrain, size, console))
            for size in (smallest, *larger)
        ]
        tune = partial(
            run_quickstart,
            fresh=False,
            console=console,
            num_rounds=self.plan.num_rounds,
            num_demonstrations=self.plan.num_demonstrations,
        )
        title = f"tuning {smallest.name}: SFT, then rankings → reward model → PPO"
        found.append(("tune", title, lambda: tune(self.tuned)))
        found += [
            (f"sft-{size.name}", f"fine-tuning {size.name}", partial(self._fine_tune, size, console))
            for size in larger
        ]
        found.append(("answers", "asking every model the held-out questions", self._ask))
        return found

    def run(self, show: Show, on_step: OnStep, console: Console | None = None) -> None:
        """Run every step that is not done.

        Args:
            show: shows a line of progress.
            on_step: called after each step with its name and its seconds, None if it was done before.
            console: shows the progress of stages; None: that of standard error.

        Raises:
            FairleadError: a step failed; finished steps are kept.
        """
        every = self.steps(console)
        steps = Steps(
            self.folder / "stages.json",
            key=self.key,
            verb="headline",
            total=len(every),
            show=show,
            elsewhere="--out FOLDER",
        )
        if not self._answered():
            steps.forget("answers")
        for name, title, body in every:
            known = name in steps.seconds
            steps.run(name, title, body)
            on_step(name, None if known else steps.seconds[name])

    def write_prompts(self) -> None:
        """Write the file of held-out questions."""
        write_rows(self.prompts, ({"prompt": question} for question in self.heldout_questions))

    def times(self) -> dict[str, dict[str, float]]:
        """Return seconds and CPU seconds of each step."""
        kept = json.loads((self.folder / "stages.json").read_text(encoding="utf-8"))
        return {"seconds": kept["seconds"], "cpu_seconds": kept["cpu_seconds"]}

    @property
    def key(self) -> str:
        """Return a hash of every setting that the outcome depends on."""
        configs = [self.tuned, *map(self.pretrained, self.plan.sizes), *map(self.fine_tuned, self.plan.sizes)]
        plan = self.plan
        parts = [*map(steps_key, configs), plan.num_pages, plan.num_demonstrations, plan.num_rounds]
        return hashlib.sha256(repr([*parts, plan.num_answers]).encode()).hexdigest()

    def check(self) -> None:
        """Check all settings, which takes no time.

        Raises:
            ConfigError: one is invalid.
        """
        _ = self.key

    def _answered(self) -> bool:
        """Return whether the file of answers is whole."""
        try:
            found = answers.read(self.answers)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        smallest, questions = self.plan.sizes[0].name, set(self.heldout_questions)
        models: set[answers.Model] = {
            (stage, size.name)
            for size in self.plan.sizes
            for stage in answers.STAGES
            if stage != "tuned" or size.name == smallest
        }
        return models == set(found) and all(
            set(own.texts) == questions
            and {len(texts) for texts in own.texts.values()} == {self.plan.num_answers}
            for own in found.values()
        )

    def _write_pages(self) -> None:
        train = pages.pages(self.plan.num_pages, seed=self.seed, asked=self.known_questions)
        seen = set(train)
        heldout = pages.pages(HELDOUT_PAGES, seed=-1 - self.seed, asked=questions())
        files = self.pretrained(self.plan.sizes[0]).data
        for path, texts in (
            (files.demonstrations, train),
            (files.heldout_demonstrations, [text for text in heldout if text not in seen]),
        ):
            write_rows(Path(str(path)), ({"text": text} for text in texts))

    def _pretrain(self, size: Size, console: Console) -> None:
        self._sft(self.pretrained(size), console)

    def _fine_tune(self, size: Size, console: Console) -> None:
        self._sft(self.fine_tuned(size), console)

    def _sft(self, config: RunConfig, console: Console) -> None:
        with Standby() as standby:
            Training(console, standby).stage(config, "sft")

    def _ask(self) -> None:
        questions = self.heldout_questions
        config = self.tuned
        before = answers.shots(self.known_questions, seed=self.seed)
        rows = []
        for size in self.plan.sizes:
            models: list[tuple[Path, dict[Stage, str]]] = [
                (self.pretrained(size).folder.sft_model, {"pretrained": "", "prompted": before}),
                (self.fine_tuned(size).folder.sft_model, {"fine-tuned": ""}),
            ]
            if size == self.plan.sizes[0]:
                models.append((self.last_round.folder.policy_model, {"tuned": ""}))
            for model, prompts in models:
                rows += answers.sample(
                    sizes.asking(config, size),
                    model,
                    prompts,
                    questions,
                    size=size.name,
                    num_answers=self.plan.num_answers,
                )
        answers.write(self.answers, rows)
