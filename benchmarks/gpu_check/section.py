"""One section of the check in a process of its own: `python -m benchmarks.gpu_check.section NAME FILE DEVICE
[tiny]`.

Appends its figures to FILE as they are measured. A section that lacks a package, or the GPU, says so.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_check.figures import skipped


def main(name: str, file: Path, device: str, *, tiny: bool) -> int:
    """Measure; return the exit code."""
    try:
        import torch

        from benchmarks.gpu_check.setting import Setting

        if device == "cuda" and not torch.cuda.is_available():
            skipped(name, f"torch {torch.__version__} finds no GPU").append_to(file)
            return 0
        module = importlib.import_module(f"benchmarks.gpu_check.{name}")
        with tempfile.TemporaryDirectory() as folder:
            for figure in module.measure(Setting.of(device, Path(folder), tiny=tiny)):
                figure.append_to(file)
    except ModuleNotFoundError as error:
        skipped(name, f"needs the package {error.name}, which is not installed").append_to(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], tiny=sys.argv[4:] == ["tiny"]))
