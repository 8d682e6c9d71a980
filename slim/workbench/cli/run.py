"""Do it all: train a baseline, train with a penalty on γ, prune, fine-tune,
export, measure. With --model.weights the baseline is the network as it came,
which is pruned right away (--run.path says otherwise).

reads   the data set (the digits need no download)
writes  checkpoints/NAME/: a checkpoint of each stage, plan.json, model.onnx,
        baseline.onnx, metrics.jsonl, summary.json, config.yaml,
        model_card.md, report.html, evidence.json
next    slim-predict
"""

import shlex
import sys
from collections.abc import Sequence

from slim.workbench import presets
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import SettingsParser

EXAMPLES = """
slim-run digits                         # minutes on two cores, no download
slim-run mine.yaml --prune.ratio 0.7    # settings of your own
"""
SECTIONS = ["passes", "run", "train", "sparsity", "prune", "finetune", "export"]  # what its files follow from


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-run", argv, resumes=True) as words:
        parser = SettingsParser("slim-run", __doc__, EXAMPLES, "run", ["*"])
        parser.add_argument("--list", action="store_true", help="show the settings that come with slim, and stop")
        parser.add_beginning()
        parser.add_resume()
        given = parser.read(argv)
        if given.arguments.list:
            print(presets.overview())
            return
        run = given.new_run(["baseline", "sparse", "finetuned"], SECTIONS, words)
        from slim.workbench.run.whole import last_stage, run_all

        written = run_all(run, command=shlex.join(["slim-run", *(sys.argv[1:] if argv is None else argv)]))
        exported = run.path("onnx") in written  # some networks no exporter takes
        predicts = exported and run.settings.task in ("classification", "multilabel")
        result = run.path(last_stage(run.settings))
        given.finish(
            written,
            f"slim-predict {run.path('onnx')} IMAGE"
            if predicts
            else f"slim.OnnxModel('{run.path('onnx')}') in Python"
            if exported
            else f"slim.load('{result}') in Python",
        )
