from __future__ import annotations

import logging
import os

import pytest
from corpus_builders import make_config, run, write_bytes

from mm1_pipeline.config.source_files import is_read
from mm1_pipeline.corpus import progress
from mm1_pipeline.corpus.files import ImageFolder, SourceFiles, _file_keys, safe_name
from mm1_pipeline.corpus.images import RejectedImage
from mm1_pipeline.ground.rejects import Rejected
from mm1_pipeline.streams.partition_writer import split_of
from mm1_pipeline.streams.shard_index import Split


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
                shares.append(progress.share_done(1, files, None))
    assert shares == [0.25, 0.5, 0.75, 1.0]
    files.expected_records = 8
    assert progress.share_done(2, files, None) == 0.25
    assert progress.share_done(2, files, 4) == 0.5


def test_without_a_terminal_progress_goes_to_the_log(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mm1_pipeline.ground.progress._LOG_SECONDS", 0.0)
    monkeypatch.setattr("mm1_pipeline.corpus.progress._ETA_AFTER", 0.0)
    files = SourceFiles(str(tmp_path))
    files.expected_records = 4
    with caplog.at_level(logging.INFO):
        items = list(progress.track_source([1, 2], "pictures", files, None))
    assert items == [1, 2]
    assert "pictures: 25 %, 1 records, " in caplog.text
    assert "pictures: 50 %, 2 records, " in caplog.text
    assert "records/s, ETA " in caplog.text
    assert "pictures: 2 records in " in caplog.text


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


def test_no_key_is_a_folder_of_another():
    names = ["a.tar", "a/b.tar", "a/b/c.tar", "a.tar/x.tar"]
    keys = list(_file_keys(names).values())
    assert len(set(keys)) == len(names)
    assert not [(x, y) for x in keys for y in keys if y.startswith(f"{x}/")]


def test_records_of_numbered_files_are_held_out():
    keys = _file_keys([f"part.{n}.parquet" for n in range(200)]).values()
    for seed in range(5):
        splits = [split_of("s", f"{key}/00000000", 0.1, seed) for key in keys]
        assert 5 < splits.count(Split.VALIDATION) < 45  # 20 are expected


@pytest.fixture
def odd_folder(tmp_path):
    """A folder with whatever a folder of this machine may hold."""
    folder = tmp_path / "raw"
    write_bytes(folder / "0.tar", b"x")
    write_bytes(folder / "sub" / "1.tar", b"x")
    write_bytes(tmp_path / "elsewhere" / "2.tar", b"x")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.tar").symlink_to(tmp_path / "nothing")
    (folder / "itself.tar").symlink_to(folder / "itself.tar")
    (folder / "sub" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.tar")
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    write_bytes(folder / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.tar"), b"x")
    write_bytes(folder / ".DS_Store", b"x")
    write_bytes(folder / "README", b"x")
    return folder


def test_links_and_pipes_of_a_source_are_named_and_not_opened(odd_folder):
    files = SourceFiles(str(odd_folder), patterns=("*.tar",))
    assert {file.key: file.unusable[:13] for file in files} == {
        "0": "",
        "caf\\xe9/\\xff": "",
        "dangling": "found a link ",
        "itself": "found a link ",
        "linked/2": "",
        "pipe": "found a pipe,",
        "sub/1": "",
    }
    for file in files:
        if file.unusable:
            with pytest.raises(Rejected, match="unreadable_file"):
                files.open(file)
        else:
            assert files.open(file).read() == b"x"
    assert [file.name for file in files.unread] == ["README"]
    assert [name for name, _ in files.listing()] == [file.name for file in files]


def test_ingest_lists_what_cannot_be_opened(odd_folder, tmp_path):
    result = run(tmp_path / "out", "caption", "img2dataset", odd_folder)
    assert result.rejected == {"unreadable_file": 7}
    assert result.report["passed_over"] == {"other_file": 1}
    assert result.report["files_passed_over"] == {"": 1}
    details = {row["key"]: row["detail"] for row in result.quarantine}
    assert details["pipe.tar"] == "found a pipe, a socket or a device, expected a file"


@pytest.mark.parametrize("follow_links", [False, True])
def test_names_in_data_do_not_leave_the_folder_of_images_by_links(tmp_path, follow_links):
    folder = tmp_path / "images"
    write_bytes(folder / "real" / "1.jpg", b"inside")
    write_bytes(tmp_path / "secret" / "2.jpg", b"outside")
    (folder / "in.jpg").symlink_to(folder / "real" / "1.jpg")
    (folder / "out.jpg").symlink_to(tmp_path / "secret" / "2.jpg")
    (folder / "far").symlink_to(tmp_path / "secret")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    images = ImageFolder(str(folder), 100, follow_links=follow_links)
    assert images.load(images.resolve("in.jpg")) == b"inside"
    for name in ("out.jpg", "far/2.jpg"):
        if follow_links:
            assert images.load(images.resolve(name)) == b"outside"
        else:
            with pytest.raises(RejectedImage, match="unsafe_path"):
                images.load(name)
    for name in ("gone.jpg", "pipe.jpg"):
        with pytest.raises(RejectedImage, match="image_missing"):
            images.resolve(name)


def test_files_that_are_not_read_are_counted(tmp_path, caplog):
    write_bytes(tmp_path / "raw" / "t.jsonl", b'{"text": "words"}')
    write_bytes(tmp_path / "raw" / "u.JSON.bz2", b"x" * 100)
    write_bytes(tmp_path / "raw" / "notes", b"x")
    result = run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text")
    assert result.report["passed_over"]["other_file"] == 2
    assert result.report["files_passed_over"] == {"": 1, ".json.bz2": 1}
    assert "101 bytes of the files" in caplog.text


def test_packed_archives_are_refused_before_anything_is_read(tmp_path):
    write_bytes(tmp_path / "raw" / "0.tar", b"x")
    write_bytes(tmp_path / "raw" / "1.tar.gz", b"x")
    with pytest.raises(ValueError, match=r"found 1\.tar\.gz"):
        run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")


def test_what_a_source_depends_on_is_told_by_its_name():
    def source(**options):
        return make_config({"s": {"path": "x", **options}}).sources["s"]

    tars = source(kind="caption", format="img2dataset")
    names = ("0.tar", "d/0.TAR", "0.parquet", "README", ".DS_Store", ".git/0.tar", "1.jpg")
    assert [is_read(tars, name) for name in names] == [True, True, True, *[False] * 4]
    chats = source(kind="conversation", format="llava")
    names = ("chat.json", "chat.jsonl.gz", "d/chat.json", "d/1.PNG", "README")
    assert [is_read(chats, name) for name in names] == [True, True, False, True, False]
