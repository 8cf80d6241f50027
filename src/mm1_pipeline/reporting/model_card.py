"""What a trained model is, from the records of the run that made it and from nothing else.

Exported models carry it as README.md, and the chat shows it. Where a run recorded nothing of a
fact, the card says nothing of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedro_rerun.artifacts import current

from mm1_pipeline.config.export import Layout
from mm1_pipeline.corpus.records import RECORDS, Role, read_parts
from mm1_pipeline.ground.files import read_json
from mm1_pipeline.reporting.checkpoint import summarize_model
from mm1_pipeline.streams.shard_index import ShardIndex

STAGES = {
    "pretrain_model": ("pretrain", "pretrained_model", "pretrain"),
    "train_experts": ("upcycle", "upcycled_model", "pretrain"),
    "fine_tune": ("sft", "sft_model", "sft"),
}
"""By the node that makes a model: its stage, its name in the catalog, the group of its mixture."""
_DESCRIBED = {
    "pretrain": "continues text and interleaved images, and was not taught to converse",
    "upcycle": "is a mixture of experts that continues text and interleaved images, and was not "
    "taught to converse",
    "sft": "answers in conversations about images",
}
_EXAMPLES, _LOOKED_AT = 6, 400


@dataclass(frozen=True)
class DrawnSource:
    """A source of the mixture.

    Attributes:
        name: Of the source.
        stream: That it is drawn in.
        share: Of all sequences.
        records: That were kept of it; None where no report says.
        licence: As its parameters state it; None where they do not.
    """

    name: str
    stream: str
    share: float
    records: int | None = None
    licence: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """Facts of one model; see the module."""

    stage: str
    num_parameters: int
    image_size: int
    sequence_length: int | None = None
    steps: int | None = None
    environment: str | None = None
    commit: str | None = None
    command: str | None = None
    made_at: str | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[DrawnSource, ...] = ()
    scores: tuple[tuple[str, str, str, str, str], ...] = ()
    """Task, metric, shots, value with standard error and items, value of the blind twin."""
    examples: tuple[str, ...] = ()
    """What people say in the conversations that it learnt from."""

    def about(self) -> str:
        """A sentence on what it is and can."""
        size = _amount(self.num_parameters)
        text = f"A model of {size} parameters ({self.stage}) that {_DESCRIBED[self.stage]}."
        if self.steps is not None:
            text += f" It was trained for {self.steps:,} steps"
            text += f" in the environment {self.environment}." if self.environment else "."
        text += f" It sees images at {self.image_size} pixels"
        if self.sequence_length is not None:
            text += f", and reads {self.sequence_length:,} positions of images and text at most"
        return f"{text}."

    def limits(self) -> str:
        """A sentence on what it was not trained for."""
        names = ", ".join(dict.fromkeys(source.name for source in self.sources))
        known = f"Its last training drew from {names} alone" if names else "It knows its data alone"
        return f"{known}; of anything else it was shown nothing there, and answers are guesses."

    def purpose(self) -> str:
        """Sentences for somebody who asked for something else."""
        text = f"I am a model of {_amount(self.num_parameters)} parameters"
        names = ", ".join(dict.fromkeys(source.name for source in self.sources))
        text += f", trained last on {names}" if names else ""
        if self.examples:
            listed = "; ".join(f"“{example}”" for example in self.examples[:3])
            return f"{text}. What I was asked there was like: {listed}."
        return f"{text}, and I continue what I read."

    def text(self) -> str:
        """The whole card as Markdown, without what only an export needs."""
        parts = [self.about(), "", self.limits(), ""]
        if self.sources:
            parts += ["**Trained on**", "", *(f"- {line}" for line in self.learnt()), ""]
        if self.scores:
            parts += ["**Scores** of the run that made it, with standard errors", ""]
            parts += [*score_table(self), ""]
        if self.examples:
            parts += ["**Asked in training**, among others", ""]
            parts += [f"- {example}" for example in self.examples]
        return "\n".join(parts)

    def learnt(self) -> list[str]:
        """A line for each source."""
        return [
            f"{source.name}: {source.share:.1%} of the sequences"
            + (f", {source.records:,} records" if source.records is not None else "")
            + (f", {source.licence}" if source.licence else "")
            for source in self.sources
        ]


def read_card(
    model_dir: Path,
    shards_dir: Path | None,
    data_root: Path,
    licences: Mapping[str, str | None] | None = None,
) -> ModelCard | None:
    """Reads the facts of a published model.

    Args:
        model_dir: A version of the model, with its manifest.
        shards_dir: What it was trained on; None leaves out what only they tell.
        data_root: Of the environment: its reports are taken if they are of this very model.
        licences: Of sources, by name.

    Returns:
        The card; None where the folder was published by no stage.
    """
    manifest = _read(model_dir / "manifest.json")
    origin = manifest.get("provenance", {})
    summary = summarize_model(model_dir)
    if origin.get("node") not in STAGES or summary is None:
        return None
    stage, output, group = STAGES[origin["node"]]
    index = ShardIndex.read(shards_dir) if shards_dir is not None else None
    commit = str(origin.get("commit_sha") or "")
    return ModelCard(
        stage=stage,
        num_parameters=summary.total_parameters,
        image_size=index.image.size if index else summary.config["vision"]["image_size"],
        sequence_length=index.packing.sequence_length if index else None,
        steps=manifest.get("counts", {}).get("steps"),
        environment=origin.get("environment"),
        commit=f"{commit} with changes" if commit and origin.get("dirty") else commit or None,
        command=origin.get("command"),
        made_at=origin.get("started_at"),
        libraries=origin.get("libraries", {}),
        sources=_sources(origin.get("parameters", {}), group, data_root, licences or {}),
        scores=_scores(stage, output, manifest.get("digest"), data_root),
        examples=_examples(data_root) if stage == "sft" else (),
    )


def _sources(
    parameters: Mapping[str, str], group: str, data_root: Path, licences: Mapping[str, str | None]
) -> tuple[DrawnSource, ...]:
    start = f"{group}.mixture.streams."
    report = _read(data_root / "08_reporting" / "ingest_report.json")
    shares: dict[str, float] = {}
    weights: dict[str, dict[str, float]] = {}
    for name, value in parameters.items():
        stream, _, rest = name.removeprefix(start).partition(".")
        if not name.startswith(start) or name.endswith("(order)"):
            continue
        if rest == "share":
            shares[stream] = float(value)
        elif rest.startswith("sources."):
            weights.setdefault(stream, {})[rest.removeprefix("sources.")] = float(value)
    found = [
        DrawnSource(
            source,
            stream,
            shares.get(stream, 0.0) * weight / (sum(of_stream.values()) or 1.0),
            report.get("sources", {}).get(source, {}).get("kept"),
            licences.get(source),
        )
        for stream, of_stream in weights.items()
        for source, weight in of_stream.items()
    ]
    return tuple(sorted(found, key=lambda source: (-source.share, source.name)))


def _scores(
    stage: str, output: str, digest: str | None, data_root: Path
) -> tuple[tuple[str, str, str, str, str], ...]:
    """Those of an evaluation that asked this very model; of none else."""
    predictions = current(data_root / "07_model_output" / "predictions")
    evaluation = _read(data_root / "08_reporting" / "evaluation.json")
    if predictions is None or digest is None:
        return ()
    if predictions.manifest["provenance"].get("inputs", {}).get(output) != digest:
        return ()
    models, rows = evaluation.get("models", {}), []
    for task, found in models.get(stage, {}).get("tasks", {}).items():
        blind = models.get(f"{stage}:blind", {}).get("tasks", {}).get(task, {})
        for shots, score in found["shots"].items():
            beside = blind.get("shots", {}).get(shots)
            value = f"{score['value']:.1f} ± {score['stderr']:.1f} ({score['n']} items)"
            rows.append((task, found["metric"], shots, value,
                         f"{beside['value']:.1f}" if beside else ""))  # fmt: skip
    return tuple(rows)


def _examples(data_root: Path) -> tuple[str, ...]:
    """Different things that people say, from every source in turn."""
    records = current(data_root / "03_primary" / "sft_records")
    if records is None:
        return ()
    by_source = [
        dict.fromkeys(_said(folder)) for folder in sorted((records.path / RECORDS).glob("*"))
    ]
    turns = (text for row in itertools.zip_longest(*by_source) for text in row if text)
    return tuple(itertools.islice(turns, _EXAMPLES))


def _said(folder: Path) -> list[str]:
    records = itertools.islice(read_parts(folder, with_bytes=False), _LOOKED_AT)
    return [
        (segment.text or "").strip().splitlines()[0]
        for record in records
        for segment in record.segments
        if segment.role == Role.HUMAN and (segment.text or "").strip()
    ]


def human_words(data_root: Path) -> frozenset[str]:
    """Every word that people say in the conversations of fine-tuning; none without records."""
    from mm1_pipeline.evaluation.replies import words_of

    records = current(data_root / "03_primary" / "sft_records")
    if records is None:
        return frozenset()
    words: set[str] = set()
    for folder in sorted((records.path / RECORDS).glob("*")):
        for record in read_parts(folder, with_bytes=False):
            for segment in record.segments:
                if segment.role in (Role.HUMAN, Role.SYSTEM) and segment.text:
                    words |= words_of(segment.text)
    return frozenset(words)


def write_readme(card: ModelCard, layout: Layout, directory: Path) -> None:
    """Writes the card of an exported model, as model hubs show it.

    Args:
        card: Of the model.
        layout: Of the export, which decides how it is loaded.
        directory: The exported model's.
    """
    (directory / "README.md").write_text(readme(card, layout), encoding="utf-8")


def readme(card: ModelCard, layout: Layout) -> str:
    """The text of `write_readme`."""
    licences = sorted({source.licence for source in card.sources if source.licence})
    unnamed = [source.name for source in card.sources if not source.licence]
    lines = [
        "---", "library_name: transformers", "pipeline_tag: image-text-to-text", "---", "",
        f"# MM1, {card.stage}", "", card.about(), "", card.limits(), "",
        "## Trained on", "", *(f"- {line}" for line in card.learnt()), "",
        "## Licences of the data", "",
        *(f"- {licence}" for licence in licences),
    ]  # fmt: skip
    if unnamed:
        lines.append(f"- not stated (`ingest.sources.<name>.licence`): {', '.join(unnamed)}")
    lines += ["", "## Scores", ""]
    if card.scores:
        lines += [
            "| task | metric | shots | this model | images blanked |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in card.scores]
        lines.append("\nOf the run that made it, with standard errors.")
    else:
        lines.append("No evaluation of this model had been made when it was exported.")
    lines += [
        "",
        "## How to load it",
        "",
        "```python",
        *_loading(layout),
        "```",
        "",
        "## Made by",
        "",
    ]
    made = {
        "commit": card.commit, "environment": card.environment, "command": card.command,
        "begun": card.made_at,
        "libraries": ", ".join(f"{name} {text}" for name, text in card.libraries.items()),
    }  # fmt: skip
    lines += [f"- {name}: {text}" for name, text in made.items() if text]
    return "\n".join(lines) + "\n"


def score_table(card: ModelCard) -> list[str]:
    """Lines of a Markdown table; none without scores."""
    if not card.scores:
        return []
    head = ["| task | metric | shots | this model | images blanked |", "|---|---|---|---|---|"]
    return [*head, *(f"| {' | '.join(row)} |" for row in card.scores)]


def _loading(layout: Layout) -> list[str]:
    if layout is Layout.LLAVA:
        return [
            "from transformers import AutoProcessor, LlavaForConditionalGeneration",
            "",
            'model = LlavaForConditionalGeneration.from_pretrained(".")',
            'processor = AutoProcessor.from_pretrained(".")',
        ]
    return [
        "from transformers import AutoModelForCausalLM, AutoProcessor",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)',
        'processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)',
    ]


def _read(path: Path) -> dict[str, Any]:
    """A report of the run; nothing where it is not there."""
    return read_json(path) if path.is_file() else {}


def _amount(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
