"""Take the README's picture of a run's page, light and dark.

    python scripts/readme_picture.py checkpoints/digits

Opens report.html in headless Chromium and writes docs/pictures/run-light.png and run-dark.png: the top of the page.
"""

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    args = parser.parse_args()
    page_url = (args.run / "report.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1080, "height": 860}, device_scale_factor=1.5)
            page.goto(f"{page_url}#theme={theme}")
            page.wait_for_selector("html[data-ready=yes]", timeout=120_000)
            page.screenshot(path=args.out / f"run-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
