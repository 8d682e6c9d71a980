"""What to do next, computed from a run's records: how far to prune, and which file to deploy."""

from typing import NamedTuple

from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record

HOLDS = 0.01  # what a metric that is no share may lose, relative, and still hold


class Deployment(NamedTuple):
    """A file of the run, and why it is the one to deploy."""

    file: str
    why: str


def how_far(run: RunRecords) -> tuple[str, str]:
    """Return how large a cut still holds on held-out images, and the command that follows; each may be ""."""
    sweep, metric = run.evidence.get("tradeoff") or {}, run.metric
    points = [(point["ratio"], _best(point, run)) for point in sweep.get("points") or []]
    if len(points) < 2:
        return "", ""
    (_, whole), *cuts = points
    spare = spread(whole, sweep["images"]) if metric.share else abs(whole) * HOLDS
    held = [(ratio, value) for ratio, value in cuts if metric.loss(whole, value) <= spare]
    images = f"{sweep['images']:,} {sweep['split']} images"
    if not held:
        return f"On {images} no cut holds without training: what is won back comes from fine-tuning.", ""
    ratio, value = held[-1]
    said = (
        f"On {images} a cut of {ratio:.0%} of the channels still holds without training: {metric.title} "
        f"{metric.format(value)} against {metric.format(whole)}, which is within what so many images can tell."
    )
    chosen = sweep.get("chosen")
    if chosen is None or abs(ratio - chosen) <= 0.02:
        return said, ""
    if ratio > chosen:
        return f"{said} This run removed {chosen:.0%}.", f"slim-prune --ratio {ratio:.2g}"
    return f"{said} This run removed {chosen:.0%}, so it rests on its fine-tuning.", ""


def _best(point: Record, run: RunRecords) -> float:
    """Return the metric of a pruned network, recovered where that is better."""
    plain, recovered = float(point[run.metric.name]), point.get("recovered")
    return plain if recovered is None or run.metric.is_better(plain, recovered) else float(recovered)


def spread(share: float, images: int) -> float:
    """Return half of the 95 % interval of a share of that many images (Agresti and Coull, 1998)."""
    middle = (share * images + 2) / (images + 4)
    return float(1.96 * (middle * (1 - middle) / (images + 4)) ** 0.5)


def same_setting(row: Record, other: Record) -> bool:
    """Return whether two rows of a benchmark are of the same batch size and number of threads."""
    return all(row.get(key) == other.get(key) for key in ("batch_size", "threads"))


def deployment(run: RunRecords) -> Deployment | None:
    """Return which of a run's ONNX files to deploy where it was measured; None before there are any."""
    if "onnx" not in run.stages:
        return None
    first = [row for row in run.bench.get("rows") or [] if same_setting(row, run.bench["rows"][0])]
    rows = {row["model"]: row for row in first if row.get("speedup_low") is not None}
    plain, int8 = rows.get("onnx"), rows.get("int8")
    if plain and int8 and int8["speedup_low"] > max(1.0, plain["speedup_high"]):
        return Deployment("model.int8.onnx", "8-bit integers are faster here, and as good on the test images")
    if plain and plain["speedup_high"] < 1:
        return Deployment("baseline.onnx", "the pruned network is slower here; model.onnx is the one for little memory")
    if plain and plain["speedup_low"] > 1:
        return Deployment("model.onnx", "the pruned network is faster here")
    return Deployment("model.onnx", "the pruned network is smaller, though no difference in latency is shown here")
