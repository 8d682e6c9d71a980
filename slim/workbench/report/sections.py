"""The sections of the page of one run, in the order in which they are read."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from slim import tables
from slim.workbench.report import figures, words
from slim.workbench.report.collect import Run
from slim.workbench.report.html import Cell, escape, missing, table, tag
from slim.workbench.report.words import Record

if TYPE_CHECKING:
    from slim.workbench.report.page import Page

Column = tuple[str, str, Callable[[Any], str]]  # heading, key of the record, how a value is said


def add_to(page: "Page", run: Run) -> None:
    """Add all sections of a run; a part that the run doesn't have says why."""
    known = run.evidence
    page.section("stages", "Stages", stages(run))
    if run.course:
        page.section("training", "Training", page.figure(figures.training(run)))
    page.section(
        "gamma",
        "Scales γ",
        "<p>Each channel of a BatchNorm is multiplied by its scale γ. One whose γ is near zero hardly matters.</p>",
        page.figure(figures.gamma_by_epoch(run)) or missing("No histogram: no training with a penalty is recorded."),
        page.figure(figures.gamma_by_layer(run)) or missing(f"No plot by layer: {run.missing('gamma')}."),
    )
    page.section(
        "layers",
        "The network, before and after",
        *(
            [page.figure(figures.layers(run)), layers(run)]
            if known.get("layers")
            else [missing(f"Not shown: {run.missing('layers')}.")]
        ),
    )
    sweep = page.figure(figures.tradeoff([run])) or missing(f"No sweep of ratios: {run.missing('tradeoff')}.")
    page.section("trade-off", "Trade-off", sweep)
    page.section(
        "latency",
        "Latency",
        *(
            [page.figure(figures.times(run)), page.figure(figures.operators(run))]
            if known.get("latency")
            else [missing(f"Not measured: {run.missing('latency')}.")]
        ),
        benchmark(run),
    )
    page.section("weights", "Weights", weights(run))
    page.section("examples", "Examples", examples(run))


# -- headline ----------------------------------------------------------------------------------------------------------


def lede(run: Run) -> str:
    """What the run did, in two or three sentences."""
    arch = (run.settings.get("model") or {}).get("arch")
    data = (run.settings.get("data") or {}).get("name")
    what = f"{arch} on {data}. " if arch and data else ""
    before, after = run.before, run.after
    if not after:
        return f"{what}This run has not been pruned yet; the page shows what there is."
    if not before:
        return f"{what}The network before pruning left no record, so there is nothing to compare with."
    said = "Pruning"
    if before.get("channels") and after.get("channels"):
        said = f"Removing {1 - after['channels'] / before['channels']:.0%} of the channels"
    params, flops = (1 - after[key] / before[key] for key in ("params", "flops"))
    said += f" took {params:.1%} of the parameters and {flops:.1%} of the FLOPs"
    if after.get("accuracy") is not None and before.get("accuracy") is not None:
        points = 100 * (after["accuracy"] - before["accuracy"])
        moved = f"{'rose' if points > 0 else 'fell'} by {abs(points):.2f} points"
        said += f"; accuracy {'did not change' if abs(points) < 0.005 else moved}"
    return f"{what}{said}. {_speed(run)}".strip()


def _speed(run: Run) -> str:
    """The speed-up in a sentence; one within its own spread is none."""
    fast = run.after.get("speedup")
    if not fast:
        return ""
    rows: list[Record] = ((run.stages.get("onnx") or {}).get("bench") or {}).get("rows") or []
    mine: Record = next((row for row in rows if row.get("speedup") == fast), {})
    if mine.get("differs") is False:
        return f"Its latency is the same within what the measurement can tell ({fast:.2f}× as fast)."
    return f"It runs {fast:.2f}× as fast." if fast > 1 else f"It isn't faster: it takes {1 / fast:.2f}× as long."


