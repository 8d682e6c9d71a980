"""The stages of a run: each reads the file of the stage before it and writes its own, whole or not at all.

A `Run` is a folder, checkpoints/NAME/, and what its stages share. Beside the files of its stages lie `config.yaml` (its
settings as last used), `metrics.jsonl` (a line for each epoch) and `summary.json` (an object for each stage). When a
stage is done again, what later stages had entered in these two is taken out, because it no longer follows.

`training`, `pruning`, `exporting`, `measuring` and `reporting` hold the stages, `whole` all of them in a row.
"""

from slim.workbench.run.exporting import export_stage, int8_stage
from slim.workbench.run.folder import ROOT, Run
from slim.workbench.run.measuring import bench_files, bench_stage
from slim.workbench.run.networks import Trained
from slim.workbench.run.pruning import plan_architecture, plan_file, prune_stage
from slim.workbench.run.reporting import report_stage
from slim.workbench.run.stages import STAGES
from slim.workbench.run.training import finetune_stage, train_stage
from slim.workbench.run.whole import run_all

__all__ = [
    "ROOT",
    "STAGES",
    "Run",
    "Trained",
    "bench_files",
    "bench_stage",
    "export_stage",
    "finetune_stage",
    "int8_stage",
    "plan_architecture",
    "plan_file",
    "prune_stage",
    "report_stage",
    "run_all",
    "train_stage",
]
