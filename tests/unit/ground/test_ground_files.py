"""Files are whole or as before, and JSON tells whether it is as it was written."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from kedro_rerun import files as of_reruns

from mm1_pipeline.ground.files import (
    hash_file,
    hash_json,
    read_json,
    read_sealed,
    replacing,
    seal,
    sealed_line,
    whole_folder,
    write_json,
    write_text,
)


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_file_and_nothing_beside_it(tmp_path, durable):
    file = tmp_path / "new" / "a.txt"
    write_text(file, "old\n", durable=durable)

    def fail() -> None:
        with replacing(file, durable=durable) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]
    assert file.read_text() == "old\n"
    write_text(file, "é\n", durable=durable)
    assert file.read_bytes() == "é\n".encode()
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


def test_a_folder_takes_the_targets_place_when_it_is_whole(tmp_path):
    target = tmp_path / "runs" / "a"
    with whole_folder(target) as fresh:
        (fresh / "one").touch()
    with pytest.raises(FileNotFoundError), whole_folder(target) as fresh:
        (fresh / "half" / "written").touch()
    assert [path.name for path in target.iterdir()] == ["one"]
    with whole_folder(target) as fresh:
        assert not list(fresh.iterdir())
        (fresh / "two").touch()
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_a_folder_that_a_kill_left_under_its_other_name_is_put_back(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    (target / "one").touch()
    target.rename(tmp_path / ".a.old")  # killed before the new one had its name
    with pytest.raises(KeyError), whole_folder(target):
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["one"]


def test_json_is_written_alike_and_packed_by_name(tmp_path):
    content = {"b": [1, 2.5, None], "a": "é"}
    for name in ("plain.json", "packed.json.gz"):
        write_json(tmp_path / name, content)
        first = (tmp_path / name).read_bytes()
        write_json(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == first
        assert read_json(tmp_path / name) == content
    assert (tmp_path / "plain.json").read_text() == json.dumps(content, indent=2) + "\n"
    assert json.loads(gzip.decompress((tmp_path / "packed.json.gz").read_bytes())) == content


@pytest.mark.parametrize("bad", [None, b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_named_or_counts_as_missing(tmp_path, bad):
    for name in ("a.json", "a.json.gz"):
        if bad is not None:
            (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{name}: found no JSON that can be read \("):
            read_json(tmp_path / name)
        assert read_sealed(tmp_path / name) is None
    assert read_sealed(bad or b"") is None


def test_a_sealed_object_is_known_by_every_byte_that_counts(tmp_path):
    row = {"text": "é", 3: (1, 2.0), "nested": {"b": None, "a": True}}
    read = {"text": "é", "3": [1, 2.0], "nested": {"b": None, "a": True}}
    line = sealed_line(row)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert read_sealed(line) == read
    write_json(tmp_path / "a.json", seal(row))
    assert read_sealed(tmp_path / "a.json") == read
    for place in range(len(line) - 1):
        damaged = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        assert read_sealed(damaged) is None
    assert read_sealed(json.dumps(read).encode()) is None
    assert read_sealed(json.dumps([read]).encode()) is None
    with pytest.raises(ValueError, match="JSON"):
        seal({"loss": float("nan")})


def test_hashes_are_those_of_the_reruns(tmp_path):
    """`staleness` has its own few lines, to stand alone; they name the same content alike."""
    file = tmp_path / "a"
    file.write_bytes(b"abc" * 1_000_000)
    assert hash_file(file) == of_reruns.hash_file(file)
    assert hash_file(file, "sha256") == hashlib.sha256(file.read_bytes()).hexdigest()
    value = {"b": 1.0, "a": ["é", None]}
    assert hash_json(value) == of_reruns.hash_json(value)
    assert seal(value) == of_reruns.seal(value)
