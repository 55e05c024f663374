"""Checkpoints in slices: read whole and by rows, and damaged in every way."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fairlead.errors import CorruptCheckpoint
from fairlead.types import WeightVersion
from trainer.checkpoint import CheckpointStore
from trainer.distributed import slices
from trainer.distributed.group import Group
from trainer.tensor_file import Shape, TensorFile

VERSION = WeightVersion(1, 5)
WEIGHT = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
STEP = torch.tensor(4.0)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of three ranks, of which the last one has a single row."""
    found = tmp_path / "1-5"
    found.mkdir()
    parts = {"rank-00000": (0, 3), "rank-00001": (3, 6), "rank-00002": (6, 7)}
    for name, (first, end) in parts.items():
        own = {"policy/weight": WEIGHT[first:end].clone()}
        if first == 0:
            own["optimizer/weight:step"] = STEP
        save_file(own, found / f"{name}.safetensors")
    (found / "state.json").write_text("{}")
    entries = {
        "policy/weight": {
            "shape": [7, 3],
            "slices": [{"file": f"{name}.safetensors", "rows": rows} for name, rows in parts.items()],
        },
        "optimizer/weight:step": {
            "shape": [],
            "slices": [{"file": "rank-00000.safetensors", "rows": None}],
        },
    }
    write_manifest(found, {"schema": 2, "groups": ["policy", "optimizer", "empty"], "tensors": entries})
    return found


def write_manifest(folder, manifest) -> None:
    digests = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": digests} | manifest))


def load(folder):
    return CheckpointStore(folder.parent).load(VERSION)


def test_slices_are_read_whole_and_by_rows(folder):
    tensors = load(folder).tensors
    assert list(tensors) == ["policy", "optimizer", "empty"]
    assert not tensors["empty"]
    assert torch.equal(tensors["policy"]["weight"], WEIGHT)
    assert torch.equal(tensors["optimizer"]["weight:step"], STEP)
    assert slices.shape_of(tensors["policy"], "weight") == (7, 3)
    for first in range(8):
        for end in range(first, 8):
            assert torch.equal(tensors["policy"].rows("weight", first, end), WEIGHT[first:end])


def test_rank_reads_and_verifies_only_the_files_with_its_rows(folder):
    (folder / "rank-00002.safetensors").write_bytes(b"damaged")
    tensors = CheckpointStore(folder.parent).load(VERSION, verify=False).tensors
    assert torch.equal(tensors["policy"].rows("weight", 1, 5), WEIGHT[1:5])
    with pytest.raises(CorruptCheckpoint, match=r"rank-00002\.safetensors: its SHA-256 differs"):
        tensors["policy"].rows("weight", 1, 7)


def changed(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "files"})


def weight_slices(manifest) -> list:
    return manifest["tensors"]["policy/weight"]["slices"]


