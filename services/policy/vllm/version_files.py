"""The files of a weight version for vLLM: checked against the model before anything is paused, and kept open.

vLLM reads the files by itself, in other processes, and has lost the weights in use by the time it notices
that a tensor does not fit. So names, shapes and types are checked here, from the headers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fairlead.errors import ConfigError, CorruptWeights
from fairlead.nn import adapters
from fairlead.transports.weights import manifest
from fairlead.transports.weights.base import Adapter
from services.policy.replacement import ModelTensors

_DTYPES = ("F32", "BF16", "F16")
_EXPERTS = ".experts."


def check_names(model: PreTrainedModel) -> None:
    """Check that vLLM finds the tensors of a version by their names.

    A version has the names of transformers' modules; vLLM knows those of a model's files. Where transformers
    gives tensors other names when it loads them, vLLM follows only if the matrices of the experts of a layer
    become one tensor.

    Args:
        model: the model without adapters; it need not have values.

    Raises:
        ConfigError: if another tensor has another name.
    """
    ours = model.state_dict()
    theirs = revert_weight_conversion(model, dict(ours))
    layers = {name.partition(_EXPERTS)[0] for name in theirs if _EXPERTS in name}
    for name in ours:
        if name not in theirs and name.partition(_EXPERTS)[0] not in layers:
            raise ConfigError(
                "policy.engine",
                got=f"vllm, for a model of the type {model.config.model_type}",
                allowed=f"transformers: vLLM does not know the tensor {name} of this type's weight versions",
            )


class ExpectedTensors:
    """The tensors that a version must hold."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` has shapes, but need not have values; if it has adapters, versions hold only those."""
        self._tensors = ModelTensors(model)

    def check(self, folder: Path) -> None:
        """Check the headers of every *.safetensors file. A tied tensor may be stored under any of its names.

        Raises:
            CorruptWeights: if a tensor is missing, unknown or of another shape or type, or a file is damaged.
        """
        found = set()
        for path in sorted(folder.glob("*.safetensors")):
            try:
                entries = manifest.read_header(path)
            except OSError as error:
                raise CorruptWeights(f"{path} cannot be read: {error}") from error
            for entry in entries:
                wanted = self._tensors.named(path, entry.name, entry.shape)
                if entry.dtype not in _DTYPES:
                    raise CorruptWeights(
                        f"{path}: {entry.name} has type {entry.dtype}, allowed: {', '.join(_DTYPES)}"
                    )
                found.add(id(wanted))
        self._tensors.check_complete(folder, found)


class HeldVersion:
    """The files of a version, which stay readable after the store has deleted the version.

    The files are opened here, and `path` is a folder of links to the open files, for the other processes of
    vLLM on this machine. So the version in use can be loaded again if a newer one turns out to be bad.
    Processes on other machines read the folder itself, which is then not held: a version that the store has
    deleted cannot be loaded again.
    """

    def __init__(
        self, folder: Path, *, adapter: Adapter | None = None, on_several_nodes: bool = False
    ) -> None:
        """Open the files.

        Args:
            folder: the version.
            adapter: if the files hold an adapter: its configuration, which is written next to them.
            on_several_nodes: whether other machines read them, too; not with an adapter.

        Raises:
            CorruptWeights: if a file cannot be opened, or an adapter has several files.
        """
        files = sorted(folder.glob("*.safetensors"))
        if adapter is not None and len(files) != 1:
            raise CorruptWeights(f"{folder} holds an adapter in {len(files)} files; vLLM reads one")
        self._links: Path | None = None
        self._descriptors: list[int] = []
        if on_several_nodes:
            self.path = folder
            return
        self.path = self._links = Path(tempfile.mkdtemp(prefix="fairlead-weights-"))
        try:
            if adapter is not None:
                self._write_adapter(adapter)
            for file in files:
                self._link(file, adapters.WEIGHTS_FILE if adapter else file.name)
        except OSError as error:
            self.close()
            raise CorruptWeights(f"{folder} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the files and remove the links."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        if self._links is not None:
            shutil.rmtree(self._links, ignore_errors=True)

    def _link(self, file: Path, name: str) -> None:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        (self.path / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")

    def _write_adapter(self, adapter: Adapter) -> None:
        settings = json.dumps(dict(adapter.config))
        (self.path / adapters.CONFIG_FILE).write_text(settings, encoding="utf-8")
