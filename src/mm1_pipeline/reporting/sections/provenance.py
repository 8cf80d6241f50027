"""Section: exactly what the page was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.reporting.checkpoint import summarize_model
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import Block, Code, Column, Section, Table

MANIFEST = "manifest.json"
_SHOWN_DIGITS = 12
_NOW = "running now"


def provenance_section(inputs: ReportInputs) -> Section | None:
    """Fingerprints of the artifacts, hashes of prompts and tokenizer, versions, parameters."""
    blocks = [*_artifacts(inputs), *_facts(inputs), *_versions(inputs), *_parameters(inputs)]
    if not blocks:
        return None
    return Section(
        "provenance",
        "Provenance",
        "What the page was made from. A fingerprint covers code, parameters and inputs; a digest "
        "covers content.",
        tuple(blocks),
    )


def _artifacts(inputs: ReportInputs) -> list[Block]:
    """What the artifacts' own manifests say; plain folders without one are left out."""
    rows = []
    for name, manifest in _manifests(inputs).items():
        fingerprint, digest = str(manifest["fingerprint"]), str(manifest["digest"])
        rows.append((name, fingerprint[:_SHOWN_DIGITS], digest[:_SHOWN_DIGITS]))
    if not rows:
        return []
    columns = (
        Column("Artifact", numeric=False),
        Column("Fingerprint", numeric=False),
        Column("Digest", numeric=False),
    )
    return [Table("Artifacts", columns, tuple(rows))]


def _manifests(inputs: ReportInputs) -> dict[str, Mapping[str, Any]]:
    """Manifests of the artifacts that have one, by what they are."""
    folders = {"records": inputs.records_dir, **inputs.shards}
    folders |= {f"model: {stage}": folder for stage, folder in inputs.models.items()}
    folders["predictions"] = inputs.predictions_dir
    return {
        name: manifest
        for name, folder in folders.items()
        if folder and (manifest := read_manifest(folder))
    }


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of an artifact, or None where the folder has none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest if {"fingerprint", "digest"} <= manifest.keys() else None


def _facts(inputs: ReportInputs) -> list[Block]:
    facts: dict[str, Any] = {}
    if inputs.evaluation:
        facts |= _flatten("evaluation", inputs.evaluation.get("harness", {}))
    if inputs.shard_report:
        facts |= _flatten("tokenizer", inputs.shard_report.get("tokenizer", {}))
        facts |= _flatten("packing", inputs.shard_report.get("packing", {}))
    if inputs.mixture and "sha256" in inputs.mixture:
        facts["mixture.sha256"] = inputs.mixture["sha256"]
    if not facts:
        return []
    columns = (Column("Name", numeric=False), Column("Value", numeric=False))
    return [
        Table("Harness, tokenizer, packing", columns, tuple((k, str(v)) for k, v in facts.items()))
    ]


def _flatten(prefix: str, values: Any) -> dict[str, Any]:
    """Nested mappings as dotted names."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(f"{prefix}.{name}", value)
    return flat


def _versions(inputs: ReportInputs) -> list[Block]:
    """The versions of libraries that made each artifact, and those that run now."""
    made = {
        name: {library: str(version) for library, version in libraries.items()}
        for name, manifest in _manifests(inputs).items()
        if (libraries := manifest.get("provenance", {}).get("libraries"))
    }
    now = {_NOW: dict(inputs.versions)} if inputs.versions else {}
    libraries = sorted({library for row in (*made.values(), *now.values()) for library in row})
    if not libraries:
        return []
    others = [
        f"{name} by {library} {version} (now {inputs.versions[library]})"
        for name, row in made.items()
        for library, version in sorted(row.items())
        if inputs.versions.get(library, version) != version
    ]
    note = (
        f"Made by other versions than those that run now: {'; '.join(others)}. Another version may "
        "compute other values; what is here was kept."
    )
    return [
        Table(
            "Versions of libraries",
            tuple(Column(title, numeric=False) for title in ("Made by", *libraries)),
            tuple(
                (name, *(row.get(library, "") for library in libraries))
                for name, row in {**made, **now}.items()
            ),
            note=note if others else "",
        )
    ]


def _parameters(inputs: ReportInputs) -> list[Block]:
    blocks: list[Block] = []
    for stage, directory in inputs.models.items():
        if model := summarize_model(directory):
            blocks.append(Code(f"Model of {stage}", _dump(model.config)))
    if inputs.mixture:
        blocks.append(Code("Mixture", _dump(inputs.mixture)))
    return blocks


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