def headline(run: Run) -> str:
    """Before → after in one line of large figures."""
    before, after = run.before, run.after or run.before
    if not after:
        return ""
    sizes = {"file_size": run.sizes.get("baseline.onnx") or before.get("file_size")}
    shown: list[Column] = [
        ("Accuracy", "accuracy", lambda v: tables.percent(v, 2)),
        ("Parameters", "params", tables.count),
        ("FLOPs of one image", "flops", tables.count),
        ("Latency", "latency_ms", tables.milliseconds),
        ("ONNX file" if "onnx" in run.stages else "File", "file_size", tables.size),
    ]
    cells = []
    for label, key, say in shown:
        was, now = sizes.get(key, before.get(key)), after.get(key)
        if now is None:
            cells.append(tag("dt", label) + tag("dd", "<small>not measured</small>", class_="now"))
            continue
        number, _, unit = say(now).replace("%", " %").partition(" ")
        rows = tag("dt", label) + tag("dd", number + (f" <small>{unit}</small>" if unit else ""), class_="now")
        if was is not None and after is not before:
            by = tables.points(was, now) if key == "accuracy" else tables.change(was, now)
            rows += tag("dd", f"from {say(was)}", class_="was") + tag("dd", by, class_="by")
        cells.append(rows)
    return tag("dl", "".join(tag("div", cell) for cell in cells), class_="figures")


def facts(run: Run) -> str:
    """The command and settings that made the run; when, where, with which versions and seed."""
    made = run.made
    listed: list[tuple[str, str]] = [("Made by", tag("code", escape(run.command)))]
    if made.get("date"):
        listed.append(("Date", escape(str(made["date"]).replace("T", " ").replace("+00:00", " UTC"))))
    if made.get("machine"):
        listed.append(("Machine", escape(str(made["machine"]))))
    if made.get("versions"):
        listed.append(("Versions", escape(", ".join(f"{name} {v}" for name, v in made["versions"].items()))))
    if "seed" in run.settings:
        listed.append(("Seed", escape(str(run.settings["seed"]))))
    if words.measured_on(run.stages.get("onnx") or {}):
        listed.append(("Latency", escape(words.measured_on(run.stages["onnx"]))))
    seconds = sum(epoch.get("seconds") or 0 for epoch in run.course)
    if seconds:
        epochs = f"{len(run.course)} epoch{'s' * (len(run.course) > 1)}"
        listed.append(("Training", f"{epochs} in {tables.duration(seconds)}"))
    text = tag("dl", "".join(tag("dt", name) + tag("dd", value) for name, value in listed), class_="facts")
    if run.settings:
        settings = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)
        text += tag("details", tag("summary", "All settings (config.yaml)") + tag("pre", escape(settings)))
    return text


# -- stages ------------------------------------------------------------------------------------------------------------

STAGE_COLUMNS: list[Column] = [
    ("accuracy", "accuracy", lambda v: tables.percent(v, 2)),
    ("parameters", "params", lambda v: f"{v:,}"),
    ("FLOPs", "flops", tables.count),
    ("channels", "channels", lambda v: f"{v:,}"),
    ("file", "file_size", tables.size),
    ("latency", "latency_ms", tables.milliseconds),
]


def stages(run: Run) -> str:
    """One row for each stage; by pass where there were several."""
    rows = run.rows
    if not rows:
        return missing("No stage is finished yet: the run was interrupted, or is still training.")
    columns = [column for column in STAGE_COLUMNS if any(record.get(column[1]) is not None for _, record in rows)]
    cells = []
    for label, record in rows:
        cells.append([Cell(escape(label))])
        for _, key, say in columns:
            value, whole = record.get(key), run.before.get(key)
            note = ""
            if value is not None and whole and value != whole:
                note = tables.points(whole, value) if key == "accuracy" else tables.change(whole, value)
            shown = "" if value is None else say(value)
            cells[-1].append(Cell(f"{shown} {tag('small', note.removesuffix(' points'))}"))
    strong = next((i for i, (_, record) in enumerate(rows) if record is run.after), None)
    caption = "Small numbers are the change against the network before pruning; of accuracy, in points."
    if "baseline" in run.stages and "sparse" in run.stages:
        caption += " Baseline and sparse network are trained from the same start, without and with the penalty on γ."
    headings = [("stage", ""), *((name, "number with-change") for name, _, _ in columns)]
    return table(headings, cells, caption, strong=strong)


