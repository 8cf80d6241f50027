"""What counts of the files and folders that parameters name."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import types
from pathlib import Path

import pytest
from kedro_rerun.hash_cache import HashCache
from kedro_rerun.inputs import Selection, path_digest, path_state
from kedro_rerun.parameters import INPUT_PATH, flatten_parameters

from mm1_pipeline import config
from mm1_pipeline.config import ingest
from mm1_pipeline.config.ingest import SourceConfig, SourceFormat
from mm1_pipeline.corpus.files import ImageFolder
from mm1_pipeline.corpus.readers.dispatch import input_listing

LITTER = (
    *(".DS_Store", "._0.json", ".git/config", "README", "readme.txt", "README.md", "LICENSE"),
    *("Thumbs.db", "desktop.ini", "deep/.DS_Store", "deep/notes.md", "CITATION.cff"),
)


def fields_of_inputs() -> list:
    """Every field of the project's parameters that names an input."""
    modules = [
        importlib.import_module(f"{config.__name__}.{module.name}")
        for module in pkgutil.iter_modules(config.__path__)
    ]
    groups = {
        (value.__module__, value.__qualname__): value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    found = [
        pytest.param(group, field.name, id=f"{group.__name__}.{field.name}")
        for _, group in sorted(groups.items())
        for field in dataclasses.fields(group)
        if INPUT_PATH in field.metadata
    ]
    assert len(found) > 15
    return found


def selection(group: type, name: str, folder: Path) -> Selection:
    """What counts of a folder that a parameter names."""
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    owner = types.SimpleNamespace(
        format=SourceFormat.COCO_CAPTIONS, files="*", image_path=None, follow_image_links=False
    )
    return Selection(*field.metadata[INPUT_PATH](owner, str(folder)))


def write(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(("group", "name"), fields_of_inputs())
def test_what_lies_beside_data_makes_nothing_stale(group, name, tmp_path):
    folder = tmp_path / "raw"
    write(folder / "captions_1.json")
    image = write(folder / "deep" / "1.jpg")
    counted, cache = selection(group, name, folder), HashCache()
    before = path_digest(counted, cache), path_state(counted)
    for litter in LITTER:
        write(folder / litter)
    assert (path_digest(counted, cache), path_state(counted)) == before
    image.write_text("y")
    assert path_digest(counted, cache) != before[0]
    assert path_state(counted) != before[1]


@pytest.mark.parametrize(("group", "name"), fields_of_inputs())
def test_what_is_no_file_is_neither_opened_nor_followed_for_ever(group, name, tmp_path):
    folder = tmp_path / "raw"
    write(folder / "captions_1.json")
    write(folder / "deep" / "1.jpg")
    counted = selection(group, name, folder)
    before = path_digest(counted, HashCache())
    os.mkfifo(folder / "captions_pipe.jpg")
    os.mkfifo(folder / "captions_pipe.json")
    os.symlink("nowhere", folder / "captions_gone.jpg")
    os.symlink("captions_self.jpg", folder / "captions_self.jpg")
    os.symlink(folder, folder / "deep" / "around")
    with_links = path_digest(counted, HashCache())
    assert with_links != before, "their names count: readers reject and count them"
    assert path_digest(counted, HashCache()) == with_links
    assert path_state(counted) == path_state(counted)
    (folder / "captions_gone.jpg").unlink()
    write(folder / "captions_gone.jpg")
    assert path_digest(counted, HashCache()) != with_links


@pytest.mark.parametrize("follows", [False, True])
def test_links_out_of_a_folder_of_images_count_as_they_are_followed(follows, tmp_path):
    folder, outside = tmp_path / "raw", tmp_path / "outside"
    write(folder / "1.jpg")
    image = write(outside / "2.jpg")
    os.symlink(outside, folder / "out")
    os.symlink(image, folder / "2.jpg")
    owner = types.SimpleNamespace(follow_image_links=follows)
    field = next(f for f in dataclasses.fields(SourceConfig) if f.name == "image_path")
    counted = Selection(*field.metadata[INPUT_PATH](owner, str(folder)))
    before = path_digest(counted, HashCache())
    image.write_text("changed")
    assert (path_digest(counted, HashCache()) != before) == follows
    images = ImageFolder(str(folder), 100, follow_links=follows)
    for name in ("2.jpg", "out/2.jpg"):
        if follows:
            assert images.load(name) == b"changed"
        else:
            with pytest.raises(ValueError, match="leads out of the folder"):
                images.load(name)


@pytest.mark.parametrize("layout", list(SourceFormat))
def test_all_that_a_source_reads_counts_and_nothing_else(layout, tmp_path):
    """What the readers list by their own rule, and what a change of it must bring."""
    source = SourceConfig(kind=layout.layout.kind, format=layout, path=str(tmp_path))
    pattern = layout.layout.files[0]
    for name in (pattern.replace("*", "1"), f"d/{pattern.replace('*', '2')}", "0.parquet"):
        write(tmp_path / name)
    for name in ("3.jpg", "d/4.PNG", "5", "6.weird", "7.tar", "8.json", *LITTER):
        write(tmp_path / name)
    read = {name for name, _ in input_listing(source)}
    counted = flatten_parameters(source, "s").inputs()["s.path"]
    cache = HashCache()
    before = path_digest(counted, cache)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.write_bytes(b"other content")
        name = path.relative_to(tmp_path).as_posix()
        assert (path_digest(counted, cache) != before) == (name in read), name
        path.write_bytes(whole)
    assert read


def test_images_beside_a_file_of_annotations_count(tmp_path):
    """The file was the path, so that its images could be exchanged unseen."""
    file, image = write(tmp_path / "captions.json"), write(tmp_path / "images" / "1.jpg")
    other = write(tmp_path / "captions_2.json")
    kind = ingest.RecordKind.CAPTION
    source = SourceConfig(kind=kind, format=SourceFormat.COCO_CAPTIONS, path=str(file))
    counted = flatten_parameters(source, "s").inputs()["s.path"]
    before = path_digest(counted, HashCache())
    other.write_text("not read")
    assert path_digest(counted, HashCache()) == before
    image.write_text("y")
    assert path_digest(counted, HashCache()) != before
    table, shard = write(tmp_path / "0.parquet"), write(tmp_path / "0.tar")
    source = SourceConfig(kind=kind, format=SourceFormat.IMG2DATASET, path=str(shard))
    counted = flatten_parameters(source, "s").inputs()["s.path"]
    before = path_digest(counted, HashCache())
    table.write_text("y")
    assert path_digest(counted, HashCache()) != before
