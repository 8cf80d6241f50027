"""Changes one parameter after the other, and compares what reruns with what would have changed.

    python campaigns/edits.py                       # every edit of docs/staleness.md
    python campaigns/edits.py --only sft.seed=5

For each edit, a copy of what a whole run left is run again under the edited parameters; then the
same parameters run whole in an empty root. Both must give the same artifacts and reports, bit for
bit, and no node may run whose outputs are the same in the end, but such as plan or read for others
(`FOR_OTHERS`). Edits that are finished are in the file of `--results`; the same command goes on
behind them. The last line is one JSON object. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from faults import ROOT, load_before_the_c_library
from runs import Project, import_everything

sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from edits_of_parameters import EDITS

FOR_OTHERS = {"report_sources", "plan_mixture", "plan_text_mixture", "plan_vision_mixture"}
"""They run in seconds, and their outputs may come out the same."""


def nested(edit: str) -> dict[str, Any]:
    """`a.b=1` as parameters."""
    path, _, value = edit.partition("=")
    content: Any = yaml.safe_load(value)
    for name in reversed(path.split(".")):
        content = {name: content}
    return content


def nodes_that_ran(words: str) -> list[str]:
    """Names of nodes, from what a run says."""
    return re.findall(r"Running (\w+):", words)


def outputs_of_nodes() -> dict[str, set[str]]:
    """Names of a run's results by the node that makes them."""
    from kedro.framework.project import configure_project, pipelines

    configure_project("mm1_pipeline")
    catalog = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())
    found: dict[str, set[str]] = {}
    for node in pipelines["__default__"].nodes:
        entries = [catalog[name] for name in node.outputs]
        places = [str(entry.get("path") or entry.get("filepath")) for entry in entries]
        found[node.name] = {
            place.removeprefix("${globals:data_root}/").removeprefix("08_reporting/")
            for place in places
        }
    return found


def try_edit(edit: str, base: Mapping[str, str], whole: Path, place: Path) -> dict[str, Any]:
    """Reruns and runs anew.

    Args:
        edit: `path=value`.
        base: Results of the run that is edited.
        whole: What it left.
        place: For the data roots.
    """
    project = Project(place, nested(edit))
    try:
        project.start_from(whole)
        rerun = project.run()
        found = project.results()
        project.start_from(None)
        plain = project.run()
        wanted = project.results()
    finally:
        project.close()
    ran = nodes_that_ran(rerun.words)
    changed = {name for name in wanted if wanted[name] != base.get(name)}
    made = outputs_of_nodes()
    compared = {node: names & wanted.keys() for node, names in made.items()}
    idle = [n for n in ran if compared[n] and not compared[n] & changed and n not in FOR_OTHERS]
    wrong = [outcome.words[-2_000:] for outcome in (rerun, plain) if outcome.status != 0]
    return {
        "edit": edit,
        "expected": sorted(EDITS[edit]),
        "ran": sorted(ran),
        "for nothing": idle,
        "same as a plain run": found == wanted,
        "wrong": wrong,
    }


def main() -> int:
    """Tries the edits; 1 if one did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=sorted(EDITS))
    parser.add_argument("--results", type=Path, default=Path("edits.jsonl"))
    options = parser.parse_args()
    load_before_the_c_library()
    import_everything()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {row["edit"]: row for row in map(json.loads, lines)}
    todo = [edit for edit in options.only or EDITS if edit not in done]
    place = Path(tempfile.mkdtemp(prefix="mm1-edits-"))
    project = Project(place / "whole")
    outcome = project.run()
    assert outcome.status == 0, outcome.words[-3_000:]
    base = project.results()
    project.close()
    for number, edit in enumerate(todo, start=1):
        row = try_edit(edit, base, place / "whole" / "data", place / "edited")
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done[edit] = row
        print(f"{number} of {len(todo)}: {edit}: ran {', '.join(row['ran']) or 'nothing'}")
    shutil.rmtree(place)
    bad = [row for row in done.values() if not held(row)]
    for row in bad:
        print(json.dumps(row, indent=1))
    print(json.dumps({"edits": len(done), "held": len(done) - len(bad)}))
    return int(bool(bad))


def held(row: Mapping[str, Any]) -> bool:
    """Whether what had to run ran, nothing else did, and the results are those of a plain run."""
    as_foretold = set(row["ran"]) <= set(row["expected"])
    return as_foretold and row["same as a plain run"] and not (row["for nothing"] or row["wrong"])


if __name__ == "__main__":
    sys.exit(main())
