"""What the policies are asked, on the real data, if present."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.helpful_harmless import asking, instructions, make
from fairlead.config import load
from fairlead.errors import ConfigError

ROOT = Path(__file__).parents[4]
DATA = ROOT.parent / "shared" / "data"
HARMLESS = DATA / "hh_rlhf" / "harmless.jsonl.gz"


@pytest.mark.skipif(not HARMLESS.is_file(), reason="../shared/data/hh_rlhf is absent")
def test_heldout_prompts_have_pairs_that_the_reward_model_has_not_seen(tmp_path: Path) -> None:
    make.make(HARMLESS, tmp_path / "build" / "helpful_harmless")
    file = tmp_path / "configs" / "run.toml"
    file.parent.mkdir()
    file.write_bytes((ROOT / "configs" / "helpful_harmless.toml").read_bytes())
    config = load(file)
    with pytest.raises(ConfigError, match="rotten_tomatoes"):
        asking.sources(config, tmp_path)
    found = asking.sources(config, DATA)
    assert len(found.heldout) == asking.NUM_PROMPTS
    asked = [str(found.pairs.unseen[place].prompt) for place in found.places]
    assert sorted(asked) == sorted(map(str, found.heldout))
    assert not {str(prompt) for prompt in found.heldout} & {str(pair.prompt) for pair in found.pairs.known}
    assert len(found.instructions) == instructions.NUM_EVALUATED
    assert len(set(found.sentences)) == asking.NUM_SENTENCES
    assert {len(found.of(probe)) > 50 for probe in ("harmful", "harmless", "question")} == {True}
