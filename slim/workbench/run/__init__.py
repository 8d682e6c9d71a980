"""The stages of a run: each reads the file of the stage before it and writes its own, whole or not at all.

A run is a folder, checkpoints/NAME/. Beside the files of its stages lie `config.yaml` (its settings as last
used), `metrics.jsonl` (a line for each epoch) and `summary.json` (an object for each stage). When a stage is
done again, what later stages had entered in these two is taken out, because it no longer follows.

Every stage prints to `console` (a new one by default) and returns the paths that it wrote.
"""

from slim.workbench.run.deploying import bench_files as bench_files
from slim.workbench.run.deploying import bench_stage as bench_stage
from slim.workbench.run.deploying import export_stage as export_stage
from slim.workbench.run.deploying import int8_stage as int8_stage
from slim.workbench.run.deploying import report_stage as report_stage
from slim.workbench.run.networks import Trained as Trained
from slim.workbench.run.pruning import plan_architecture as plan_architecture
from slim.workbench.run.pruning import plan_file as plan_file
from slim.workbench.run.pruning import prune_stage as prune_stage
from slim.workbench.run.resuming import begun as begun
from slim.workbench.run.resuming import unfinished as unfinished
from slim.workbench.run.training import finetune_stage as finetune_stage
from slim.workbench.run.training import train_stage as train_stage
from slim.workbench.run.whole import run as run