DAMAGE = {
    "a slice less": lambda manifest: weight_slices(manifest).pop(),
    "a slice twice": lambda manifest: weight_slices(manifest).append(weight_slices(manifest)[0]),
    "no slice": lambda manifest: weight_slices(manifest).clear(),
    "overlapping rows": lambda manifest: weight_slices(manifest)[1].update(rows=[2, 6]),
    "rows without end": lambda manifest: weight_slices(manifest)[1].update(rows=[3]),
    "text as rows": lambda manifest: weight_slices(manifest)[1].update(rows="3-6"),
    "text as shape": lambda manifest: manifest["tensors"]["policy/weight"].update(shape="x"),
    "no shape": lambda manifest: manifest["tensors"]["policy/weight"].pop("shape"),
    "unknown group": lambda manifest: manifest["groups"].remove("policy"),
    "no groups": lambda manifest: manifest.pop("groups"),
    "list as tensors": lambda manifest: manifest.update(tensors=[]),
    "newer schema": lambda manifest: manifest.update(schema=4),
    "text as schema": lambda manifest: manifest.update(schema="two"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_invalid_manifest_is_a_corrupt_checkpoint(folder, damage):
    changed(folder, damage)
    with pytest.raises(CorruptCheckpoint, match=r"1-5"):
        load(folder)


READ = {
    "file outside of the checkpoint": lambda manifest: weight_slices(manifest)[0].update(
        file="../x.safetensors"
    ),
    "more rows than in the file": lambda manifest: (
        weight_slices(manifest)[0].update(rows=[0, 4]),
        weight_slices(manifest)[1].update(rows=[4, 6]),
    ),
    "other width": lambda manifest: manifest["tensors"]["policy/weight"].update(shape=[7, 4]),
    "unknown tensor": lambda manifest: manifest["tensors"].update(
        {"policy/weight2": manifest["tensors"]["policy/weight"]}
    ),
}


@pytest.mark.parametrize("damage", READ.values(), ids=READ.keys())
def test_manifest_that_does_not_fit_its_files_is_a_corrupt_checkpoint(folder, damage):
    changed(folder, damage)
    with pytest.raises(CorruptCheckpoint):
        [dict(group) for group in load(folder).tensors.values()]


LEFT, RIGHT = {"columns": [0, 2]}, {"columns": [2, 3]}
BLOCKS = [{"rows": [0, 4]} | LEFT, {"rows": [4, 7]} | LEFT, {"rows": [0, 7]} | RIGHT]


def with_blocks(folder, places):
    """A checkpoint of ranks that divide layers: each has a block of rows and columns."""
    for old in folder.glob("rank-*"):
        old.unlink()
    entries = []
    for number, place in enumerate(places):
        (first, end), (left, right) = place["rows"], place["columns"]
        block = WEIGHT[first:end, left:right].contiguous()
        save_file({"policy/weight": block}, folder / f"rank-{number:05d}.safetensors")
        entries.append({"file": f"rank-{number:05d}.safetensors"} | place)
    tensors = {"policy/weight": {"shape": [7, 3], "slices": entries}}
    write_manifest(folder, {"schema": 3, "groups": ["policy"], "tensors": tensors})


@pytest.mark.parametrize(("first", "end"), [(0, 7), (2, 5), (3, 3), (6, 7)])
def test_blocks_are_read_by_rows(folder, first, end):
    with_blocks(folder, BLOCKS)
    stored = CheckpointStore(folder.parent).load(VERSION).tensors["policy"]
    assert torch.equal(stored.rows("weight", first, end), WEIGHT[first:end])
    assert torch.equal(stored["weight"], WEIGHT)


@pytest.mark.parametrize(
    "places",
    [
        BLOCKS[:2],
        BLOCKS[1:],
        [BLOCKS[0], BLOCKS[2]],
        [*BLOCKS[:2], {"rows": [0, 7], "columns": [1, 3]}],
        [*BLOCKS, {"rows": [0, 7], "columns": [2, 3]}],
    ],
)
def test_blocks_that_are_not_a_whole_tensor_are_a_corrupt_checkpoint(folder, places):
    with_blocks(folder, places)
    with pytest.raises(CorruptCheckpoint, match="weight"):
        CheckpointStore(folder.parent).load(VERSION)


def test_one_rank_reads_what_it_wrote(tmp_path):
    folder = tmp_path / "1-5"
    folder.mkdir()
    written = {"policy": {"a": WEIGHT, "b": torch.arange(3)}, "empty": {}}
    (folder / "state.json").write_text("{}")
    listing = slices.write(folder, written, Group.single())
    (folder / "manifest.json").write_text(json.dumps({"schema": 2, **listing}))
    found = load(folder).tensors
    assert {name: list(group) for name, group in found.items()} == {"policy": ["a", "b"], "empty": []}
    assert all(torch.equal(found["policy"][name], value) for name, value in written["policy"].items())


_DTYPES = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
)
_SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.lists(st.tuples(_DTYPES, _SHAPES), max_size=5))
def test_file_written_tensor_by_tensor_is_a_safetensors_file(tmp_path_factory, layout):
    tensors = {
        f"t{number}": torch.randint(0, 2, shape).to(dtype) for number, (dtype, shape) in enumerate(layout)
    }
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    digest = hashlib.sha256()
    file = TensorFile(path, {name: Shape.of(one) for name, one in tensors.items()}, digest=digest)
    for name, tensor in tensors.items():
        file.add(name, tensor)
    file.close()
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_file_refuses_tensors_that_its_header_does_not_announce(tmp_path):
    shapes = {"a": Shape((2,), torch.float32), "b": Shape((1,), torch.float32)}
    file = TensorFile(tmp_path / "x.safetensors", shapes)
    with pytest.raises(ValueError, match="expected a"):
        file.add("b", torch.zeros(1))
    with pytest.raises(ValueError, match="got a"):
        file.add("a", torch.zeros(3))
    with pytest.raises(ValueError, match="lacks b"):
        file.close()
