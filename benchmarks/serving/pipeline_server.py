"""A transformers pipeline in FastAPI, as in many scripts. `… pipeline_server MODEL PORT`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import pipeline


def make_app(path: str) -> FastAPI:
    """Return the application over one pipeline."""
    classify: Any = pipeline("text-classification", model=path, device="cpu", function_to_apply="none")
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    # Not async: FastAPI runs requests concurrently in its thread pool.
    @app.post("/get_reward")
    def get_reward(body: dict[str, Any]) -> dict[str, Any]:
        found = classify(body["query"], batch_size=len(body["query"]))
        return {"rewards": [one["score"] for one in found]}

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
