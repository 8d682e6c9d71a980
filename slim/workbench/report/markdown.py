"""A run, or several, as Markdown for a README or a pull request."""

from collections.abc import Sequence

from markupsafe import Markup

from slim.workbench.report.collect import RunRecords, drawn_from
from slim.workbench.report.columns import columns, conditions
from slim.workbench.report.rendering import code, markdown, render


def of(runs: Sequence[RunRecords]) -> str:
    """Return the stages of one run, or the results of several, as a table with a sentence and the conditions."""
    with drawn_from(runs):
        return _text(runs)


def _text(runs: Sequence[RunRecords]) -> str:
    if len(runs) == 1:
        [run] = runs
        return render("run.md", run=run, stages=stages(run), origin=origin(run))
    shown = columns(run.after or run.before for run in runs)
    rows = []
    for run in runs:
        after = run.after or run.before
        changes = ["" if column.key == "file_size" else column.change_text(run.before, after) for column in shown]
        texts = [column.text(after) for column in shown]
        rows.append([run.name, *(f"{text} ({by})" if by else text for text, by in zip(texts, changes))])
    text = table(["run", *(column.heading for column in shown)], rows)
    return f"{text}\n\nIn brackets: against each run's own network before pruning.\n"


def stages(run: RunRecords) -> Markup:
    """Return one row for each stage, in the columns that any of them has."""
    shown = columns(record for _, record in run.rows)
    rows = [[label, *(column.text(record) for column in shown)] for label, record in run.rows]
    return table(["stage", *(column.heading for column in shown)], rows) if rows else Markup()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a Markdown table; all but the first column to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *([markdown(cell) for cell in row] for row in rows)]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def origin(run: RunRecords) -> Markup:
    """Return where and how the numbers were made, in one line."""
    measured = conditions(run.bench)
    parts = [f"{run.arch} on {run.data}"] if run.arch and run.data else []
    parts += [f"seed {run.settings['seed']}"] if "seed" in run.settings else []
    parts += [f"latency: {measured}"] if measured else []
    parts += [str(run.made[key])[:limit] for key, limit in (("machine", 200), ("date", 10)) if run.made.get(key)]
    return Markup("; ".join([code(run.command), *map(markdown, parts)]) + ".")
