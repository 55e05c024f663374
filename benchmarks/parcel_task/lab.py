"""What experiments about reward models start from: fine-tuned policies, prompts, and their answers as files.

The texts and settings are those of the quickstart, but a sixth of the prompts is held out: nothing is
trained on them, and every figure of best-of-n is measured on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import quickstart
from benchmarks.parcel_task import answers
from benchmarks.parcel_task.answers import Answers
from benchmarks.result import OUT
from examples.parcel_help import corpus
from examples.parcel_help.quickstart import NUM_DEMONSTRATIONS
from fairlead.config import RunConfig
from fairlead.data.records import is_heldout
from fairlead.rounds.files import write_rows
from trainer.sft.train import train as train_sft

HELDOUT_FRACTION = 0.17
SEED = 0
"""Of texts, of the split of prompts, and of the policies at the start."""


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a model."""

    width: int
    """Width of its layers."""
    layers: int
    """Their number."""
    heads: int = 4
    """Attention heads."""

    def __str__(self) -> str:
        return f"{self.layers} × {self.width}"

    @property
    def name(self) -> str:
        """In names of files."""
        return f"{self.layers}x{self.width}"


POLICY = Size(64, 2)
"""That of the quickstart: the policy that learns, and one of the sizes of reward models."""


@contextmanager
def opened(*, quick: bool) -> Iterator[Lab]:
    """Yield the lab whose files all benchmarks share; a tiny one in a temporary folder if `quick`."""
    if not quick:
        yield Lab(OUT / "lab")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Lab(Path(folder), quick=True)


class Lab:
    """Policies and answers in a folder, made when they are first asked for."""

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        """
        Args:
            folder: files of it are used again.
            quick: use tiny sizes.
        """
        self.folder = folder.absolute()
        self.quick = quick
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _config(self) -> RunConfig:
        return self.config({"name": "start"})

    @cached_property
    def heldout(self) -> tuple[str, ...]:
        """Prompts that nothing is trained on."""
        return tuple(one.text for one in corpus.questions() if is_heldout(self._config, one.text))

    @cached_property
    def known(self) -> tuple[str, ...]:
        """All other prompts."""
        return tuple(one.text for one in corpus.questions() if one.text not in self.heldout)

    def config(self, overrides: Mapping[str, object]) -> RunConfig:
        """Return the configuration of the quickstart with this lab's split and some settings changed."""
        changed = {
            "runs": self.folder,
            "seed": SEED,
            "data.heldout_fraction": HELDOUT_FRACTION,
            **({"sft.epochs": 1} if self.quick else {}),
            **overrides,
        }
        return quickstart.config({name: str(value) for name, value in changed.items()})

    def policy(self, size: Size = POLICY) -> Path:
        """Return the folder of a policy of a size, fine-tuned from scratch on the demonstrations."""
        config = self.config(
            {
                "name": f"sft-{size.name}",
                "data.demonstrations": self.demonstrations(),
                "model.scratch.hidden_size": size.width,
                "model.scratch.num_layers": size.layers,
                "model.scratch.num_heads": size.heads,
            }
        )
        if not config.folder.result("sft").exists():
            train_sft(config)
        return config.folder.sft_model

    def demonstrations(self) -> Path:
        """Return the file of the demonstrations."""
        file = self.folder / "demonstrations.jsonl"
        if not file.exists():
            count = 64 if self.quick else NUM_DEMONSTRATIONS
            pairs = corpus.demonstrations(count, seed=SEED)
            write_rows(file, ({"prompt": asked, "completion": said} for asked, said in pairs))
        return file

    def heldout_answers(self, samples: int) -> Answers:
        """Return answers of the policy at the start to each held-out prompt."""
        return self._answers("heldout", self.heldout, samples, seed=1)

    def known_answers(self, samples: int) -> Answers:
        """Return answers of the policy at the start to each other prompt."""
        return self._answers("known", self.known, samples, seed=2)

    def prompts(self) -> Path:
        """Return the file of the prompts to train on."""
        file = self.folder / "prompts.jsonl"
        if not file.exists():
            write_rows(file, ({"prompt": prompt} for prompt in self.known))
        return file

    def _answers(self, name: str, prompts: tuple[str, ...], samples: int, *, seed: int) -> Answers:
        return answers.kept(
            self.folder / f"answers-{name}-{samples}.jsonl",
            self.policy(),
            prompts,
            samples=samples,
            limit=self._config.sampling.max_new_tokens,
            seed=seed,
        )
