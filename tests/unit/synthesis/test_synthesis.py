"""Synthetic captions: measured concepts, any writer, nothing lost, nothing paid for twice."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image, ImageDraw

from mm1_pipeline.config.ingest import RecordKind, SourceConfig, SourceFormat
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig
from mm1_pipeline.config.synthesis import EndpointConfig, SynthesisConfig
from mm1_pipeline.corpus.records import (
    Record,
    RecordImage,
    RecordWriter,
    Segment,
    pretraining_sources,
    read_records,
    write_sources,
)
from mm1_pipeline.corpus.synthesis.cache import AnswerStore, CachedWriter
from mm1_pipeline.corpus.synthesis.concepts import detect_concepts
from mm1_pipeline.corpus.synthesis.endpoint import EndpointWriter
from mm1_pipeline.corpus.synthesis.synthesize import synthesize
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, TemplateWriter
from mm1_pipeline.ground.rejects import Reason, Rejected
from mm1_pipeline.streams.partition_writer import split_of, split_of_record

CONCEPTS = ("colours", "shape", "regions")


def picture(width: int, height: int, *boxes: tuple[str, tuple[int, int, int, int]]) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    for colour, box in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            picture(60, 60, ("red", (5, 5, 25, 25)), ("blue", (35, 35, 50, 50))),
            {"colours": "white, red and blue", "shape": "square", "regions": "two separate areas"},
        ),
        (
            picture(100, 50),
            {"colours": "white", "shape": "wide", "regions": "no separate areas"},
        ),
        (
            picture(40, 80, ("black", (0, 0, 39, 79)), ("yellow", (10, 20, 30, 40))),
            {"colours": "black and yellow", "shape": "tall", "regions": "one separate area"},
        ),
    ],
)
def test_concepts_are_what_the_pixels_say(image: Image.Image, expected: dict[str, str]) -> None:
    found = detect_concepts(image, CONCEPTS)
    assert found == expected
    assert detect_concepts(image, ("shape",)) == {"shape": expected["shape"]}


def test_regions_are_counted_as_far_as_words_go() -> None:
    places = [(9 * n, 9 * m) for n in range(1, 5) for m in range(1, 5)]
    many = picture(64, 64, *(("green", (x, y, x + 6, y + 6)) for x, y in places))
    specks = picture(64, 64, *(("green", (x, y, x + 1, y + 1)) for x, y in places))
    assert detect_concepts(many, ("regions",)) == {"regions": "many separate areas"}
    assert detect_concepts(specks, ("regions",)) == {"regions": "no separate areas"}


def test_templates_hold_the_alt_text_and_are_the_same_every_time() -> None:
    concepts = {"colours": "red", "shape": "wide", "regions": "two separate areas"}
    requests = [CaptionRequest(f"k{n}", " a red bus. ", concepts) for n in range(40)]
    captions = TemplateWriter().write(requests)
    assert captions == TemplateWriter().write(requests)
    assert all(isinstance(text, str) and "a red bus" in text for text in captions)
    assert len(set(captions)) == 4, "the keys choose among all sentences"
    bare = TemplateWriter().write([CaptionRequest("k", "a bus", {})])
    assert bare == ["A picture: a bus."]


def test_alt_text_cannot_write_into_the_prompt() -> None:
    request = CaptionRequest("k", "a {concepts} {alt_text} {x}", {"colours": "red"})
    prompt = request.prompt("Alt: {alt_text}\nSeen: {concepts}")
    assert prompt == "Alt: a {concepts} {alt_text} {x}\nSeen: colours: red"


# --- records -------------------------------------------------------------------------------


SOURCE = SourceConfig(kind=RecordKind.CAPTION, format=SourceFormat.IMAGE_PARQUET, path="-")


def write_pairs(folder: Path, captions: list[str]) -> Path:
    with RecordWriter(folder / "records" / "pairs", records_per_file=50) as writer:
        for number, caption in enumerate(captions):
            buffer = io.BytesIO()
            picture(20, 20, ("red", (number % 15, 2, 18, 9))).save(buffer, "PNG")
            data = buffer.getvalue()
            digest = hashlib.sha256(data).hexdigest()
            image = RecordImage(data, None, digest, 20, 20)
            segments = (Segment.of_image(0), Segment.of_text(caption))
            writer.write(
                Record("pairs", str(number), RecordKind.CAPTION, segments, (image,), (), {"a": 1})
            )
    write_sources(folder, {"pairs": SOURCE})
    return folder


@pytest.fixture
def records_dir(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "in", [f"a red box {n % 9}" for n in range(40)])


CONFIG = SynthesisConfig(sources=("pairs",), name="second")


def test_every_image_gets_a_second_caption_with_its_provenance(
    records_dir: Path, tmp_path: Path
) -> None:
    report = synthesize(CONFIG, TemplateWriter(), records_dir, tmp_path / "out")
    assert (report["read"], report["kept"], report["rejected"]) == (40, 40, {})
    assert pretraining_sources(tmp_path / "out") == {"second": RecordKind.CAPTION}
    pairs = zip(
        read_records(records_dir, "pairs"), read_records(tmp_path / "out", "second"), strict=True
    )
    for original, record in pairs:
        assert record.images == original.images
        alt_text, caption = original.segments[1].text, record.segments[1].text
        assert alt_text is not None
        assert caption is not None
        assert alt_text in caption
        assert caption != alt_text
        about = record.metadata["synthetic"]
        assert (about["writer"], about["version"], about["alt_text"]) == ("template", 1, alt_text)
        assert set(about["concepts"]) == set(CONCEPTS)
        assert len(about["prompt_sha256"]) == 64
        assert record.metadata["synthetic_of"] == {"source": "pairs", "key": original.key}
        assert record.metadata["a"] == 1


def test_other_sentences_are_written_although_there_is_a_cache(
    records_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit of the code reruns the node; answers of before would hide it."""
    config = replace(CONFIG, cache=str(tmp_path / "answers.sqlite"))
    synthesize(config, TemplateWriter(), records_dir, tmp_path / "1")
    monkeypatch.setattr(TemplateWriter, "_sentence", lambda self, request: f"Now {request.key}.")
    synthesize(config, TemplateWriter(), records_dir, tmp_path / "2")
    texts = [record.segments[1].text for record in read_records(tmp_path / "2", "second")]
    assert len(texts) == 40
    assert all(text is not None and text.startswith("Now ") for text in texts)


