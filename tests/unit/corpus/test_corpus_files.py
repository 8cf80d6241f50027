from __future__ import annotations

import logging

import pytest
from corpus_builders import write_bytes

from mm1_pipeline.corpus import progress
from mm1_pipeline.corpus.files import ImageFolder, SourceFiles, _file_keys, safe_name
from mm1_pipeline.corpus.images import RejectedImage


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a/..b/c.jpg", "a/..b/c.jpg"),
        ("../a.jpg", None),
        ("a/../../b.jpg", None),
        ("a/..", None),
        ("/etc/passwd", None),
        ("C:/x.jpg", None),
        ("http://x/y.jpg", None),
        ("..\\x.jpg", None),
        ("a\0b", None),
        ("", None),
        (".", None),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name, expected):
    assert safe_name(name) == expected


def test_files_are_listed_in_the_order_of_their_names(tmp_path):
    for name in ("b/2.tar", "a/10.tar", "a/2.tar", "c.TAR", "x.txt", ".hidden.tar", ".d/3.tar"):
        write_bytes(tmp_path / name, b"x")
    files = SourceFiles(str(tmp_path), patterns=("*.tar",))
    assert [file.name for file in files] == ["a/10.tar", "a/2.tar", "b/2.tar", "c.TAR"]
    assert [file.key for file in files] == ["a/10", "a/2", "b/2", "c"]
    assert [f.name for f in SourceFiles(str(tmp_path), patterns=("*.tar",), also="1*")] == [
        "a/10.tar"
    ]
    found = files.find("x.txt")
    assert found is not None
    assert found.size == 1
    assert files.find("y.txt") is None


def test_nothing_is_not_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        SourceFiles(str(tmp_path / "none"))
    assert len(SourceFiles(str(tmp_path))) == 0


def test_an_image_folder_opens_nothing_outside(tmp_path):
    write_bytes(tmp_path / "secret.jpg", b"secret")
    write_bytes(tmp_path / "raw" / "images" / "sub" / "1.jpg", b"12345")
    folder = ImageFolder(str(tmp_path / "raw"), max_bytes=5)
    assert folder.load(folder.resolve("sub/1.jpg")) == b"12345"
    assert folder.load(folder.resolve("images/./sub/1.jpg")) == b"12345"
    for name, reason in (
        ("../secret.jpg", "unsafe_path"),
        (str(tmp_path / "secret.jpg"), "unsafe_path"),
        ("secret.jpg", "image_missing"),
    ):
        with pytest.raises(RejectedImage) as caught:
            folder.resolve(name)
        assert caught.value.reason == reason
    with pytest.raises(RejectedImage) as caught:
        ImageFolder(str(tmp_path / "raw"), max_bytes=4).load("images/sub/1.jpg")
    assert caught.value.reason == "image_too_many_bytes"


def test_progress_follows_the_bytes_the_records_or_the_limit(tmp_path):
    for name in ("1", "2"):
        write_bytes(tmp_path / name, bytes(100))
    files = SourceFiles(str(tmp_path))
    shares = []
    for file in files:
        with files.open(file) as stream:
            for _ in range(2):
                stream.read(50)
                shares.append(progress._share_done(1, files, None))
    assert shares == [0.25, 0.5, 0.75, 1.0]
    files.expected_records = 8
    assert progress._share_done(2, files, None) == 0.25
    assert progress._share_done(2, files, 4) == 0.5


def test_without_a_terminal_progress_goes_to_the_log(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    files = SourceFiles(str(tmp_path))
    files.expected_records = 4
    with caplog.at_level(logging.INFO):
        items = list(progress.track_source([1, 2], "pictures", files, None))
    assert items == [1, 2]
    assert "pictures: 2 records read, " in caplog.text
    assert "s left" in caplog.text
    assert "pictures: 2 records read in " in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["val.part1.json", "val.part2.json", "val.part3.json"],
        ["part.0.parquet", "part.1.parquet"],
        ["shard.000000.tar", "shard.000001.tar"],
        ["site.example.com-00000.warc.gz", "site.example.com-00001.warc.gz"],
        ["c4-train.00000-of-01024.json.gz", "c4-train.00001-of-01024.json.gz"],
        ["a.json", "a.jsonl", "a.JSON", "a.json.json"],
        ["a/b.json", "a.b.json", "a b.json", ".json", "json"],
        ["n\udce9.json", "n\\xe9.json", "n\u00e9.json", "ne\u0301.json"],
    ],
)
def test_files_never_share_the_start_of_their_keys(names):
    keys = _file_keys(names)
    assert len(set(keys.values())) == len(names)
    assert all(key.encode() for key in keys.values())


def test_only_a_known_suffix_is_taken_off_a_key():
    assert _file_keys(["x/val.part1.json", "v1.2.jsonl.zst", "b.tar.bak", "t.WARC.GZ"]) == {
        "x/val.part1.json": "x/val.part1",
        "v1.2.jsonl.zst": "v1.2",
        "b.tar.bak": "b.tar.bak",
        "t.WARC.GZ": "t",
    }
