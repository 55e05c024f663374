"""`fairlead export` started by its command: the exported policy answers as the policy service did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairlead import PolicyClient, SamplingParams
from fairlead.config import RunConfig, load
from fairlead.config.saving import save
from tests.service_process import Starter
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_world import World
from trainer.ppo.train import PpoTrainer

PROMPTS = ("w1 w2 w3", "w40", "w5 w6 w7 w8 w9 w10", "w11 w12")


def trained(folder: Path) -> RunConfig:
    config = load(
        overrides={
            "runs": str(folder),
            "base": str(folder),
            "name": "done",
            "data.prompts": "prompts.jsonl",
            "ppo.updates": 3,
            "ppo.batch_size": 8,
            "ppo.mini_batch_size": 8,
            "ppo.learning_rate": 3e-3,
            "ppo.device": "cpu",
            "sampling.max_new_tokens": 6,
            "observe.tensorboard": False,
            "queue.give_up_seconds": 60,
        }
    )
    lines = (json.dumps({"prompt": f"w{n} w{n + 1}"}) + "\n" for n in range(20))
    (folder / "prompts.jsonl").write_text("".join(lines))
    tiny_causal_lm(config.folder.sft_model)
    with World(config.folder.sft_model, config.weights_path, score=lambda a: float(len(set(a)))) as world:
        PpoTrainer(config, queue=world.broker.trainer(), store=world.store).run()
    save(config, config.folder.config)
    return config


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fairlead.cli", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_exported_policy_answers_as_its_service(tmp_path: Path, start: Starter):
    config = trained(tmp_path)
    process = start("policy", config.folder.sft_model, **{"weights.path": config.weights_path})
    process.wait_for("/readyz")
    with PolicyClient(process.address) as client:
        assert str(client.info().weight_version) == "1-3"
        greedy = SamplingParams(temperature=0, max_new_tokens=20)
        answers = [client.generate(prompt, greedy)[0] for prompt in PROMPTS]
    assert process.stop() == 0

    done = cli(str(config.folder.root), str(tmp_path / "models"), "--only", "policy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'models' / 'policy'}: the last weights, version 1-3\n"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "policy")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
            table = model(output[None]).logits[0].log_softmax(-1)
        assert tokenizer.decode(output[length:], skip_special_tokens=True) == answer.text
        logprobs = [float(table[length - 1 + i, t]) for i, t in enumerate(output[length:].tolist())]
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-5)
    assert len({answer.text for answer in answers}) > 1

    again = cli(str(config.folder.root), str(tmp_path / "models"))
    assert again.returncode == 2
    assert again.stderr.startswith("error: target: got ")
    assert "an earlier export" in again.stderr
    assert "Traceback" not in again.stderr
