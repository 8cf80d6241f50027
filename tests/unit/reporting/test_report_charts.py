from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from markupsafe import Markup

from mm1_pipeline.reporting.charts import (
    HALF,
    Dot,
    Line,
    dot_chart,
    line_chart,
    stacked_bars,
    target_bars,
)

HOSTILE = '</text><script>alert("1")</script> $x^2$ \x00 "&amp;'


def _all_charts(name: str = "a source") -> list[Markup]:
    line = Line(0, [1, 2, 3], [3.0, 2.0, 1.5], ([1, 2, 3], [3.0, 1.9, 1.6]))
    return [
        line_chart([line], title=name, width=HALF),
        stacked_bars({name: (0.75, 0.25)}, title=name, colors=(0, 3), labels=[name]),
        target_bars({name: (0.45, 0.5)}, title=name, labels=[name]),
        dot_chart({name: [Dot(0, 1.0, 0.5, 1.5)]}, title=name, label=name),
    ]


def _texts(svg: Markup) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def test_equal_data_gives_equal_bytes() -> None:
    assert _all_charts() == _all_charts()


def test_charts_carry_no_date_no_reference_no_fixed_color() -> None:
    for svg in _all_charts():
        assert "http" not in svg
        assert "<metadata" not in svg
        assert "<style" not in svg
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg), "a color that cannot follow dark mode"


def test_hostile_names_stay_text() -> None:
    shown = HOSTILE.replace("\x00", "\ufffd")
    for svg in _all_charts(HOSTILE):
        assert "<script" not in svg
        assert ET.fromstring(svg).get("aria-label") == shown
    assert all(shown in _texts(svg) for svg in _all_charts(HOSTILE)[1:])


def test_ids_are_unique_on_a_page_and_references_resolve() -> None:
    page = "".join([*_all_charts("one"), *_all_charts("two")])
    ids = re.findall(r'id="([^"]+)"', page)
    references = re.findall(r'(?:url\(|href=")#([^)"]+)', page)
    assert len(ids) == len(set(ids))
    assert references
    assert set(references) <= set(ids)


def test_a_bar_is_as_long_as_its_share() -> None:
    svg = stacked_bars({"a": (0.75, 0.25)}, title="", colors=(0, 3), labels=["3 of 4"])
    bars = [
        [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))]
        for path in ET.fromstring(svg).iter("path")
        if "--series" in path.get("style", "")
    ]
    kept, rejected = (max(bar) - min(bar) for bar in bars)
    assert abs(kept / rejected - 3.0) < 0.01  # worst seen: 2e-4, from rounding coordinates
    assert "3 of 4" in _texts(svg)


def test_user_settings_do_not_change_a_chart() -> None:
    import matplotlib

    expected = _all_charts()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
        assert _all_charts() == expected
        assert matplotlib.rcParams["font.size"] == 30
