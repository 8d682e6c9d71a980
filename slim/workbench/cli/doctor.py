"""Say what this installation is made of, and whether it can be trusted: train,
prune, prove, save, export and compare a small network, in seconds.

reads   nothing
writes  nothing
next    put what it prints into a bug report
"""

import json
import sys
from collections.abc import Sequence

from slim.workbench.cli.errors import one_line, report_user_errors
from slim.workbench.cli.parser import PlainParser

EXAMPLES = """
slim-doctor > report.txt
slim-doctor --json > report.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    with report_user_errors("slim-doctor", argv):
        parser = PlainParser("slim-doctor", __doc__, EXAMPLES)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        arguments = parser.parse_args(argv)
        from slim.workbench import doctor

        quiet: bool = arguments.json
        facts = doctor.facts()
        if not quiet:
            for name, fact in facts.items():
                print(f"{name:<12}  {fact}")
            print()

        def tell(check: doctor.Check) -> None:
            if not quiet:
                state = "FAILED" if check.failed else "ok"
                print(f"{check.name:<12}  {state}, {check.seconds:.1f} s: {one_line(check.result)}", flush=True)

        checks = doctor.self_test(tell)
        verdict = doctor.verdict(checks)
        trusted = not checks[-1].failed
        if quiet:
            said = {"facts": facts, "checks": [check._asdict() for check in checks], "trusted": trusted}
            print(json.dumps(said | {"verdict": verdict}, ensure_ascii=False))
        else:
            print(f"\n{one_line(verdict)}")
        sys.exit(0 if trusted else 1)
