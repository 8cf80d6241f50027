"""Directory artifacts as catalog entries, and how a node's function makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview
from kedro_rerun.artifacts import Artifact, Workspace, check_content, current, publish
from kedro_rerun.context import current_context, workspace_for
from kedro_rerun.errors import StalenessError


@dataclass(frozen=True)
class StagedArtifact:
    """A directory that is written but not yet published; what a node's function returns."""

    workspace: Workspace
    counts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the new version is written."""
        return self.workspace.staging

    @property
    def work_directory(self) -> Path:
        """Where progress is kept, so that a killed run resumes."""
        return self.workspace.work

    def described(self, *, counts: Mapping[str, Any]) -> StagedArtifact:
        """The same directory with the counts that its manifest will state.

        Args:
            counts: JSON values; equal inputs must give equal counts.
        """
        return replace(self, counts=counts)


def stage(dataset_name: str) -> StagedArtifact:
    """Opens the staging directory of one of the running node's outputs.

    Args:
        dataset_name: the output's name in the catalog.

    Raises:
        ValueError: outside of a Kedro run; library functions take plain paths instead.
    """
    return StagedArtifact(workspace_for(dataset_name))


class ArtifactDataset(AbstractDataset[StagedArtifact, Artifact]):
    """A directory whose versions are published atomically under `path`.

    Saving publishes the staged directory; loading gives a handle to the current version,
    never its content, so nothing large passes through Kedro.

    Args:
        path: root of the artifact's versions.
        kind: what the artifact is, as its manifest states.
        schema_version: version of the layout inside the directory.
        metadata: free for plugins, such as Kedro-Viz layers.
    """

    def __init__(
        self,
        *,
        path: str,
        kind: str,
        schema_version: int = 1,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._path = Path(path)
        self._kind = kind
        self._schema_version = schema_version
        self.metadata = metadata

    @property
    def root(self) -> Path:
        """Root of the artifact's versions."""
        return self._path

    def load(self) -> Artifact:
        """Gives the current version.

        Raises:
            DatasetError: when nothing is published, in a layout of another version, or when
                weights or configurations in it are damaged.
        """
        artifact = current(self._path)
        if artifact is None:
            raise DatasetError(
                f"{self._path}: found no published {self._kind}. Run the pipeline that makes it; "
                "without --tags or --from-nodes, `kedro run --pipeline=...` builds what is missing."
            )
        if artifact.manifest["schema_version"] != self._schema_version:
            raise DatasetError(
                f"{artifact.path}: found layout {artifact.manifest['schema_version']}, expected "
                f"{self._schema_version}. It was made by another version of the project; make it "
                "again."
            )
        try:
            check_content(artifact)
        except StalenessError as error:
            raise DatasetError(str(error)) from error
        return artifact

    def save(self, data: StagedArtifact) -> None:
        """Publishes the staged directory as the current version."""
        context = current_context()
        publish(
            data.workspace,
            kind=self._kind,
            schema_version=self._schema_version,
            counts=data.counts,
            provenance=context.provenance if context else {},
        )

    def preview(self) -> TablePreview:
        """Records, answers, or what is known of a model, as Kedro-Viz shows it."""
        from mm1_pipeline.datasets.previews import preview

        return TablePreview(preview(self.load(), self._kind))

    def _exists(self) -> bool:
        return current(self._path) is not None

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "kind": self._kind}