# -- layers ------------------------------------------------------------------------------------------------------------


def layers(run: Run) -> str:
    """Every layer in a table that can be sorted and copied."""
    shares: Mapping[str, float] = ((run.evidence.get("latency") or {}).get("layers") or {}).get("after") or {}
    rows: list[Record] = run.evidence["layers"]
    numbers = ("#", "channels", "inputs", "FLOPs", "parameters", "time")
    names = ["#", "layer", "kind", "channels", "kept", "inputs", "output", "FLOPs", "parameters"]
    names += ["time"] * any(row["name"] in shares for row in rows)
    names += ["held back"] * any(row["floor"] or row["frozen"] for row in rows)
    cells = []
    for number, row in enumerate(rows, 1):
        held = [f"{row['floor']:,} by the floor"] if row["floor"] else []
        held += [f"{row['frozen']:,} frozen: {row['reason']}"] if row["frozen"] else []
        shape, why = "×".join(map(str, row["shape_after"])), "; ".join(held)
        width = f"{row['before']:,} → {row['after']:,}" if row["before"] != row["after"] else f"{row['after']:,}"
        fewer = tag("small", tables.change(row["flops_before"], row["flops_after"]))
        time = shares.get(row["name"])
        made = {
            "#": Cell(str(number)),
            "layer": Cell(escape(row["name"])),
            "kind": Cell(escape(row["kind"])),
            "channels": Cell(width, row["after"]),
            "kept": Cell(_bar(row), round(row["after"] / row["before"], 4) if row["before"] else 1),
            "inputs": Cell(f"{row['inputs_after']:,}", row["inputs_after"]),
            "output": Cell(shape),
            "FLOPs": Cell(f"{tables.count(row['flops_after'])} {fewer}", row["flops_after"]),
            "parameters": Cell(tables.count(row["params_after"]), row["params_after"]),
            "time": Cell("", "") if time is None else Cell(tables.percent(time), round(time, 4)),
            "held back": Cell(escape(why), why, wrap=bool(why)),
        }
        cells.append([made[name] for name in names])
    headings = [(n, "number with-change" if n == "FLOPs" else "number" if n in numbers else "") for n in names]
    copy = tag("button", "Copy table", type="button", class_="copy", data_table="layer-table")
    note = "Click a heading to sort."
    note += " Time is the layer's share of all operators in the pruned network." if "time" in names else ""
    return (
        tag("div", tag("h3", "All layers") + copy, class_="tools")
        + table(headings, cells, sortable=True, id="layer-table")
        + tag("p", note, class_="note")
    )


def _bar(row: Record) -> str:
    kept = 100 * row["after"] / row["before"] if row["before"] else 100.0
    colour = "bar" if row["norm"] or kept < 100 else "bar fixed"
    bars = tag("span", class_=colour, style=f"width:{kept:.1f}%")
    bars += tag("span", class_="bar gone", style=f"width:{100 - kept:.1f}%") if kept < 100 else ""
    return tag("span", bars, class_="kept-bar", aria_hidden="true")


# -- latency -----------------------------------------------------------------------------------------------------------


def benchmark(run: Run) -> str:
    """The benchmark of the run, file by file; nothing where there is none."""
    bench = (run.stages.get("onnx") or {}).get("bench") or {}
    rows: list[Record] = bench.get("rows") or []
    if not rows:
        return ""
    cells = [
        [
            Cell(escape(words.stage(str(row["model"])))),
            Cell(f"{row['batch_size']:,}"),
            Cell(tables.milliseconds(row["median_ms"])),
            Cell(f"{tables.milliseconds(row['p10_ms']).removesuffix(' ms')} – {tables.milliseconds(row['p90_ms'])}"),
            Cell(f"{row['throughput']:,.0f}"),
            Cell(_speedup(row)),
        ]
        for row in rows
    ]
    names = ["file", "batch", "median", "p10 – p90", "images/s", "speed-up"]
    caption = (
        f"The benchmark of the run: {bench.get('runs')} runs in turn after {bench.get('warmup')} to warm up. Small "
        "numbers: 95% interval of the speed-up."
    )
    headings = [(n, "" if n == "file" else "number with-range" if n == "speed-up" else "number") for n in names]
    return tag("h3", "Side by side") + table(headings, cells, caption)


