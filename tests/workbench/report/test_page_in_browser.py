"""report.html as a reader sees it, in headless Chromium: no error, no request, figures that answer.

Skipped where there is no Chromium or no Playwright; .ci/run installs both where it can.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slim.workbench.report import page
from slim.workbench.report.collect import RunRecords

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright isn't installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed")


def run(name: str = "seen", epochs: int = 4) -> RunRecords:
    """A run's records, small and with everything in them."""
    lines = []
    for stage in ("baseline", "sparse", "finetuned"):
        for epoch in range(1, epochs + 1):
            line: dict[str, Any] = {
                "stage": stage,
                "epoch": epoch,
                "train_loss": 2 / epoch,
                "train_accuracy": 0.2 * epoch,
            }
            line |= {"val_loss": 2.5 / epoch, "val_accuracy": 0.19 * epoch, "lr": 0.1 / epoch, "strength": 0.0}
            if stage == "sparse":
                counts = [10 * epoch, *[0] * 38, 100 - 10 * epoch]
                line |= {"near_zero": 0.1 * epoch, "zero": 0.05 * epoch, "strength": 1e-4}
                line["gamma"] = {"layers": {}, "histogram": {"max": 1.0, "counts": counts}}
            lines.append(line)
    full = {"accuracy": 0.95, "params": 1000, "flops": 5000, "channels": 100, "file_size": 9000, "latency_ms": 1.5}
    less = {"accuracy": 0.93, "params": 300, "flops": 900, "channels": 50, "file_size": 3000, "latency_ms": 0.5}
    shape = {"shape_before": [64, 8, 8], "shape_after": [24, 8, 8], "inputs_before": 3, "inputs_after": 3}
    sizes = {"params_before": 900, "params_after": 300, "flops_before": 5000, "flops_after": 900}
    rest = {"floor": 0, "frozen": 0, "reason": "", "tie": 0, **shape, **sizes}
    layers: list[dict[str, Any]] = [
        {"name": name, "kind": "3×3 convolution", "norm": f"{name}.bn", "before": 64, "after": after, **rest}
        for name, after in (("stem", 24), ("body", 40), ("head", 8))
    ]
    layers[1] |= {"frozen": 5, "reason": "kept on request"}
    points = [{"ratio": r, "accuracy": 1 - r, "flops": 1 - r, "params": 1 - r} for r in (0, 0.25, 0.5, 0.75)]
    times = {"before": [1.5, 1.6, 1.4] * 8, "after": [0.5, 0.6, 0.4] * 8}
    share = {"stem": 0.2, "body": 0.3, "head": 0.1}
    evidence = {
        "layers": layers,
        "gamma": {"layers": {"stem.bn": {"kept": [0.5, 0.7], "removed": [0.01, 0.02]}}, "threshold": 0.1},
        "tradeoff": {
            "points": points,
            "chosen": 0.5,
            "result": 0.93,
            "split": "validation",
            "images": 500,
            "skipped": [],
        },
        "latency": {
            "times": [{"batch_size": b, "threads": t, "ms": times} for b in (1, 32) for t in (1, 2)],
            "operators": {"before": {"Conv": 1.0, "Relu": 0.2}, "after": {"FusedConv": 0.3, "Relu": 0.1}},
            "layers": {"before": share, "after": share},
            "provider": "CPUExecutionProvider",
        },
    }
    settings = {"name": name, "seed": 0, "model": {"arch": "slim:vgg7"}, "data": {"name": "digits"}}
    stages = {"baseline": full, "sparse": full, "pruned": less, "finetuned": less, "onnx": less | {"speedup": 3.0}}
    return RunRecords(Path("checkpoints") / name, settings, stages, lines, evidence)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Seen:
    """A page that is open, and what went on behind it."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write([run()], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def seen(browser: Any, path: Path) -> Seen:
    return Seen(browser, path, permissions=["clipboard-read", "clipboard-write"])


def test_no_error_and_no_request(seen: Seen, path: Path) -> None:
    seen.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    for plot in seen.locator(".plot").all():
        assert plot.locator(".main-svg").count() >= 1, plot.get_attribute("id")
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]
    with pytest.raises(playwright.Error, match="Failed to fetch"):  # the policy holds, whatever a script tries
        seen.evaluate("fetch('https://example.org')")
    assert "Content Security Policy" in seen.complaints.pop()
    seen.complaints.clear()


def bars(seen: Seen) -> list[float]:
    """Heights of the histogram's bars in pixels."""
    script = "[...document.querySelectorAll('#plot-gamma .bars .point path')].map(p => p.getBBox().height)"
    return [float(height) for height in seen.evaluate(script)]


