"""A run, or several, as Markdown for a README or a pull request."""

from collections.abc import Sequence

from slim import tables
from slim.workbench.report import words
from slim.workbench.report.collect import Run
from slim.workbench.report.words import Record


def of(runs: Sequence[Run]) -> str:
    """The stages of one run, or the results of several, as a table with a sentence and the conditions under it."""
    return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def stages(run: Run) -> str:
    """One row for each stage, in the columns that any of them has."""
    rows = [[label, *_cells(record)] for label, record in run.rows]
    return table(["stage", *HEADINGS], rows)


HEADINGS = ["accuracy", "parameters", "FLOPs", "channels", "file", "latency"]


def _cells(record: Record) -> list[str]:
    def say(key: str, how: object) -> str:
        return "" if record.get(key) is None else how(record[key])  # type: ignore[operator]

    return [
        say("accuracy", lambda v: tables.percent(v, 2)),
        say("params", lambda v: f"{v:,}"),
        say("flops", tables.count),
        say("channels", lambda v: f"{v:,}"),
        say("file_size", tables.size),
        say("latency_ms", tables.milliseconds),
    ]


def _of_one(run: Run) -> str:
    lines = [f"### {run.name}", ""]
    if not run.stages:
        return "\n".join([*lines, f"No stage is finished yet; {len(run.course)} epochs are recorded."]) + "\n"
    lines.append(stages(run))
    if run.after and run.before:
        lines += ["", f"Against the first row: {words.headline(run.before, run.after)}."]
    lines += ["", conditions(run)]
    return "\n".join(lines) + "\n"


def conditions(run: Run) -> str:
    """Where and how the numbers were made, in one line."""
    model, data = run.settings.get("model") or {}, run.settings.get("data") or {}
    parts = [f"`{run.command}`"]
    parts += [f"{model['arch']} on {data['name']}"] if "arch" in model and "name" in data else []
    parts += [f"seed {run.settings['seed']}"] if "seed" in run.settings else []
    measured = words.measured_on(run.stages.get("onnx") or {})
    parts += [f"latency: {measured}"] if measured else []
    parts += [str(run.made[key])[:limit] for key, limit in (("machine", 200), ("date", 10)) if run.made.get(key)]
    return "; ".join(parts) + "."


def _of_several(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        before, after = run.before, run.after or run.before
        cells = _cells(after)
        for i, key in enumerate(("accuracy", "params", "flops", "channels", "file_size", "latency_ms")):
            if after is not before and before.get(key) and after.get(key) is not None and key != "file_size":
                by = (
                    tables.points(before[key], after[key])
                    if key == "accuracy"
                    else tables.change(before[key], after[key])
                )
                cells[i] += f" ({by})"
        rows.append([run.name, *cells])
    text = table(["run", *HEADINGS], rows)
    return f"{text}\n\nIn brackets: against each run's own network before pruning.\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without the columns that are empty throughout; all but the first to the right."""
    shown = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
    lines = [[headings[i] for i in shown], ["---" if i == 0 else "---:" for i in shown]]
    lines += [[row[i].replace("|", "\\|") for i in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
