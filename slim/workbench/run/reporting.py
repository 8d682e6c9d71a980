"""The stage that explains a run on a page, or compares several."""

from collections.abc import Sequence
from pathlib import Path

from slim.workbench import report
from slim.workbench.report import page
from slim.workbench.run.folder import Run


def report_stage(
    run: Run,
    folders: Sequence[Path],
    page_path: Path | None = None,
    *,
    measure: bool = True,
    seconds: float | None = None,
    command: str | None = None,
) -> list[Path]:
    """Make the page of a run, report.html in its folder, or of several, comparison.html beside the first. Before that,
    `measure` what they show and the runs didn't record (the sweep over ratios for `seconds`, by default as the run's
    settings say). `command` is the command line that made the run."""
    for folder in folders:
        report.collect(folder)  # a folder that is no run says so before anything is measured
    written = []
    if measure:
        from slim.workbench.run.evidence.gather import gather  # imports onnxruntime

        for folder in folders:
            written.append(gather(run.replace(folder=folder), command=command, seconds=seconds))
    home = folders[0] / "report.html" if len(folders) == 1 else folders[0].parent / "comparison.html"
    return [page.write([report.collect(folder) for folder in folders], page_path or home), *written]