def test_the_slider_moves_the_histogram(seen: Seen) -> None:
    slider = seen.locator("#slider-gamma input[type=range]")
    output = seen.locator("#slider-gamma output")
    assert slider.get_attribute("max") == "3"
    assert "sparse, epoch 4 of 4" in output.inner_text() and "40.0%" in output.inner_text()
    last = bars(seen)
    slider.focus()
    seen.keyboard.press("Home")
    seen.locator("#slider-gamma output", has_text="epoch 1 of 4").wait_for()
    first = bars(seen)
    assert first[0] == pytest.approx(last[0] / 4, rel=0.02)  # 10 channels at zero, then 40
    assert slider.get_attribute("aria-valuetext") == "sparse, epoch 1 of 4"
    seen.locator("#slider-gamma button").click()
    seen.locator("#slider-gamma output", has_text="epoch 4 of 4").wait_for()
    assert bars(seen)[0] == pytest.approx(last[0], rel=0.02)


def test_hovering_shows_a_layer(seen: Seen) -> None:
    plot = seen.locator("#plot-layers")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".bars .point path").nth(1).bounding_box()
    seen.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    label = plot.locator(".hoverlayer .hovertext", has_text="body")  # on the way the mouse crosses another bar
    label.wait_for()
    text = label.text_content()
    for part in (
        "body",
        "channels 64 → 40",
        "64×8×8 → 24×8×8",
        "FLOPs 5.00 k → 900",
        "30.0%",
        "5 frozen: kept on request",
    ):
        assert part in text, text


def test_the_table_sorts_and_copies(seen: Seen) -> None:
    def names() -> list[str]:
        return [str(row.locator("td").nth(1).inner_text()) for row in seen.locator("#layer-table tbody tr").all()]

    heading = seen.locator("#layer-table th", has_text="channels")
    assert names() == ["stem", "body", "head"]
    heading.locator("button").click()
    assert names() == ["head", "stem", "body"] and heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert names() == ["body", "stem", "head"] and heading.get_attribute("aria-sort") == "descending"
    seen.locator("button.copy").click()
    seen.get_by_text("Copied").wait_for()
    lines = seen.evaluate("navigator.clipboard.readText()").splitlines()
    assert [line.split("\t")[1] for line in lines] == ["layer", "body", "stem", "head"]
    assert lines[1].split("\t")[3] == "40"


