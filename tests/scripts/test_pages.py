"""The experiments' pages in a browser: they stand still at first, the slider moves them, and they know the dark."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import page

CHROMIUM = shutil.which("chromium")
PLOT = "document.querySelector('.plotly-graph-div')"


def figure() -> Any:
    go = pytest.importorskip("plotly.graph_objects")
    frames = [go.Frame(name=str(i), data=[go.Bar(y=[1, 2, 3 + i])]) for i in range(4)]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": str(i), "method": "animate", "args": [[str(i)], now]} for i in range(4)]
    return go.Figure(go.Bar(y=[1, 2, 3]), {"sliders": [{"steps": steps}]}, frames)


def test_text_is_escaped_and_nothing_is_fetched() -> None:
    text = page("Where", "What 3 < 4 says.\n\nSeen:\n\n- this & that\n- and so on", [figure(), figure()])
    assert "<p>What 3 &lt; 4 says.</p>" in text and "<p>Seen:</p>" in text
    assert "<ul><li>this &amp; that</li><li>and so on</li></ul>" in text
    assert text.count("plotly.js v") == 1 and "<script src=" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize(("scheme", "ink"), [("light", "#1d1d1f"), ("dark", "#e8eaed")])
def test_the_slider_moves_a_page_that_knows_the_dark(scheme: Any, ink: str, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(page("Where", "What to see.", [figure()]), encoding="utf-8")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 800})
        shown.set_default_timeout(120_000)  # a busy machine takes its time over 5 MB of plotly.js
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto((tmp_path / "page.html").as_uri())
        shown.wait_for_selector(f"html[data-theme={scheme}]")
        assert shown.evaluate(f"{PLOT}._fullLayout.font.color") == ink
        assert shown.evaluate(f"{PLOT}.data[0].y") == [1, 2, 3]
        rail = shown.locator(".slider-rail-touch-rect").bounding_box()
        assert rail is not None
        shown.mouse.click(rail["x"] + rail["width"] - 4, rail["y"] + rail["height"] / 2)
        shown.wait_for_function(f"{PLOT}.data[0].y[2] == 6")
        browser.close()
        assert not errors
