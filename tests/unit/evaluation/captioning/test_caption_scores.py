"""Captions scored by a model that was trained on colours, where right and wrong are known."""

from __future__ import annotations

import dataclasses
import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from mm1_pipeline.config.corpus_rules import ClipScoreConfig
from mm1_pipeline.config.ingest import IngestConfig, RecordKind
from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.config.pretraining import ClipConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, TokenizerConfig
from mm1_pipeline.corpus.caption_scores import SCORES_VERSION
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import Record, RecordImage, Segment, read_records
from mm1_pipeline.evaluation.captioning.caption_scores import ContrastiveScorer
from mm1_pipeline.evaluation.captioning.scorers import load_scorer
from mm1_pipeline.ground.rejects import Rejected
from mm1_pipeline.models.checkpoint import save_vision_encoder
from mm1_pipeline.models.clip import Contrastive, PairInputs
from mm1_pipeline.models.initialization import build_vision_encoder
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.preflight.data import check_ingest
from mm1_pipeline.preflight.run import Run
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer
from mm1_pipeline.training.parts import build_vision_objective

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250,) * 3}
TRANSFORM = ImageTransform(size=8)
THRESHOLD = 0.5
VISION = VisionConfig(image_size=8, patch_size=4, d_model=16, num_layers=1, num_heads=2, d_ff=32)
CLIP = ClipConfig(d_embedding=12, d_model=16, num_layers=1, num_heads=2, d_ff=32)


def caption(colour: str) -> str:
    return f"a square that is {colour}"


