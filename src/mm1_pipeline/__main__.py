"""`mm1-pipeline` and `python -m mm1_pipeline`: the project's commands without Kedro's.

They work in a checkout and with an installed package alike: `run` and `mm1 ...` look for the
configuration in the folder that they are given in and those above it, or take `--conf-source`.
"""

from __future__ import annotations

import os
from pathlib import Path


def main() -> None:
    """Runs a command of the project."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        # Kedro looks for it in the working directory alone, and when it is imported.
        if (logging := folder / "conf" / "logging.yml").is_file():
            os.environ.setdefault("KEDRO_LOGGING_CONFIG", str(logging))
            break
    from kedro.framework.project import configure_project

    configure_project(Path(__file__).parent.name)
    from mm1_pipeline.cli import cli

    cli(prog_name="mm1-pipeline")


if __name__ == "__main__":
    main()
