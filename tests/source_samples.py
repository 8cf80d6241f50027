"""Samples of every format of raw sources: all that the tests need to try a new one.

`Writer` writes a source of any number of entries, called as a test likes, and has a method a
format; `FORMATS` says what its files may be called. Sets for fine-tuning have an entry in `SETS`
as well, with the conversation that is expected of them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(content: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (120, 100), (content % 256, content // 256, 200)).save(buffer, kind)
    return buffer.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Writer:
    """Writes files of one format; counts the rows and members that it puts in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0

    def next_row(self) -> int:
        self.rows += 1
        return self.rows

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def img2dataset(self, name: str, entries: list[str]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for entry in entries:
                row = self.next_row()
                name_of_sample = entry.replace("\ud800", "") + "_"
                for suffix, data in ((".png", picture(row)), (".txt", b"text %d" % row)):
                    info = tarfile.TarInfo(name_of_sample + suffix)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        self.write(name, buffer.getvalue())

    def jsonl(self, name: str, entries: list[str]) -> None:
        lines = [
            json.dumps({"caption": f"text {self.next_row()}", entry: entry}).encode()
            for entry in entries
        ]
        self.write(name, b"\n".join(lines))

    def image_parquet(self, name: str, entries: list[str]) -> None:
        rows = [(self.next_row(), entry) for entry in entries]
        columns = {
            "image": [picture(row) for row, _ in rows],
            "caption": [f"text {row}" for row, _ in rows],
            "url": [entry.encode("utf-8", "ignore").decode() for _, entry in rows],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        self.write(name, buffer.getvalue())

    def images(self, entries: list[str]) -> list[str]:
        """An image file of every entry; gives their names."""
        names = []
        for entry in entries:
            row = self.next_row()
            safe = entry.replace("/", "_").replace("\0", "0").replace("\ud800", "\udcd8")
            names.append(f"i{safe[:60]}{row}.png")
            self.write(f"images/{names[-1]}", picture(row))
        return names

    def image_csv(self, name: str, entries: list[str]) -> None:
        buffer = io.StringIO()
        sign = "\t" if ".tsv" in name.lower() else ","
        table = csv.writer(buffer, delimiter=sign)
        table.writerow(["image", "caption", "note"])
        for entry, image in zip(entries, self.images(entries), strict=True):
            note = entry.replace("\0", "0")
            table.writerow([self.said(image), f"text, {self.rows}", note])
        self.write(name, buffer.getvalue().encode("utf-8", "surrogatepass"))

    def llava(self, name: str, entries: list[str]) -> None:
        turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "it"}]
        content = [
            {"id": entry, "image": self.said(image), "conversations": turns}
            for entry, image in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps(content).encode())

    def dvqa(self, name: str, entries: list[str]) -> None:
        content = [
            {"question_id": e, "question": "q", "answer": "a", "image": self.said(i)}
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps(content).encode())

    def gqa(self, name: str, entries: list[str]) -> None:
        pairs = [
            f"{json.dumps(e)}: {json.dumps({'imageId': i[:-4], 'question': 'q', 'answer': 'a'})}"
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, ("{" + ", ".join(pairs) + "}").encode())

    def coco_captions(self, name: str, entries: list[str]) -> None:
        names = self.images(entries)
        images = [{"id": e, "file_name": self.said(i)} for e, i in zip(entries, names, strict=True)]
        # A caption of an identifier that comes twice is the first one's.
        captions = [
            {"id": e, "image_id": e, "caption": f"text {n}"}
            for n, e in enumerate(dict.fromkeys(entries))
        ]
        self.write(name, json.dumps({"images": images, "annotations": captions}).encode())

    def interleaved_parquet(self, name: str, entries: list[str]) -> None:
        columns = {
            "texts": [[f"text {self.next_row()}", None] for _ in entries],
            "images": [[None, picture(number)] for number in range(len(entries))],
            "url": [entry.encode("utf-8", "ignore").decode() for entry in entries],
        }
        schema = {"texts": pa.list_(pa.string()), "images": pa.list_(pa.binary())}
        arrays = [pa.array(columns[c], schema.get(c, pa.string())) for c in columns]
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays, names=list(columns)), buffer)
        self.write(name, buffer.getvalue())

    def synth_dog(self, name: str, entries: list[str]) -> None:
        truth = json.dumps({"gt_parse": {"text_sequence": "words"}})
        paths = [entry.encode("utf-8", "ignore").decode() for entry in entries]
        images = [{"bytes": picture(self.next_row()), "path": path} for path in paths]
        buffer = io.BytesIO()
        table = pa.table({"image": images, "ground_truth": [truth] * len(entries)})
        pq.write_table(table, buffer)
        self.write(name, buffer.getvalue())

    def warc_html(self, name: str, entries: list[str]) -> None:
        """A page and the request for it, of every entry."""
        packed = b""
        for entry in entries:
            url = b"http://x/" + entry.encode("utf-8", "surrogatepass")
            page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>text</p>"
            for kind, body in ((b"response", page), (b"request", b"GET / HTTP/1.1\r\n\r\n")):
                self.next_row()
                head = b"WARC/1.0\r\nWARC-Type: %b\r\nWARC-Target-URI: %b\r\n" % (kind, url)
                head += b"Content-Type: application/http\r\nContent-Length: %d\r\n" % len(body)
                packed += gzip.compress(head + b"\r\n" + body + b"\r\n\r\n", mtime=0)
        self.write(name, packed)

    def vqa_v2(self, name: str, entries: list[str]) -> None:
        questions, annotations = [], []
        for entry in entries:
            row = self.next_row()
            self.write(f"images/{row:012d}.png", picture(row))
            both = {"question_id": entry, "image_id": row}
            questions.append({**both, "question": "q"})
            annotations.append({**both, "answers": [{"answer": "a"}] * 3})
        self.write(name, json.dumps({"questions": questions}).encode())
        folder, base = os.path.split(name)
        other = f"{base[:-30]}{base[-30:].replace('questions', 'annotations')}"[-250:]
        self.write(os.path.join(folder, other), json.dumps({"annotations": annotations}).encode())

    def a_okvqa(self, name: str, entries: list[str]) -> None:
        content = []
        for entry in entries:
            row = self.next_row()
            self.write(f"images/{row:012d}.png", picture(row))
            content.append(
                {
                    "split": "train",
                    "image_id": row,
                    "question_id": entry,
                    "question": "q",
                    "choices": ["rock", "fox"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["fox"],
                }
            )
        self.write(name, json.dumps(content).encode())

    def ocr_vqa(self, name: str, entries: list[str]) -> None:
        book = {"imageURL": "http://x/i.jpg", "questions": ["q"], "answers": ["a"], "split": 1}
        for entry in entries:
            self.next_row()
            safe = entry.replace("/", "_").replace("\0", "0").replace("\ud800", "\udcd8")
            self.write(f"images/i{safe[:60]}.png", picture(self.rows))
        pairs = [f"{json.dumps(entry)}: {json.dumps(book)}" for entry in entries]
        self.write(name, ("{" + ", ".join(pairs) + "}").encode())

    def text_caps(self, name: str, entries: list[str]) -> None:
        content = [
            {"image_id": image[:-4], "caption_str": "text", "caption_id": entry}
            for entry, image in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps({"data": content}).encode())

    def chart_qa(self, name: str, entries: list[str]) -> None:
        content = [
            {"imgname": self.said(image), "query": "q", "label": "1"}
            for image in self.images(entries)
        ]
        self.write(name, json.dumps(content).encode())

    def ai2d(self, name: str, entries: list[str]) -> None:
        """One image and its questions: one unit, however many they are."""
        (image,) = self.images(entries[:1])
        question = {"answerTexts": ["egg", "larva"], "correctAnswer": 1}
        pairs = ", ".join(f"{json.dumps(e)}: {json.dumps(question)}" for e in entries)
        said = json.dumps(self.said(image))
        self.write(name, f'{{"imageName": {said}, "questions": {{{pairs}}}}}'.encode())

    def doc_vqa(self, name: str, entries: list[str]) -> None:
        content = [
            {"questionId": e, "question": "q", "image": self.said(i), "answers": ["a"]}
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps({"dataset_name": "docvqa", "data": content}).encode())

    def said(self, image: str) -> str:
        """The name of an image in the other normal form."""
        return unicodedata.normalize("NFD" if len(image) % 2 else "NFC", image)


FORMATS = {
    "img2dataset": ("caption", [".tar", ".TAR", ".v1.tar"]),
    "jsonl": ("text", [".jsonl", ".1.JSONL", ".v2.jsonl"]),
    "image_parquet": ("caption", [".parquet", ".0.parquet", ".1.PARQUET"]),
    "image_csv": ("caption", [".csv", ".v1.CSV", ".tsv", ".csv"]),
    "coco_captions": ("caption", ["captions.json", "captions.1.json", "captions.JSON"]),
    "llava": ("conversation", [".json", ".1.json", ".JSON"]),
    "dvqa": ("conversation", ["qa.json", "qa.1.json", "qa.JSON"]),
    "gqa": ("conversation", ["questions.json", "questions.1.json"]),
    "interleaved_parquet": ("interleaved", [".parquet", ".0.parquet", ".1.PARQUET"]),
    "synth_dog": ("conversation", [".parquet", ".0.parquet"]),
    "warc_html": ("interleaved", [".warc.gz", ".example.com-0.warc.gz", ".WARC.GZ", ".warc"]),
    "vqa_v2": ("conversation", ["questions.json", "questions.1.json"]),
    "a_okvqa": ("conversation", ["aokvqa.json", "aokvqa.1.json"]),
    "ocr_vqa": ("conversation", []),
    "text_caps": ("conversation", ["textcaps.json", "textcaps.1.json"]),
    "chart_qa": ("conversation", [".json", ".1.json"]),
    "ai2d": ("conversation", [".png.json", ".1.json"]),
    "doc_vqa": ("conversation", [".json", ".1.json"]),
}
"""By format: kind of record, and how the names of its files may end; empty where fixed."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."

SETS = {
    "gqa": (
        "train_balanced_questions.json",
        {"02930152": {"imageId": "7", "question": "Is it dark?", "answer": "yes"}},
        "7.jpg",
        f"[image]|Is it dark?{SHORT}|yes",
    ),
    "a_okvqa": (
        "aokvqa_v1p0_train.json",
        [
            {
                "split": "train",
                "image_id": 7,
                "question_id": "22MexNkBPpdZGX6sxbxVBH",
                "question": "Who eats?",
                "choices": ["rock", "fox", "hat", "car"],
                "correct_choice_idx": 1,
                "direct_answers": ["fox", "fox", "a fox"],
            }
        ],
        "000000000007.jpg",
        f"[image]|Who eats?\nA. rock\nB. fox\nC. hat\nD. car{LETTER}|B",
    ),
    "ocr_vqa": (
        "dataset.json",
        {
            "0761183272": {
                "imageURL": "http://x/i.jpg",
                "questions": ["Who wrote this?", "What is the genre?"],
                "answers": ["A. Author", "Calendars"],
                "title": "T",
                "split": 1,
            },
            "076": {"questions": ["held out?"], "answers": ["yes"], "split": 3},
        },
        "0761183272.jpg",
        f"[image]|Who wrote this?{SHORT}|A. Author|What is the genre?{SHORT}|Calendars",
    ),
    "text_caps": (
        "TextCaps_0.1_train.json",
        {"data": [{"image_id": "00ab", "caption_str": "A sign says stop.", "caption_id": 4}]},
        "00ab.jpg",
        f"[image]|{CAPTION}|A sign says stop.",
    ),
    "dvqa": (
        "train_qa.json",
        [
            {
                "question": "How many bars?",
                "answer": 4,
                "question_id": 9,
                "image": "bar_train_00000001.png",
                "template_id": "structure",
            }
        ],
        "bar_train_00000001.png",
        f"[image]|How many bars?{SHORT}|4",
    ),
    "chart_qa": (
        "train_human.json",
        [{"imgname": "two_col_21.png", "query": "Highest?", "label": "21.5"}],
        "two_col_21.png",
        f"[image]|Highest?{SHORT}|21.5",
    ),
    "ai2d": (
        "0.png.json",
        {
            "imageName": "0.png",
            "questions": {
                "What is C?": {
                    "answerTexts": ["egg", "larva"],
                    "correctAnswer": 1,
                    "questionId": "0.png-1",
                },
                "And A?": {"answerTexts": ["egg", "larva"], "correctAnswer": 0},
            },
        },
        "0.png",
        f"[image]|What is C?\nA. egg\nB. larva{LETTER}|B|And A?\nA. egg\nB. larva{LETTER}|A",
    ),
    "doc_vqa": (
        "train_v1.0.json",
        {
            "dataset_name": "docvqa",
            "data": [
                {
                    "questionId": 337,
                    "question": "What is the date?",
                    "image": "documents/xnbl0037_1.png",
                    "answers": ["1/8/93"],
                }
            ],
        },
        "xnbl0037_1.png",
        f"[image]|What is the date?{SHORT}|1/8/93",
    ),
    "vqa_v2": (
        "questions.json",
        {"questions": [{"question_id": 5, "image_id": 7, "question": "What sport?"}]},
        "COCO_train2014_000000000007.jpg",
        f"[image]|What sport?{SHORT}|race",
    ),
    "coco_captions": (
        "captions_train.json",
        {
            "images": [{"id": 7, "file_name": "7.jpg"}],
            "annotations": [{"id": 1, "image_id": 7, "caption": "A dog."}],
        },
        "7.jpg",
        f"[image]|{CAPTION}|A dog.",
    ),
}
"""By format: file name, content, image name, and the turns that are expected."""


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, json.dumps(content).encode())


def make_set(folder: Path, name: str) -> str:
    """Writes a set and returns the turns that are expected of it."""
    file, content, image, expected = SETS[name]
    write_json(folder / file, content)
    write_bytes(folder / "images" / image, picture(0, image[-3:].replace("jpg", "jpeg")))
    if name == "vqa_v2":  # OKVQA's annotations, which name no commonest answer
        answers = [{"answer": text} for text in ("ride", "race", "race")]
        annotations = [{"question_id": 5, "image_id": 7, "answers": answers}]
        write_json(folder / "annotations.json", {"annotations": annotations})
    return expected