def picture(colour: str, seed: int = 0) -> bytes:
    """A colour with some noise, so that no two pictures are the same file."""
    noise = np.random.default_rng(seed).integers(-12, 13, (24, 20, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(text: str, data: bytes) -> Record:
    image = RecordImage(data, None, "0" * 64, 20, 24)
    segments = (Segment.of_image(0), Segment.of_text(text))
    return Record("pairs", "k", RecordKind.CAPTION, segments, (image,))


def batch(records: list[Record], tokenizer: Tokenizer, image_tokens: int = 2) -> dict[str, Any]:
    """One packed sequence as a training sees it."""
    documents = [serialize(r.segments, tokenizer, image_tokens) for r in records]
    labels = []
    for document in documents:
        targets = np.where(document.loss_mask, document.input_ids, IGNORED)
        labels += [*targets[1:].tolist(), IGNORED]
    sub_images = [
        resize_image(Image.open(io.BytesIO(r.images[0].bytes)).convert("RGB"), TRANSFORM)
        for r in records
    ]
    lengths = [len(document.input_ids) for document in documents]
    return {
        "input_ids": torch.tensor(np.concatenate([d.input_ids for d in documents]))[None].long(),
        "labels": torch.tensor(labels)[None],
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "pixel_values": to_pixel_values(sub_images, TRANSFORM),
    }


@dataclass
class Trained:
    model: Contrastive
    tokenizer: Tokenizer
    checkpoint: Path
    tokenizer_file: Path

    def config(self, **changes: Any) -> ClipScoreConfig:
        paths = {"checkpoint": str(self.checkpoint), "tokenizer": str(self.tokenizer_file)}
        return ClipScoreConfig(**{**paths, "threshold": THRESHOLD, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("contrastive")
    texts = [caption(colour) for colour in COLOURS]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), texts, folder / "tokenizer")
    model = Contrastive(
        build_vision_encoder(VISION, seed=1),
        CLIP,
        vocab_size=tokenizer.vocab_size,
        image_token_id=tokenizer.image_id,
        seed=2,
        inputs=PairInputs(TRANSFORM, tokenizer.sha256),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(80):
        pairs = [record(caption(c), picture(c, step)) for c in COLOURS]
        output = model(batch(pairs, tokenizer))
        optimizer.zero_grad()
        (output.losses.sum() / output.weights.sum()).backward()
        optimizer.step()
    model.save(folder / "vision_encoder")
    return Trained(model, tokenizer, folder / "vision_encoder", folder / "tokenizer")


def test_the_right_caption_scores_above_every_wrong_one(trained: Trained) -> None:
    scorer = ContrastiveScorer(trained.config())
    for colour in COLOURS:
        data = picture(colour, 1000)
        found = scorer.score([record(caption(c), data) for c in COLOURS])
        scores = {c: s for c, s in zip(COLOURS, found, strict=True) if isinstance(s, float)}
        assert scores.keys() == set(COLOURS)
        right = scores.pop(colour)
        assert right > THRESHOLD > max(scores.values()), (colour, right, scores)


def test_scores_are_the_cosines_of_training(trained: Trained) -> None:
    pairs = [record(caption(c), picture(d, 7)) for c in COLOURS for d in COLOURS]
    packed = batch(pairs, trained.tokenizer)
    with torch.no_grad():
        texts = trained.model.pairs(packed)
        images = trained.model.embed_images(packed["pixel_values"])[texts.images]
        expected = (images * trained.model.embed_texts(texts)[texts.texts]).sum(1)
    found = ContrastiveScorer(trained.config()).score(pairs)
    # Equal bit for bit here; another way to pack may sum in another order.
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_what_cannot_be_decoded_is_rejected_and_moves_no_other_score(trained: Trained) -> None:
    scorer = ContrastiveScorer(trained.config())
    good = record(caption("red"), picture("red"))
    first, broken, last = scorer.score([good, record("broken", b"no image"), good])
    assert isinstance(broken, Rejected)
    assert first == last == scorer.score([good, good])[0]
    assert isinstance(scorer.score([record("broken", b"")])[0], Rejected)
    assert scorer.score([]) == []


def test_long_captions_are_cut_as_told(trained: Trained) -> None:
    short = ContrastiveScorer(trained.config(max_tokens=3))
    data = picture("blue")
    words = trained.tokenizer.decode(trained.tokenizer.encode(" " + caption("blue"))[:3])
    one, other = short.score([record(caption("blue"), data), record(words, data)])
    assert one == pytest.approx(other, abs=1e-6)


def write_pairs(folder: Path) -> tuple[set[str], set[str]]:
    """Two archives, of which every third pair has another's caption; keys of right and wrong."""
    right, wrong = set(), set()
    folder.mkdir()
    names = list(COLOURS)
    for file in range(2):
        with tarfile.open(folder / f"{file}.tar", "w") as archive:
            for n in range(40):
                colour = names[n % 4]
                said = names[(n + 1) % 4] if n % 3 == 0 else colour
                members = {"png": picture(colour, 100 * file + n), "txt": caption(said).encode()}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{file}{n:03d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                (wrong if n % 3 == 0 else right).add(f"{file}{n:03d}")
    return right, wrong


def config_of(folder: Path, trained: Trained, **options: Any) -> IngestConfig:
    source = {
        "kind": "caption",
        "format": "img2dataset",
        "path": str(folder),
        "captions": {"defaults": False},
        "text": {"defaults": False},
        "deduplication": {"perceptual": False, "max_caption_occurrences": None},
        "clip_score": {
            "checkpoint": str(trained.checkpoint),
            "tokenizer": str(trained.tokenizer_file),
            "threshold": THRESHOLD,
        },
    }
    return TypeAdapter(IngestConfig).validate_python({"sources": {"pairs": source}, **options})


def test_wrong_captions_go_whoever_does_the_work(trained: Trained, tmp_path: Path) -> None:
    right, wrong = write_pairs(tmp_path / "raw")
    results = []
    for num_workers in (1, 2):
        out = tmp_path / str(num_workers)
        config = config_of(
            tmp_path / "raw", trained, num_workers=num_workers, partition_bytes=1_000
        )
        report = ingest(config, out, load_scorer=load_scorer)["sources"]["pairs"]
        rows = pq.read_table(out / "quarantine" / "pairs.parquet").to_pylist()
        rejected = {row["key"].rpartition("/")[2] for row in rows}
        assert {row["reason"] for row in rows} == {"clip_score_too_low"}
        assert rejected == wrong
        assert report["rejected"] == {"clip_score_too_low": len(wrong)}
        assert (report["read"], report["kept"]) == (len(right) + len(wrong), len(right))
        assert report["steps"]["check"]["rejected"] == report["rejected"]
        assert report["images"]["rejected"] == {"record_rejected": len(wrong)}
        results.append((report, rows, list(read_records(out, "pairs"))))
    assert results[0] == results[1]


def test_another_model_of_the_same_path_is_another_run(trained: Trained, tmp_path: Path) -> None:
    """Work that a killed run left is kept for the same model only."""
    copy = tmp_path / "model"
    shutil.copytree(trained.checkpoint, copy)
    one = ContrastiveScorer(trained.config(checkpoint=str(copy)))
    assert one.identity == ContrastiveScorer(trained.config()).identity
    heads = copy / "contrastive" / "model.safetensors"
    weights = load_file(heads)
    weights["image_projection.weight"] *= -1
    save_file(weights, heads)
    other = ContrastiveScorer(trained.config(checkpoint=str(copy)))
    assert other.identity != one.identity


def spoil(kind: str, trained: Trained, folder: Path) -> dict[str, str]:
    """Parameters of a model that cannot score, by what is wrong with it."""
    checkpoint = folder / "model"
    if kind == "missing":
        return {"checkpoint": str(folder / "nowhere")}
    if kind == "no heads":
        save_vision_encoder(trained.model.vision, checkpoint)
        return {"checkpoint": str(checkpoint)}
    if kind == "tokenizer":
        train_tokenizer(TokenizerConfig(vocab_size=280), ["other words"] * 9, folder / "other")
        return {"tokenizer": str(folder / "other")}
    if kind == "no tokenizer":
        return {"tokenizer": str(folder / "nothing")}
    shutil.copytree(trained.checkpoint, checkpoint)
    heads = checkpoint / "contrastive" / "model.safetensors"
    weights = load_file(heads)
    match kind:
        case "cut":
            heads.write_bytes(heads.read_bytes()[:100])
        case "a tensor missing":
            weights.pop("log_scale")
            save_file(weights, heads)
        case "not a number":
            weights["text_projection.weight"][0, 0] = torch.nan
            save_file(weights, heads)
    return {"checkpoint": str(checkpoint)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "found no config.json and no model.safetensors"),
        ("no heads", "objective: clip"),
        ("tokenizer", "found another tokenizer"),
        ("no tokenizer", "Found no tokenizer"),
        ("cut", "no readable safetensors file"),
        ("a tensor missing", "1 tensors do not fit"),
        ("not a number", "no numbers"),
    ],
)
def test_what_cannot_score_is_refused_before_any_work(
    trained: Trained, tmp_path: Path, kind: str, message: str
) -> None:
    write_pairs(tmp_path / "raw")
    config = config_of(tmp_path / "raw", trained)
    spoilt = trained.config(**spoil(kind, trained, tmp_path))
    sources = {"pairs": dataclasses.replace(config.sources["pairs"], clip_score=spoilt)}
    with pytest.raises(ValueError, match=r"ingest\.sources\.pairs\.clip_score: ") as error:
        ingest(IngestConfig(sources=sources), tmp_path / "out", load_scorer=load_scorer)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_is_refused_before_its_first_node(trained: Trained, tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw")
    config = config_of(tmp_path / "raw", trained)
    gone = trained.config(checkpoint=str(tmp_path / "nowhere"))
    broken = dataclasses.replace(
        config, sources={"pairs": dataclasses.replace(config.sources["pairs"], clip_score=gone)}
    )
    nodes = frozenset({"ingest_pretraining"})
    check = check_ingest(IngestConfig.pretraining_part)
    assert list(check(Run(nodes, {"ingest": config}))) == []
    (text,) = check(Run(nodes, {"ingest": broken}))
    assert text.startswith("ingest.sources.pairs.clip_score: ")
    assert "nowhere" in text


def test_the_stage_stores_what_the_scorer_needs(trained: Trained, tmp_path: Path) -> None:
    """From the shards' index to a checkpoint that scores, untrained as it is."""
    ids = {"pad": 0, "bos": 1, "eos": 2, "image": trained.tokenizer.image_id}
    index = ShardIndex(
        packing=PackingConfig(),
        image=TRANSFORM,
        special_ids=ids,
        vocab_size=trained.tokenizer.vocab_size,
        tokenizer_sha256=trained.tokenizer.sha256,
        sources={},
    )
    mixture = {"streams": {"caption": {"share": 1.0, "sources": {"pairs": 1.0}}}}
    training = {"optimizer": {"learning_rate": 1e-3}, "mixture": mixture}
    parameters = {"training": training, "source": "train", "clip": dataclasses.asdict(CLIP)}
    config = TypeAdapter(VisionPretrainConfig).validate_python(parameters)
    build_vision_objective(config, VISION, index).save(tmp_path)
    scorer = ContrastiveScorer(trained.config(checkpoint=str(tmp_path)))
    (score,) = scorer.score([record(caption("red"), picture("red"))])
    assert isinstance(score, float)
    assert -1 <= score <= 1


def test_scores_are_of_this_version(trained: Trained, tmp_path: Path) -> None:
    """Whoever changes what is computed has to raise SCORES_VERSION, and then these numbers."""
    assert SCORES_VERSION == 1
    untrained = Contrastive(
        build_vision_encoder(VISION, seed=1),
        CLIP,
        vocab_size=trained.tokenizer.vocab_size,
        image_token_id=trained.tokenizer.image_id,
        seed=2,
        inputs=PairInputs(TRANSFORM, trained.tokenizer.sha256),
    )
    untrained.save(tmp_path)
    scorer = ContrastiveScorer(trained.config(checkpoint=str(tmp_path)))
    scores = scorer.score([record(caption(colour), picture(colour)) for colour in COLOURS])
    # Only the order of sums may differ between versions of PyTorch.
    assert scores == pytest.approx([-0.086858, 0.024447, 0.329738, 0.614366], abs=1e-4)