def test_an_image_is_held_out_with_both_of_its_captions(records_dir: Path, tmp_path: Path) -> None:
    """Or training would see held-out images."""
    synthesize(CONFIG, TemplateWriter(), records_dir, tmp_path / "out")
    config = ShardConfig(
        packing=PackingConfig(sequence_length=64, image_tokens=4),
        image=ImageTransform(size=16),
        validation_fraction=0.3,
    )
    seen = set()
    for original in read_records(records_dir, "pairs"):
        seen.add(split_of("pairs", original.key, 0.3, 0))
    for record in read_records(tmp_path / "out", "second"):
        origin = record.metadata["synthetic_of"]["key"]
        assert split_of_record(record, config) == split_of("pairs", origin, 0.3, 0)
    assert len(seen) == 2


def test_without_sources_there_is_nothing(records_dir: Path, tmp_path: Path) -> None:
    report = synthesize(SynthesisConfig(), TemplateWriter(), records_dir, tmp_path / "out")
    assert report["sources"] == []
    assert pretraining_sources(tmp_path / "out") == {}
    # A recipe may read captions that others wrote under the very name.
    synthesize(SynthesisConfig(name="pairs"), TemplateWriter(), records_dir, tmp_path / "again")


def test_wrong_sources_are_named(records_dir: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, sources=("books",))
    with pytest.raises(ValueError, match=r"found 'books', expected caption sources.*: pairs"):
        synthesize(config, TemplateWriter(), records_dir, tmp_path / "out")
    write_sources(records_dir, dict.fromkeys(("pairs", "second"), SOURCE))
    with pytest.raises(ValueError, match="found 'second', which is a source of `ingest`"):
        synthesize(CONFIG, TemplateWriter(), records_dir, tmp_path / "out")
    with pytest.raises(ValueError, match="found 'pairs', expected letters"):
        replace(CONFIG, name="pairs")
    with pytest.raises(ValueError, match=r"instruction: found no \{concepts\}"):
        replace(CONFIG, instruction="Rewrite {alt_text}")
    with pytest.raises(ValueError, match="local: found no checkpoint"):
        replace(CONFIG, writer="local")
    with pytest.raises(ValueError, match="base_url: found 'file:///x'"):
        EndpointConfig(base_url="file:///x")


# --- an endpoint on loopback -----------------------------------------------------------------