def _speedup(row: Record) -> str:
    if row["speedup"] is None:  # of other images than the first file
        return ""
    said = f"{row['speedup']:.2f}×"
    if row.get("speedup_low") is None or row["speedup_low"] == row["speedup_high"]:
        return said
    return said + " " + tag("small", f"{row['speedup_low']:.2f} – {row['speedup_high']:.2f}")


# -- weights and examples ----------------------------------------------------------------------------------------------


def weights(run: Run) -> str:
    """Kernels of a few layers before and after."""
    pairs: list[Record] = run.evidence.get("weights") or []
    if not pairs:
        return missing(f"Not shown: {run.missing('weights')}.")
    cells = []
    for pair in pairs:
        sides = []
        for side in ("before", "after"):
            out, inputs, *kernel = pair[f"shape_{side}"]
            size = "×".join(map(str, kernel))
            what = f"{out} filters of {size}" if pair["filters"] else f"{out} × {inputs} kernels"
            share = 100.0 if pair["filters"] else 100 * inputs / max(pair["shape_before"][1], 1)
            alt = f"Weights of {pair['layer']} {side} pruning: {what}"
            picture = tag("img", src=pair[side], alt=alt, style=f"width:{share:.1f}%")
            sides.append(tag("div", picture + tag("p", f"{side}: {what}")))
        cells.append(tag("div", tag("h4", escape(pair["layer"])) + tag("div", "".join(sides), class_="pair")))
    caption = (
        "The first layer filter by filter (blue negative, orange positive; in colour over RGB inputs), the others as "
        "maps: a row for each output channel, a column for each input channel, brighter where the kernel is larger. "
        "Grey is what was removed; the second picture is what is left after all stages."
    )
    return tag("figure", tag("div", "".join(cells), class_="kernels") + tag("figcaption", caption))


def examples(run: Run) -> str:
    """Test images that one of the two networks gets right and the other wrong."""
    found: Record | None = run.evidence.get("examples")
    if not found:
        return missing(f"Not shown: {run.missing('examples')}.")
    counts = (
        f"Of {found['images']:,} test images, {found['both']:,} are right in both networks and {found['neither']:,} "
        f"wrong in both; {found['lost_count']:,} only the original gets right, "
        f"{found['won_count']:,} only the pruned one."
    )
    parts = [tag("p", counts)]
    for key, title, who in (("lost", "Newly wrong", "original"), ("won", "Newly right", "pruned network")):
        samples = found[key]
        more = found[f"{key}_count"] - len(samples)
        said = f"Only the {who} gets these right." if samples else "None."
        said += f" The {len(samples)} that the other is surest of, of {found[f'{key}_count']:,}." if more > 0 else ""
        parts.append(tag("h3", title) + tag("p", said))
        if samples:
            parts.append(tag("ul", "".join(_sample(sample) for sample in samples), class_="samples"))
    return "".join(parts)


def _sample(sample: Record) -> str:
    lines = tag("dt", "truth") + tag("dd", escape(sample["truth"]))
    for side, label in (("before", "original"), ("after", "pruned")):
        answer = sample[side]
        right = "right" if answer["says"] == sample["truth"] else None
        lines += tag("dt", label)
        lines += tag("dd", f"{escape(answer['says'])} <small>{answer['share']:.0%}</small>", class_=right)
    alt = f"Test image of class {sample['truth']}"
    return tag("li", tag("img", src=sample["image"], alt=alt) + tag("dl", lines))
