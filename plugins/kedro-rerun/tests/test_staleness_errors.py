from __future__ import annotations

from kedro_rerun.errors import unknown_name


def test_an_unknown_name_comes_with_the_nearest():
    told = unknown_name("--env", "smok", ["smoke", "base"])
    assert told == "--env: found 'smok'; did you mean 'smoke'? There are: base, smoke."
    assert unknown_name("--env", "zz", []) == "--env: found 'zz'; there are: none."
