"""The figures of a benchmark as a table, a picture and JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from slim.deploy.bench.rows import BenchRow
from slim.deploy.target import NodeTime
from slim.extras import named_if_missing
from slim.files import replacing
from slim.tables import FittingTable, Shown, milliseconds, render, size, threads_in_words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False)
class BenchReport(Shown):
    """What `slim.benchmark` measured, and how."""

    rows: list[BenchRow]  # by batch size, then in the order of the networks
    provider: str
    threads: list[int]  # each of them was measured; 0: all cores
    runs: int
    warmup: int
    machine: str
    onnxruntime: str  # version
    torch: str | None = None  # version, where it ran one of the networks
    profiles: dict[str, list[NodeTime]] = field(default_factory=dict)  # all nodes of each file, the slowest first
    profile_shown: int = 0  # of each file, in the table
    notes: list[str] = field(default_factory=list)  # batch sizes and speed-ups that aren't what one might expect
    cautions: list[str] = field(default_factory=list)  # a busy machine, wide intervals

    def row(self, model: str, batch_size: int) -> BenchRow:
        """Return the row of one network at one batch size, with the first number of threads."""
        return next(row for row in self.rows if (row.model, row.batch_size) == (model, batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in plain lists, strings and numbers, as JSON takes them."""
        made = asdict(self)
        for row, plain in zip(self.rows, made["rows"]):
            plain["differs"] = row.differs
        return made

    def save(self, path: str | Path) -> Path:
        """Write all figures as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return Path(path)

    def save_figure(self, path: str | Path) -> Path:
        """Write the picture as an HTML page that needs no network."""
        with replacing(path) as temporary:
            self.figure().write_html(temporary, include_plotlyjs=True)
        return Path(path)

    def figure(self) -> "Figure":
        """Return a Plotly figure: the distribution of times of each network, a panel for each batch size and number of
        threads."""
        with named_if_missing():
            from plotly.subplots import make_subplots

        sizes = list(dict.fromkeys((row.batch_size, row.threads) for row in self.rows))
        several = len(self.threads) > 1
        titles = [f"batch of {size}" + f", {threads_in_words(threads)}" * several for size, threads in sizes]
        figure = make_subplots(rows=1, cols=len(sizes), subplot_titles=titles, shared_yaxes=True)
        models = list(dict.fromkeys(row.model for row in self.rows))
        for row in self.rows:
            name = f"{row.model}  {row.speedup:.2f}×" if len(sizes) == 1 and row.speedup else row.model
            figure.add_box(
                x=row.samples_ms, name=name, boxpoints="all", pointpos=0, jitter=0.6, marker_size=3, opacity=0.8,
                marker_color=COLOURS[models.index(row.model) % len(COLOURS)], showlegend=False,
                row=1, col=sizes.index((row.batch_size, row.threads)) + 1,
            )  # fmt: skip
        figure.update_xaxes(title_text="ms per batch", rangemode="tozero")
        figure.update_yaxes(autorange="reversed")  # the first file on top
        figure.update_layout(
            title=f"Latency: {self._conditions()}<br><sub>{self._where()}</sub>",
            height=200 + 70 * len(models), template="plotly_white",
        )  # fmt: skip
        return figure

    def headline(self) -> str:
        """Return one line: each network's speed-up, from its slowest setting to its fastest."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.speedup:
                found.setdefault(row.model, []).append(row.speedup)
        said = [f"{model} {min(all_):.2f} to {max(all_):.2f}×" for model, all_ in found.items()]
        return "; ".join([f"{len(self.rows)} rows in ms on {self.machine}", *said])

    def __str__(self) -> str:
        shown = [self.table(), self.profile_table()] if self.profiles else [self.table()]
        return "\n".join(render(table) for table in shown)

    def table(self) -> Table:
        """Return all rows, as wide as the terminal allows."""
        table = FittingTable(
            title="Latency in ms per batch",
            drops=("file", "p99", "memory", "p10", "p90", "images/s"),
            caption=f"{self._conditions()}\n{self._where()}\n"
            + "\n".join(
                [
                    "speed-up with a 95 % interval; ≈ where that holds 1: no difference shown",
                    *self.notes,
                    *self.cautions,
                ]
            ),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,
        )
        table.add_column("model", min_width=max(len(row.model) for row in self.rows), no_wrap=True)
        several = len(self.threads) > 1
        setting = (*("threads",) * several, "batch")
        headings = (*setting, "median", "p10", "p90", "p99", "images/s", "memory", "file", "speed-up", "95 %")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            ms = (row.median_ms, row.p10_ms, row.p90_ms, row.p99_ms)
            times = [milliseconds(each).removesuffix(" ms") for each in ms]
            sizes = ["" if value is None else size(value) for value in (row.memory, row.file_size)]
            first = row.model == self.rows[0].model
            speedup = ["", ""]
            if row.speedup is not None:
                mark = "" if first or row.differs else "≈"
                speedup = [
                    f"{mark}{row.speedup:.2f}×",
                    "" if first else f"{row.speedup_low:.2f}–{row.speedup_high:.2f}",
                ]
            threads = [str(row.threads or "all")] * several
            table.add_row(row.model, *threads, str(row.batch_size), *times, f"{row.throughput:,.0f}", *sizes, *speedup)
        return table

    def profile_table(self) -> Table:
        """Return the slowest nodes of each file, and how the time falls to the kinds of operators."""
        first = {row.model: row.batch_size for row in reversed(self.rows)}
        batches = " and ".join(map(str, sorted(set(first.values()))))
        table = Table(
            title=f"Where the time goes, batch of {batches}", title_justify="left", box=box.SIMPLE_HEAD,
            padding=(0, 1), pad_edge=False,
        )  # fmt: skip
        for heading, justify in (("model", "left"), ("node", "left"), ("operator", "left"), ("ms", "right")):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        table.add_column("share", justify="right")
        for model, nodes in self.profiles.items():
            for node in nodes[: self.profile_shown]:
                table.add_row(model, node.node, node.operator, f"{node.ms:.3f}", f"{node.share:.0%}")
            for operator in dict.fromkeys(node.operator for node in nodes[: self.profile_shown]):
                same = [node for node in nodes if node.operator == operator]
                total, share = sum(node.ms for node in same), sum(node.share for node in same)
                table.add_row(model, f"all {len(same)} of them", operator, f"{total:.3f}", f"{share:.0%}")
            table.add_section()
        return table

    def _where(self) -> str:
        """Return versions of what ran, and the machine."""
        versions = [f"onnxruntime {self.onnxruntime}"] if "ExecutionProvider" in self.provider else []
        versions += [f"torch {self.torch}"] if self.torch else []
        return " on ".join(filter(None, [", ".join(versions), self.machine]))

    def _conditions(self) -> str:
        threads = " and ".join(map(threads_in_words, self.threads))
        return f"{self.provider}, {threads}, {self.runs} runs in turn after {self.warmup} to warm up"


COLOURS = ("#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a", "#19d3f3", "#ff6692", "#b6e880")
