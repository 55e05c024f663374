"""A reward server as OpenRLHF's `serve_rm` behaves: `POST /get_reward`, one request, one forward pass.

Written for this benchmark from the documentation of that server: texts are tokenized and padded together and
scored in one call inside the handler, and nothing is batched across requests. transformers loads its model.
`python -m benchmarks.serving.openrlhf_style MODEL PORT`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def make_app(path: str) -> FastAPI:
    """Return the application over one model."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForSequenceClassification.from_pretrained(path).eval()
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    @app.post("/get_reward")
    async def get_reward(body: dict[str, Any]) -> dict[str, Any]:
        # As in OpenRLHF, the model runs in the event loop, so requests wait for one another.
        inputs = tokenizer(body["query"], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        rewards = output.logits[:, 0].tolist()
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
