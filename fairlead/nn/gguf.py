"""Find the GGUF file that the path of a model means: the file itself, or the only one in a folder.

Does not read the file; fairlead/nn/loading.py and fairlead/planning/gguf_size.py do.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fairlead.errors import ModelLoadError, install_command


def gguf_file(path: str) -> Path | None:
    """Return the GGUF file of a model; None if the path means another kind of model.

    Args:
        path: a GGUF file, a folder or a hub id. A folder that has safetensors or an adapter is read from
            those.

    Raises:
        ModelLoadError: if the file does not exist, is a part of a split model, is one of several in the
            folder, or the package `gguf` is not installed.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        if any(given.glob("*.safetensors")):
            return None
        files = sorted(given.glob("*.gguf"))
    elif given.suffix == ".gguf":
        files = [given]
    else:
        return None
    if not files:
        return None
    if len(files) > 1 or "-of-0" in files[0].name:
        raise ModelLoadError(
            f"{path!r} has {len(files)} GGUF files or parts ({files[0].name}, …): give the path of one whole "
            "file; `llama-gguf-split --merge` joins parts"
        )
    if not files[0].is_file():
        raise ModelLoadError(f"no GGUF file {path!r}: give an existing file, a model folder or a hub id")
    if find_spec("gguf") is None:
        raise ModelLoadError(f"{path!r} is a GGUF file, which needs a package: {install_command('gguf')}")
    return files[0]
