"""Report files as catalog entries, each with the preview that Kedro-Viz shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Generic, TypeVar

from kedro.io import AbstractDataset
from kedro_datasets._typing import HTMLPreview, JSONPreview, PlotlyPreview

from mm1_pipeline.ground.files import write_text

T = TypeVar("T")


class ReportDataset(AbstractDataset[T, T], Generic[T]):
    """A small text file, replaced in one step.

    Args:
        filepath: the file.
        metadata: free for plugins, such as Kedro-Viz layers.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> T:
        """Reads the file."""
        return self._parse(self._filepath.read_text(encoding="utf-8"))

    def save(self, data: T) -> None:
        """Writes the file; a reader sees the old content or the new one."""
        write_text(self._filepath, self._render(data), durable=True)

    def _parse(self, text: str) -> T:
        raise NotImplementedError

    def _render(self, data: T) -> str:
        raise NotImplementedError

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class HTMLReportDataset(ReportDataset[str]):
    """A page."""

    def preview(self) -> HTMLPreview:
        """The page itself, which needs nothing beside it."""
        return HTMLPreview(self.load())

    def _parse(self, text: str) -> str:
        return text

    def _render(self, data: str) -> str:
        return data


class JSONReportDataset(ReportDataset[dict[str, Any]]):
    """A JSON object, indented so that a person can read it."""

    def _parse(self, text: str) -> dict[str, Any]:
        return json.loads(text)

    def _render(self, data: dict[str, Any]) -> str:
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class HeldOutLossDataset(JSONReportDataset):
    """Losses on what was held out, with the right, the blanked and the shuffled image."""

    def preview(self) -> JSONPreview:
        """The numbers themselves."""
        return JSONPreview(json.dumps(self.load()))


class IngestReportDataset(JSONReportDataset):
    """Read, kept and rejected records of every source."""

    def preview(self) -> PlotlyPreview:
        """Bars of kept and rejected records."""
        from mm1_pipeline.reporting.figures import ingest_figure

        return PlotlyPreview(ingest_figure(self.load()))


class ShardReportDataset(JSONReportDataset):
    """Sequences, tokens, images and fill of every stream."""

    def preview(self) -> PlotlyPreview:
        """Bars of the fill."""
        from mm1_pipeline.reporting.figures import shard_fill_figure

        return PlotlyPreview(shard_fill_figure(self.load()))


class MixtureDataset(JSONReportDataset):
    """The fixed order of sequences, summarised."""

    def preview(self) -> PlotlyPreview:
        """Shares of streams and sources in a global batch."""
        from mm1_pipeline.reporting.figures import mixture_figure

        return PlotlyPreview(mixture_figure(self.load()))


class EvaluationDataset(JSONReportDataset):
    """Scores of every model on every task."""

    def preview(self) -> PlotlyPreview:
        """Scores over shots."""
        from mm1_pipeline.reporting.figures import scores_figure

        return PlotlyPreview(scores_figure(self.load()))


class TrainingLogDataset(ReportDataset[list[dict[str, Any]]]):
    """One JSON object a training step."""

    def preview(self) -> PlotlyPreview:
        """Loss over steps, a line a stream."""
        from mm1_pipeline.reporting.figures import loss_curves_figure

        return PlotlyPreview(loss_curves_figure(self.load()))

    def _parse(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in text.splitlines()]

    def _render(self, data: list[dict[str, Any]]) -> str:
        return "".join(json.dumps(row) + "\n" for row in data)
