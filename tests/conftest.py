"""What every test gets: quiet progress bars, few threads, no hub."""

from __future__ import annotations

import os

# Before torch and transformers are imported anywhere, child processes included.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
for name in [name for name in os.environ if name.startswith("FAIRLEAD_")]:
    del os.environ[name]