class FakeModel(BaseHTTPRequestHandler):
    """Answers with the alt text in capitals; words in it ask for trouble."""

    requests: ClassVar[list[dict[str, Any]]] = []
    headers_seen: ClassVar[list[str | None]] = []
    lock = threading.Lock()
    active = peak = 0

    def do_POST(self) -> None:
        cls = type(self)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with cls.lock:
            cls.requests.append(content)
            cls.headers_seen.append(self.headers.get("Authorization"))
            cls.active += 1
            cls.peak = max(cls.peak, cls.active)
        prompt = content["messages"][0]["content"]
        tries = sum(request == content for request in cls.requests)
        time.sleep(0.01)
        text = prompt.split("Alt text: ")[1].split("\n")[0].upper()
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        status = 200
        match text.split()[0]:
            case "FLAKY" if tries < 3:
                status = 503 if tries == 1 else 429
            case "REFUSED":
                status = 400
            case "FORBIDDEN":
                status = 401
            case "DOWN":
                status = 500
            case "NONSENSE":
                body = b'{"choices": []}'
            case "EMPTY":
                body = b'{"choices": [{"message": {"content": " \\n "}}]}'
            case "HUGE":
                body = b"0" * 2_000_000
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        with cls.lock:
            cls.active -= 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointConfig]:
    monkeypatch.setattr("mm1_pipeline.corpus.synthesis.endpoint._BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("TEST_KEY", "secret-word")
    FakeModel.requests, FakeModel.headers_seen = [], []
    FakeModel.active = FakeModel.peak = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield EndpointConfig(
        base_url=f"http://127.0.0.1:{server.server_port}/v1/",
        model="tiny",
        key_variable="TEST_KEY",
        num_retries=3,
        concurrency=3,
    )
    server.shutdown()
    server.server_close()


def test_an_endpoint_writes_and_each_failure_is_counted(
    endpoint: EndpointConfig, tmp_path: Path
) -> None:
    alt_texts = ["a cat", "flaky dog", "refused", "down", "nonsense", "empty", "huge", "a bird"]
    records = write_pairs(tmp_path / "in", alt_texts)
    config = replace(CONFIG, writer="endpoint", endpoint=endpoint)
    writer = EndpointWriter(endpoint, config.instruction)
    report = synthesize(config, writer, records, tmp_path / "out")
    assert (report["read"], report["kept"]) == (8, 3)
    assert report["rejected"] == {"rewrite_failed": 4, "text_missing": 1}
    found = list(read_records(tmp_path / "out", "second"))
    assert [record.segments[1].text for record in found] == ["A CAT", "FLAKY DOG", "A BIRD"]
    assert found[0].metadata["synthetic"]["model"] == "tiny"
    assert set(FakeModel.headers_seen) == {"Bearer secret-word"}
    assert FakeModel.peak <= 3
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"secret-word" not in written + json.dumps(report).encode()
    sent = FakeModel.requests[0]
    assert (sent["model"], sent["temperature"]) == ("tiny", 0.0)
    assert "colours: " in sent["messages"][0]["content"]


def test_a_rerun_pays_for_nothing(endpoint: EndpointConfig, tmp_path: Path) -> None:
    records = write_pairs(tmp_path / "in", ["a cat", "a cat", "a dog", "down"])
    cache = str(tmp_path / "cache" / "answers.sqlite")
    config = replace(CONFIG, writer="endpoint", endpoint=endpoint, cache=cache)
    for number in (1, 2):
        FakeModel.requests.clear()
        writer = EndpointWriter(endpoint, config.instruction)
        synthesize(config, writer, records, tmp_path / str(number))
        if number == 2:
            asked = [r["messages"][0]["content"] for r in FakeModel.requests]
            assert asked
            assert all("Alt text: down" in prompt for prompt in asked), "failures only"
    one, two = (
        [(r.key, r.segments[1].text) for r in read_records(tmp_path / str(n), "second")]
        for n in (1, 2)
    )
    assert one == two
    FakeModel.requests.clear()
    other = replace(endpoint, model="other")
    writer = EndpointWriter(other, config.instruction)
    synthesize(replace(config, endpoint=other), writer, records, tmp_path / "3")
    assert len(FakeModel.requests) > 3, "another model's answers are other answers"


def test_equal_prompts_are_asked_once(endpoint: EndpointConfig) -> None:
    request = CaptionRequest("k", "a cat", {"shape": "wide"})
    with AnswerStore(None) as store:
        writer = CachedWriter(EndpointWriter(endpoint, SynthesisConfig().instruction), store)
        assert writer.write([request] * 5) == ["A CAT"] * 5
    assert len(FakeModel.requests) == writer.num_asked == 1


def test_a_wrong_key_stops_the_run(endpoint: EndpointConfig) -> None:
    writer = EndpointWriter(endpoint, SynthesisConfig().instruction)
    with pytest.raises(ValueError, match=r"answered with status 401; check .* TEST_KEY") as caught:
        writer.write([CaptionRequest("k", "forbidden", {})])
    assert "secret-word" not in str(caught.value)


def test_an_endpoint_that_is_away_is_a_rejection(endpoint: EndpointConfig) -> None:
    away = replace(endpoint, base_url="http://127.0.0.1:9/v1", num_retries=1)
    writer = EndpointWriter(away, SynthesisConfig().instruction)
    (found,) = writer.write([CaptionRequest("k", "a cat", {})])
    assert isinstance(found, Rejected)
    assert found.reason == Reason.REWRITE_FAILED


def test_a_full_disk_is_told_as_of_any_other_file(tmp_path):
    file = tmp_path / "answers.sqlite"
    with AnswerStore(file) as store:
        store.keep({"a": "kept"})
        store._database.execute("PRAGMA max_page_count = 2")  # which SQLite calls a full disk
        with pytest.raises(OSError, match="No space left on device") as told:
            store.keep({str(n): "x" * 1_000 for n in range(100)})
        assert told.value.errno == errno.ENOSPC
        assert told.value.filename == str(file)
        assert store.find("a") == "kept"
        assert store.find("1") is None
