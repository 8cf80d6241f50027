"""Each reader on a tiny source: what a good record becomes."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
import zstandard
from corpus_builders import (
    page,
    picture,
    run,
    sample,
    warc_record,
    write_bytes,
    write_json,
    write_parquet,
    write_tar,
    write_warc,
)

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.corpus.records import Role, SegmentType


def test_img2dataset_takes_image_caption_and_metadata(tmp_path):
    data = picture()
    members = sample("000000001", data, " a red dog ", url="http://x/1.jpg", width=120, extra=[1])
    write_tar(tmp_path / "raw" / "00000.tar", members)
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    (record,) = result.records
    assert record.key == "00000/000000001"
    assert record.kind == RecordKind.CAPTION
    assert [s.type for s in record.segments] == [SegmentType.IMAGE, SegmentType.TEXT]
    assert record.segments[1].text == "a red dog"
    image = record.images[0]
    assert (image.bytes, image.url, image.width, image.height) == (data, "http://x/1.jpg", 120, 100)
    assert record.metadata == {"url": "http://x/1.jpg", "width": 120, "extra": [1]}
    assert record.references == ()
    assert (result.report["read"], result.report["kept"], result.rejected) == (1, 1, {})


def test_img2dataset_prefers_the_configured_field_to_the_text(tmp_path):
    members = sample("1", picture(), "alt text", synthetic="a fluent caption")
    write_tar(tmp_path / "raw" / "0.tar", members + sample("2", picture(2), "only alt text"))
    result = run(
        tmp_path / "out", "caption", "img2dataset", tmp_path / "raw", text_column="synthetic"
    )
    assert result.texts == ["[image]|a fluent caption", "[image]|only alt text"]


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for number in (10, 2, 1):
        members = sample("k", picture(number), f"shard {number}")
        write_tar(tmp_path / "raw" / f"{number:05d}.tar", members)
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    assert [r.key for r in result.records] == ["00001/k", "00002/k", "00010/k"]


@pytest.mark.parametrize("layout", ["bytes", "struct", "large"])
def test_image_parquet_takes_bytes_and_hugging_face_structs(tmp_path, layout):
    data = picture()
    value = {"bytes": data, "path": "1.jpg"} if layout == "struct" else data
    rows = [{"jpg": value, "text": "a cat", "license": "CC0", "seen": None}]
    schema = None
    if layout == "large":
        schema = pa.schema([("jpg", pa.large_binary()), ("text", pa.large_string())])
    write_parquet(tmp_path / "raw" / "a" / "t.parquet", rows, schema)
    result = run(
        tmp_path / "out",
        "caption",
        "image_parquet",
        tmp_path / "raw",
        image_column="jpg",
        text_column="text",
    )
    (record,) = result.records
    assert record.key == "a/t/00000000"
    assert record.images[0].bytes == data
    assert record.metadata == ({} if layout == "large" else {"license": "CC0"})


def test_interleaved_parquet_keeps_the_order_and_the_urls(tmp_path):
    first, second = picture(1), picture(2)
    rows = [
        {
            "texts": ["before", None, None, "after", None],
            "images": [None, first, second, None, None],
            "metadata": json.dumps([None, {"src": "http://x/1.jpg"}, {"src": None}, None, None]),
            "general_metadata": json.dumps({"url": "http://x/"}),
        }
    ]
    schema = pa.schema(
        [
            ("texts", pa.list_(pa.string())),
            ("images", pa.list_(pa.binary())),
            ("metadata", pa.string()),
            ("general_metadata", pa.string()),
        ]
    )
    write_parquet(tmp_path / "raw" / "t.parquet", rows, schema)
    result = run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw")
    (record,) = result.records
    assert result.texts == ["before|[image]|[image]|after"]
    assert [s.image for s in record.segments] == [None, 0, 1, None]
    assert [image.bytes for image in record.images] == [first, second]
    assert [image.url for image in record.images] == ["http://x/1.jpg", None]


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "sub/b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "one"},
        {"id": 2, "image_id": 3, "caption": "two"},
        {"id": 5, "image_id": 7, "caption": "three"},
    ],
}


def write_coco(folder, content=COCO):
    write_json(folder / "annotations" / "captions_val.json", content)
    write_bytes(folder / "images" / "a.jpg", picture(1))
    write_bytes(folder / "images" / "sub" / "b.jpg", picture(2))
    return folder


def test_coco_evaluation_has_all_captions_of_an_image_as_references(tmp_path):
    path = write_coco(tmp_path / "raw")
    result = run(tmp_path / "out", "caption", "coco_captions", path, split="evaluation")
    assert [r.references for r in result.records] == [("one", "three"), ("two",)]
    assert result.texts == ["[image]", "[image]"]
    assert [r.metadata["image_id"] for r in result.records] == [7, 3]
    assert [r.key for r in result.records] == [f"annotations/captions_val/{i}" for i in (7, 3)]


def test_coco_training_makes_a_pair_of_every_caption(tmp_path):
    path = write_coco(tmp_path / "raw")
    result = run(tmp_path / "out", "caption", "coco_captions", path)
    assert result.texts == ["[image]|one", "[image]|three", "[image]|two"]
    assert all(record.references == () for record in result.records)
    assert result.report["read"] == 3


def test_annotations_and_images_may_lie_apart(tmp_path):
    write_coco(tmp_path / "raw")
    (tmp_path / "raw" / "images").rename(tmp_path / "val2014")
    result = run(
        tmp_path / "out",
        "caption",
        "coco_captions",
        tmp_path / "raw" / "annotations" / "captions_val.json",
        image_path=str(tmp_path / "val2014"),
    )
    assert result.report["kept"] == 3


def vqa_files(questions, annotations):
    return {"questions": questions}, {"annotations": annotations}


def annotation(question_id, *answers, chosen=None):
    return {
        "question_id": question_id,
        "image_id": 42,
        "answer_type": "other",
        "multiple_choice_answer": chosen or answers[0],
        "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers, 1)],
    }


def write_vqa(folder, questions, annotations):
    asked, answered = vqa_files(questions, annotations)
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", asked)
    write_json(folder / "v2_mscoco_val2014_annotations.json", answered)
    write_bytes(folder / "val2014" / "COCO_val2014_000000000042.jpg", picture())
    return folder


def test_vqa_evaluation_keeps_ten_answers(tmp_path):
    answers = ["red"] * 8 + ["dark red", "crimson"]
    path = write_vqa(
        tmp_path / "raw",
        [{"question_id": 9, "image_id": 42, "question": "What colour is it?"}],
        [annotation(9, *answers)],
    )
    result = run(tmp_path / "out", "conversation", "vqa_v2", path, split="evaluation")
    (record,) = result.records
    assert record.references == tuple(answers)
    assert result.texts == ["[image]|What colour is it?"]
    assert {s.role for s in record.segments} == {Role.HUMAN}
    assert record.metadata["question_id"] == 9
    assert record.metadata["multiple_choice_answer"] == "red"


def test_vqa_training_teaches_the_commonest_answer(tmp_path):
    path = write_vqa(
        tmp_path / "raw",
        [{"question_id": 9, "image_id": 42, "question": "What colour is it?"}],
        [annotation(9, "crimson", "red", "red", chosen="red")],
    )
    result = run(tmp_path / "out", "conversation", "vqa_v2", path)
    (record,) = result.records
    prompt = "What colour is it?\nAnswer the question using a single word or phrase."
    assert result.texts == [f"[image]|{prompt}|red"]
    assert record.segments[2].role == Role.ASSISTANT
    assert record.references == ()


def test_one_split_is_chosen_by_the_names_of_its_files(tmp_path):
    question = {"question_id": 9, "image_id": 42, "question": "What?"}
    path = write_vqa(tmp_path / "raw", [question], [annotation(9, "a")])
    write_json(path / "train2014_questions.json", {"questions": [{**question, "question_id": 1}]})
    write_json(path / "train2014_annotations.json", {"annotations": [annotation(1, "a")]})
    result = run(
        tmp_path / "out", "conversation", "vqa_v2", path, split="evaluation", files="*val2014*"
    )
    assert [r.metadata["question_id"] for r in result.records] == [9]


LLAVA = [
    {
        "id": "a",
        "image": "1.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A dog."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    },
    {
        "id": "b",
        "image": ["1.jpg", "images/2.jpg"],
        "conversations": [
            {"from": "user", "value": "Compare <image> and <image> please."},
            {"from": "assistant", "value": "They differ."},
        ],
    },
    {
        "id": "c",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    },
]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_puts_images_at_their_tags(tmp_path, suffix):
    text = json.dumps(LLAVA) if suffix == "json" else "\n".join(map(json.dumps, LLAVA))
    write_bytes(tmp_path / "raw" / f"chat.{suffix}", text.encode())
    write_bytes(tmp_path / "raw" / "images" / "1.jpg", picture(1))
    write_bytes(tmp_path / "raw" / "images" / "2.jpg", picture(2))
    result = run(tmp_path / "out", "conversation", "llava", tmp_path / "raw")
    assert result.texts == [
        "[image]|What is it?|A dog.|Sure?|Yes.",
        "Compare|[image]|and|[image]|please.|They differ.",
        "Hi|Hello",
    ]
    human, assistant = Role.HUMAN, Role.ASSISTANT
    assert [s.role for s in result.records[0].segments] == [human] * 2 + [
        assistant,
        human,
        assistant,
    ]
    assert [s.image for s in result.records[1].segments] == [None, 0, None, 1, None, None]
    assert [r.metadata["id"] for r in result.records] == ["a", "b", "c"]


def test_llava_exchanges_may_become_conversations_with_the_images_shown_so_far(tmp_path):
    later = {
        "id": "d",
        "image": ["1.jpg", "2.jpg"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A dog."},
            {"from": "human", "value": "And <image>?"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    write_json(tmp_path / "raw" / "chat.json", [*LLAVA, later])
    write_bytes(tmp_path / "raw" / "images" / "1.jpg", picture(1))
    write_bytes(tmp_path / "raw" / "images" / "2.jpg", picture(2))
    result = run(tmp_path / "out", "conversation", "llava", tmp_path / "raw", split_exchanges=True)
    assert result.rejected == {}
    assert result.texts == [
        "[image]|What is it?|A dog.",
        "[image]|Sure?|Yes.",
        "Compare|[image]|and|[image]|please.|They differ.",
        "Hi|Hello",
        "Be brief.|[image]|What?|A dog.",
        "Be brief.|[image]|And|[image]|?|A cat.",
    ]
    images = [[s.image for s in r.segments if s.image is not None] for r in result.records]
    assert images == [[0], [0], [0, 1], [], [0], [0, 1]]
    assert [len(r.images) for r in result.records] == [1, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("packing", ["plain", "gz", "zst", "zst_frames"])
def test_jsonl_plain_and_packed(tmp_path, packing):
    lines = [{"text": "first\nline", "n": 1}, {"text": "zweite", "n": 2.5}, {"text": "第三"}]
    data = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    middle = data.index(b"zweite")
    packed, name = {
        "plain": (data, "t.jsonl"),
        "gz": (gzip.compress(data), "t.jsonl.gz"),
        "zst": (zstandard.compress(data), "t.jsonl.zst"),
        "zst_frames": (
            zstandard.compress(data[:middle]) + zstandard.compress(data[middle:]),
            "t.jsonl.zst",
        ),
    }[packing]
    write_bytes(tmp_path / "raw" / name, packed)
    result = run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text")
    assert result.texts == ["first\nline", "zweite", "第三"]
    assert [r.key for r in result.records] == ["t/00000001", "t/00000003", "t/00000005"]
    assert [dict(r.metadata) for r in result.records] == [{"n": 1}, {"n": 2.5}, {}]


def test_warc_pages_find_their_images_in_any_archive(tmp_path):
    first, second = picture(1), picture(2)
    body = page('<p>One</p><img src="/i/1.jpg"><p>Two</p><img src="i/two words.jpg"><p>Three</p>')
    write_warc(
        tmp_path / "raw" / "a.warc.gz",
        [
            warc_record("http://x/d/p.html", body),
            warc_record("http://x/i/1.jpg", first, "image/jpeg"),
            warc_record("http://x/metadata", b"ignored", kind="metadata"),
        ],
    )
    write_warc(
        tmp_path / "raw" / "b.warc",
        [warc_record("http://x/d/i/two%20words.jpg", second, "image/jpeg")],
        packed=False,
    )
    result = run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw")
    (record,) = result.records
    assert result.texts == ["One|[image]|Two|[image]|Three"]
    assert [image.bytes for image in record.images] == [first, second]
    assert record.images[1].url == "http://x/d/i/two%20words.jpg"
    assert record.metadata == {"url": "http://x/d/p.html", "title": "T"}


def test_warc_bodies_are_unpacked_and_redirects_followed(tmp_path):
    data = picture()
    latin = page("<p>Caf~</p><img src='http://x/old.jpg'>").replace(b"~", b"\xe9")
    write_warc(
        tmp_path / "raw" / "a.warc.gz",
        [
            warc_record(
                "http://x/1",
                gzip.compress(latin),
                "text/html; charset=iso-8859-1",
                headers={"Content-Encoding": "gzip"},
            ),
            warc_record(
                "http://x/2",
                b"9\r\n"
                + latin[:9]
                + b"\r\n%x\r\n" % len(latin[9:])
                + latin[9:]
                + b"\r\n0\r\n\r\n",
                "text/html; charset=windows-1252",
                headers={"Transfer-Encoding": "chunked"},
            ),
            warc_record("http://x/old.jpg", b"", "", "301 Moved", {"Location": "/new.jpg"}),
            warc_record(
                "http://x/new.jpg",
                zstandard.compress(data),
                "image/jpeg",
                headers={"Content-Encoding": "zstd"},
            ),
        ],
    )
    result = run(
        tmp_path / "out",
        "interleaved",
        "warc_html",
        tmp_path / "raw",
        top={"deduplication": {"exact": False}},
    )
    assert result.texts == ["Café|[image]", "Café|[image]"]
    assert result.records[0].images[0].bytes == data


def test_the_same_image_shown_twice_on_a_page_is_read_once_and_kept_once(tmp_path):
    body = page('<p>a</p><img src="1.jpg"><p>b</p><img src="1.jpg"><p>c</p><img src="copy.jpg">')
    write_warc(
        tmp_path / "raw" / "a.warc.gz",
        [
            warc_record("http://x/p", body),
            warc_record("http://x/1.jpg", picture(), "image/jpeg"),
            warc_record("http://x/copy.jpg", picture(), "image/jpeg"),
        ],
    )
    result = run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw")
    assert result.texts == ["a|[image]|b\n\nc"]
    assert result.report["images"] == {"read": 3, "kept": 1, "rejected": {"image_repeated": 2}}


def test_metadata_that_json_lacks_is_stored_all_the_same(tmp_path):
    lines = [b'{"text": "a", "score": NaN, "half": "\\ud83d", "deep": {"n": Infinity}}']
    write_bytes(tmp_path / "raw" / "t.jsonl", b"\n".join(lines))
    result = run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text")
    assert result.records[0].metadata == {"score": None, "half": "\\ud83d", "deep": {"n": None}}


def test_a_source_may_be_one_file_and_any_fsspec_url(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    with fs.open("/corpus/t.jsonl", "wb") as file:
        file.write(b'{"text": "from afar"}\n')
    try:
        for path in ("memory://corpus/t.jsonl", "memory://corpus"):
            result = run(tmp_path / path[-5:], "text", "jsonl", path, text_column="text")
            assert result.texts == ["from afar"]
            assert result.records[0].key == "t/00000001"
    finally:
        fs.rm("/corpus", recursive=True)


@pytest.mark.parametrize("source_format", ["img2dataset", "image_parquet"])
def test_evaluation_pairs_have_their_caption_as_reference(tmp_path, source_format):
    write_tar(tmp_path / "raw" / "0.tar", sample("1", picture(), "a dog"))
    write_parquet(tmp_path / "raw" / "0.parquet", [{"image": picture(), "caption": "a dog"}])
    path = tmp_path / "raw"
    result = run(tmp_path / "out", "caption", source_format, path, split="evaluation")
    (record,) = result.records
    assert result.texts == ["[image]"]
    assert record.references == ("a dog",)


MMC4 = pa.schema(
    [
        ("text_list", pa.list_(pa.string())),
        (
            "image_info",
            pa.list_(
                pa.struct(
                    [
                        ("matched_text_index", pa.int64()),
                        ("raw_url", pa.string()),
                        ("bytes", pa.binary()),
                    ]
                )
            ),
        ),
        ("url", pa.string()),
    ]
)


def mmc4_image(place, seed, url=None):
    data = None if seed is None else picture(seed)
    return {"matched_text_index": place, "raw_url": url, "bytes": data}


def test_mmc4_puts_images_before_their_sentences(tmp_path):
    rows = [
        {
            "text_list": ["One.", "Two.", "Three."],
            "image_info": [mmc4_image(2, 1), mmc4_image(0, 2, "http://x/2.jpg"), mmc4_image(2, 3)],
            "url": "http://x/page",
        },
        {"text_list": ["One."], "image_info": [mmc4_image(1, 1)]},
        {"text_list": ["One.", None], "image_info": [mmc4_image(0, 1)]},
        {"text_list": ["One."], "image_info": [mmc4_image(0, None), mmc4_image(0, 4)]},
    ]
    write_parquet(tmp_path / "raw" / "0.parquet", rows, MMC4)
    result = run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw")
    assert result.texts == ["[image]|One. Two.|[image]|[image]|Three.", "[image]|One."]
    assert result.rejected == {"malformed_record": 2}
    assert result.report["images"]["rejected"] == {"image_missing": 1}
    first = result.records[0]
    assert [image.url for image in first.images] == ["http://x/2.jpg", None, None]
    assert first.metadata == {"url": "http://x/page"}


def test_omnicorpus_names_urls_in_a_list_of_structs(tmp_path):
    rows = [
        {
            "texts": ["a", None],
            "images": [None, {"bytes": picture(), "path": "x"}],
            "metadata": [None, {"src": "http://x/1.jpg"}],
        }
    ]
    write_parquet(tmp_path / "raw" / "0.parquet", rows)
    result = run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw")
    assert result.records[0].images[0].url == "http://x/1.jpg"


def test_mmc4_of_urls_alone_is_refused_with_what_to_do(tmp_path):
    rows = [{"text_list": ["a"], "image_info": [{"matched_text_index": 0, "raw_url": "u"}]}]
    write_parquet(tmp_path / "raw" / "0.parquet", rows)
    with pytest.raises(ValueError, match="fetch them first with the stage `download`"):
        run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw")
