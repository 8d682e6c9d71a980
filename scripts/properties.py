"""Plan random networks by random requests, and hold each plan to what slim promises.

Every case follows from its number: a network of blocks of all kinds, a budget, a score, and rules. What must hold:

- the thin network equals the masked original (an own definition of that, and slim.verify, in float64)
- a budget is kept, or the plan says what held it back; layers keep their floors and what `keep` names
- the plan counts the parameters that the thin network has
- the same request gives the same plan; the model is left as it was
- a plan and a network that were written to files come back, the network bit for bit
- a mistake is a SlimError of one line

    python scripts/properties.py --cases 1000

writes scripts/results/properties-DATE.md and .jsonl, and goes on where it was stopped. `--first N --cases 1` shows a
case again.
"""

import copy
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import shared
import torch
from torch import nn

import slim
from slim.prune.plan import PruningPlan

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from networks import RandomNet, difference, randomise

EXACT = 1e-10  # relative, in float64
ROWS = shared.RESULTS / f"properties-{date.today()}.jsonl"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def request(draw: random.Random) -> dict[str, Any]:
    """Return arguments of `slim.plan`."""
    share = draw.uniform(0.1, 0.95)
    kind: Any = draw.choice([slim.Channels, slim.Flops, slim.Params])
    score = draw.choice([None, slim.Gamma(), slim.Magnitude(), slim.Random(draw.randrange(1000))])
    return {
        "budget": kind(share),
        "score": score,
        "floor": draw.choice([0.0, 0.1, 0.1, 0.4, 3]),
        "scope": draw.choice(["global", "global", "layer", "isomorphic"]),
        "mode": draw.choice(["couple", "couple", "select"]),
        "grouped": draw.choice(["within", "whole"]),
        "round_to": draw.choice([None, 1, 1, 2, 4]),
        "keep": draw.choice([(), (), "blocks.0*", "*1*"]),
    }


def check(number: int) -> str:
    """Raise AssertionError where a promise doesn't hold; else return what became of the request."""
    draw = random.Random(number)
    model = randomise(RandomNet(number, more=True), number).eval()
    before, wanted = copy.deepcopy(model.state_dict()), request(draw)
    try:
        plan = slim.plan(model, X, **wanted)
    except slim.SlimError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, f"an error of {len(str(error))} characters"
        return f"refused: {type(error).__name__}"
    assert same(model.state_dict(), before), "the model was changed"
    thin = plan.apply(model)
    check_exact(model, thin, plan)
    check_kept(thin, plan, wanted)
    assert slim.plan(model, X, **wanted).to_dict() == plan.to_dict(), "the same request gave another plan"
    check_files(model, thin, plan)
    return "short, and said so" if plan.shortfall else "planned"


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_exact(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    error = difference(model, thin, plan.removed, X)
    assert error < EXACT, f"the thin network differs from the masked original by {error:.1e}"
    slim.verify(model, thin, plan, X)


def check_kept(thin: nn.Module, plan: PruningPlan, wanted: Mapping[str, Any]) -> None:
    budget, total = wanted["budget"], plan.totals[wanted["budget"].total]
    reached = total[1] / total[0]
    assert reached <= budget.asked + 1e-9 or plan.shortfall or budget.missed(reached) <= 0.01, (
        f"{reached:.4f} of the {budget.total} stay, {budget.asked:.4f} were asked for, and nothing is said"
    )
    for layer in plan.layers:
        least = wanted["floor"] if wanted["floor"] >= 1 else wanted["floor"] * layer.before
        assert layer.after >= min(layer.before, max(1, least - 1e-9)), f"{layer.name} keeps {layer.after} channels"
    counted, own = plan.totals["params"][1], sum(p.numel() for p in thin.parameters())
    assert counted == own, f"the plan counts {counted} parameters, the thin network has {own}"


def check_files(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    read = PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert read.to_dict() == plan.to_dict() and read.digest == plan.digest, "the plan came back as another"
    with tempfile.TemporaryDirectory() as folder:
        path = slim.save(Path(folder, "x.safetensors"), thin, plan)
        assert same(slim.load(path, model).state_dict(), thin.state_dict()), "the network came back as another"


def outcome(number: int, show: bool = False) -> str:
    """Return what became of a case; what fails begins with "failed"."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return check(number)
        except Exception as error:  # whatever it is, it isn't promised
            if show:
                traceback.print_exc()
            return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    options = shared.parser_of(__doc__)
    options.add_argument("--cases", type=int, default=1000)
    options.add_argument("--first", type=int, help="number of the first one, of cases to be shown and not counted")
    given = options.parse_args()
    torch.set_num_threads(1)
    done = len(shared.read_rows(ROWS)) if given.first is None else given.first
    for number in range(done, given.cases if given.first is None else given.first + given.cases):
        start = time.monotonic()
        came = outcome(number, show=given.first is not None)
        if given.first is None:
            shared.add_row(ROWS, {"case": number, "outcome": came, "seconds": round(time.monotonic() - start, 2)})
        if given.first is not None or came.startswith("failed"):
            print(number, came, flush=True)
    if given.first is None:
        print(shared.write("properties", page_of(shared.read_rows(ROWS))))


def page_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of what became of the cases."""
    counts = Counter(row["outcome"].partition(":")[0] for row in rows)
    table = shared.table(["outcome", "cases"], [[name, f"{count:,}"] for name, count in counts.most_common()])
    failed = "\n".join(f"- {row['case']}: {row['outcome']}" for row in rows if row["outcome"].startswith("failed"))
    return f"# Random networks and plans, held to what slim promises\n\n{shared.ran_on()}\n\n{table}\n\n{failed}\n"


if __name__ == "__main__":
    main()
