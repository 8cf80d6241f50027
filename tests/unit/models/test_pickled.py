from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mm1_pipeline.cli import mm1
from mm1_pipeline.models.convert.pickled import convert_pickled


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, generator=generator)
    return {
        "plain": whole,
        "turned": whole.t(),
        "part": whole[2:4, 1:],
        "half": whole.half(),
        "brain": whole.bfloat16(),
        "scalar": torch.tensor(2.5),
        "double": whole.double(),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(whole.clone()),
    }


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model", "teacher"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_those_that_were_saved(
    wrapped: str | None, protocol: int, tmp_path: Path
) -> None:
    content: Any = state()
    if wrapped is not None:
        extra = {"epoch": 3, "lr": 0.1, "names": ["a", "b"], "done": True, "more": None}
        content = {wrapped: collections.OrderedDict(content), **extra}
    torch.save(content, tmp_path / "x.bin", pickle_protocol=protocol)
    target = tmp_path / "x.safetensors"
    if protocol == 4:  # names come from the stack there: torch's own files never have it
        with pytest.raises(ValueError, match="found the instruction STACK_GLOBAL"):
            convert_pickled(tmp_path / "x.bin", target, key=wrapped)
        assert not target.exists()
        return
    key = wrapped if wrapped == "teacher" else None
    written = convert_pickled(tmp_path / "x.bin", target, key=key)
    found = load_file(target)
    assert written["tensors"] == len(found) == len(state())
    for name, expected in state().items():
        expected = expected.detach()
        expected = expected.float() if expected.dtype is torch.float64 else expected
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == expected.dtype


def test_a_module_with_counters_is_converted(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "x.pth")  # has _metadata, and a count
    written = convert_pickled(tmp_path / "x.pth", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert written["left_out"] == 1  # num_batches_tracked
    assert torch.equal(found["0.weight"], module.state_dict()["0.weight"])


def test_code_in_a_file_is_named_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"a": torch.ones(2), "b": Bomb(trap)}, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"found the name '\S+ \S+' in its pickle"):
        convert_pickled(tmp_path / "x.bin", tmp_path / "x.safetensors")
    assert not trap.exists()
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"(lp0\n.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"ccollections\nOrderedDict\n(I1\ntR.",
        b"h\x05.",
        b"",
        b"}q\x00",
    ],
)
def test_other_pickles_are_refused(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as file:
        file.writestr("x/data.pkl", content)
    with pytest.raises(ValueError, match=r"x\.bin: found"):
        convert_pickled(tmp_path / "x.bin", tmp_path / "x.safetensors")


def test_tensors_may_not_reach_outside_of_their_numbers(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(8)}, tmp_path / "good.bin")
    with (
        zipfile.ZipFile(tmp_path / "good.bin") as good,
        zipfile.ZipFile(tmp_path / "bad.bin", "w") as bad,
    ):
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(ValueError, match="found a outside of its numbers"):
        convert_pickled(tmp_path / "bad.bin", tmp_path / "x.safetensors")


def test_files_that_are_no_zip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"found no file of torch\.save"):
        convert_pickled(tmp_path / "x.bin", tmp_path / "x.safetensors")


def test_the_command_converts_and_names_errors(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "pytorch_model.bin")
    target = tmp_path / "model.safetensors"
    done = CliRunner().invoke(mm1, ["convert", str(tmp_path), str(target)])
    assert done.exit_code == 0, done.output
    assert "9 tensors" in done.output
    again = CliRunner().invoke(mm1, ["convert", str(tmp_path), str(target)])
    assert again.exit_code == 1
    assert "found a file there already" in again.output