def luminance(colour: str) -> float:
    """WCAG 2.2: relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(seen: Seen, scheme: str) -> None:
    seen.emulate_media(color_scheme=scheme)
    seen.locator(f"html[data-theme={scheme}]").wait_for()
    paper = luminance(seen.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.1) == (scheme == "dark")
    for selector in ("h1", ".lede", "figcaption", "td", "th", ".was", "nav a", ".facts dd", "td small"):
        text = luminance(seen.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color"))
        assert (max(text, paper) + 0.05) / (min(text, paper) + 0.05) >= 4.5, selector
    tick = luminance(seen.evaluate("document.querySelector('#plot-gamma .xtick text').style.fill"))
    assert (max(tick, paper) + 0.05) / (min(tick, paper) + 0.05) >= 4.5
    seen.locator("#theme").click()
    assert seen.evaluate("document.documentElement.dataset.theme") != scheme
    assert luminance(seen.evaluate("document.querySelector('#plot-gamma .xtick text').style.fill")) != tick
    seen.locator("#theme").click()
    assert seen.complaints == []


def test_a_narrow_window_never_scrolls_sideways(seen: Seen) -> None:
    widest = """Math.max(document.documentElement.scrollWidth,
        ...[...document.querySelectorAll('.plot .main-svg')].map((s) => s.getBoundingClientRect().width))"""
    for width in (768, 390, 320, 1200):
        seen.set_viewport_size({"width": width, "height": 900})
        until = time.monotonic() + 20  # figures follow the window a moment later
        while seen.evaluate(widest) > width and time.monotonic() < until:
            seen.wait_for_timeout(100)
        assert seen.evaluate(widest) <= width
    assert seen.complaints == []


def test_the_stages_can_be_read_on_a_phone(seen: Seen) -> None:
    seen.set_viewport_size({"width": 400, "height": 900})
    for cell in seen.locator("table.cards tr.result td").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
    label = seen.evaluate("getComputedStyle(document.querySelector('table.cards td + td'), '::before').content")
    assert label == '"accuracy"'
    widths = seen.evaluate(
        "[...document.querySelectorAll('.figures > div')].map((d) => d.getBoundingClientRect().right)"
    )
    assert widths[-1] == pytest.approx(max(widths), abs=2)  # the last row is full: no empty cell
    seen.set_viewport_size({"width": 1200, "height": 900})


def test_everything_has_a_name_for_a_screen_reader(seen: Seen) -> None:
    unnamed = seen.evaluate(
        """[...document.querySelectorAll("img:not([alt]), button, input, section, figure, nav, .plot")].filter((e) => {
            if (e.tagName === "IMG") return true;
            const by = e.getAttribute("aria-labelledby");
            const named = e.getAttribute("aria-label") || (by && document.getElementById(by)?.textContent);
            return !(named || e.textContent.trim() || e.closest("label")?.textContent.trim());
        }).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    headings = seen.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))")
    assert headings[0] == 1 and all(b <= a + 1 for a, b in zip(headings, headings[1:]))  # noqa: RUF007
    assert seen.evaluate("document.documentElement.lang") == "en" and seen.title() == "seen: slim report"


def test_it_prints_in_light_colours(seen: Seen) -> None:
    seen.emulate_media(color_scheme="dark")
    seen.locator("html[data-theme=dark]").wait_for()
    seen.evaluate("addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme; })")
    assert seen.pdf(format="A4").startswith(b"%PDF")
    assert seen.evaluate("window.printed") == "light"
    seen.locator("html[data-theme=dark]").wait_for()
    seen.emulate_media(color_scheme="light")


@pytest.mark.parametrize("epochs", [0, 1])
def test_little_to_show_is_no_error(browser: Any, tmp_path: Path, epochs: int) -> None:
    little = run(epochs=epochs)
    little.evidence.clear()
    if not epochs:
        little.summary.clear()
    seen = Seen(browser, page.write([little], tmp_path / "report.html"))
    assert seen.complaints == [] and seen.locator(".missing").count() >= 5
    seen.context.close()


def test_a_comparison_of_four_runs(browser: Any, tmp_path: Path) -> None:
    runs = [run(name) for name in ("one", "two", "three", "four")]
    for i, each in enumerate(runs):
        each.settings["seed"] = i
        each.summary["onnx"] = each.summary["onnx"] | {"accuracy": 0.9 + i / 100, "flops": 500 + 100 * i}
    seen = Seen(browser, page.write(runs, tmp_path / "comparison.html"))
    assert seen.complaints == []
    for name in ("frontier-flops", "frontier-params", "frontier-latency_ms", "tradeoff", "progress"):
        assert seen.locator(f"#plot-{name} .main-svg").count() >= 1
    assert {text.text_content() for text in seen.locator("#plot-frontier-flops .textpoint").all()} == {
        r.name for r in runs
    }
    seen.context.close()
