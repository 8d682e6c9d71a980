"""Change slim's code a little, at one place at a time, and see whether its tests notice: mutation testing.

A sample of mutants, drawn by a seed, of the rooms trace, prune (without recovery) and sparsity: a + that is a -, a
condition turned round, a number one larger, a loop of no turns. The operators are cosmic-ray's; what only changes an
annotation, or is no Python, isn't drawn. Tests that reach the changed statement run, those first that killed others
before, then the quickest, to the first that fails or until `--seconds` of tests are over. Each mutant lives in a
process of its own, and in no file: forked from one that has collected all tests, where it takes the place of a
function's code; else slim is imported with it.

    python scripts/mutation.py --mutants 200

writes scripts/results/mutation_seedN-DATE.md and .jsonl, and goes on where it was stopped. Mutants of other results
aren't drawn again: those of a new seed are fresh. Survivors that were looked at, and
found to do the same as the original, are named in scripts/results/mutation-equivalent.json, with the reason. `--again`
tries the survivors of that file once more, with the tests as they are now and all the time they take, or those of
`--tests`. Which tests reach what is found out first, and kept in a folder for temporary files.
"""

import ast
import difflib
import gc
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from inspect import CO_OPTIMIZED
from itertools import islice, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest
import shared
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parent.parent
MUTATED = ("slim/trace/**/*.py", "slim/prune/*.py", "slim/sparsity/*.py")
TESTS = ("tests/trace", "tests/prune", "tests/sparsity")
LEFT_OUT = {"test_recovery", "test_merging", "test_distances", "test_wild"}  # of another room, or of minutes
EQUIVALENT = shared.RESULTS / "mutation-equivalent.json"
FORKED = multiprocessing.get_context("fork")  # from this process, which has torch and nothing of slim
IMPORTED = ["torch", "torch._dynamo", "torchvision", "timm", "lightning", "sklearn.datasets", "torch_pruning", "onnx"]
MEMORY = 8 * 2**30  # bytes that a mutant may take
SLACK = 30  # s that tests may take beyond twice their usual
OUTCOMES = ("killed", "timeout", "survived", "not reached")


# -- mutants -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A change of one place."""

    file: str
    line: int
    operator: str
    occurrence: int

    @property
    def module(self) -> str:
        """Return the name of the module."""
        return ".".join(Path(self.file).with_suffix("").parts).removesuffix(".__init__")

    @cached_property
    def source(self) -> str:
        """Return the whole file, changed."""
        made = mutate_code(read(self.file), plugins.get_operator(self.operator)(), self.occurrence)
        assert made is not None, f"{self} isn't there"
        return str(made)

    @cached_property
    def change(self) -> str:
        """Return what is changed, in a form that stays the same when lines above it come or go."""
        before, after = read(self.file).splitlines(), self.source.splitlines()
        lines = [line for line in difflib.unified_diff(before, after, lineterm="", n=0)][2:]
        parts = ("".join(f" {line[1:].strip()}" for line in lines if line.startswith(sign)) for sign in "-+")
        return f"{self.file}:{' →'.join(parts)}"


@cache
def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def operators() -> dict[str, Any]:
    """Return cosmic-ray's operators by name, those apart that need to be told names."""
    found = {name: plugins.get_operator(name) for name in plugins.operator_names()}
    return {name: kind() for name, kind in found.items() if not kind.arguments()}


def places(file: str) -> dict[tuple[int, int], list[Mutant]]:
    """Return the mutants of a file by line and column."""
    found: dict[tuple[int, int], list[Mutant]] = {}
    nodes = list(ast_nodes(get_ast(read(file))))
    for name, operator in operators().items():
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            found.setdefault(start, []).append(Mutant(file, start[0], name, occurrence))
    return found


def sampled(seed: int) -> Iterator[Mutant]:
    """Yield mutants in random order: no two of one place, all places alike."""
    draw = random.Random(seed)
    files = sorted(str(path.relative_to(ROOT)) for pattern in MUTATED for path in ROOT.glob(pattern))
    everywhere = [mutants for file in files for _, mutants in sorted(places(file).items())]
    draw.shuffle(everywhere)
    for mutants in everywhere:
        mutant = draw.choice(mutants)
        if acts(mutant):
            yield mutant


def acts(mutant: Mutant) -> bool:
    """Say whether a mutant is Python, and is another program than the original."""
    try:
        made = ast.parse(mutant.source)
    except SyntaxError:
        return False
    return without_annotations(made) != without_annotations(ast.parse(read(mutant.file)))


def without_annotations(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def statement(mutant: Mutant) -> set[int]:
    """Return the lines of the statement that a mutant changes; of one that holds others, those before them."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(read(mutant.file))):
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            lines = set(range(node.lineno, max(node.lineno, end) + 1))
            if mutant.line in lines:
                found = lines  # those within others come later
    return found or {mutant.line}


def function_of(mutant: Mutant) -> ast.FunctionDef | None:
    """Return the function, of a module or a class, in whose body a mutant changes something, if it is one."""
    for node in ast.walk(ast.parse(read(mutant.file))):  # those within others come later
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= mutant.line <= (node.end_lineno or 0):
            return node
    return None


# -- within a process of its own ---------------------------------------------------------------------------------------


class Changed(SourceFileLoader):
    """Loads a module from a changed source."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


class Finder(MetaPathFinder):
    """Finds the module of a mutant before all others do."""

    def __init__(self, mutant: Mutant) -> None:
        self.file, self.module, self.source = ROOT / mutant.file, mutant.module, mutant.source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        loader = Changed(name, str(self.file))
        loader.source = self.source
        folders = [str(self.file.parent)] if self.file.name == "__init__.py" else None
        return spec_from_file_location(name, self.file, loader=loader, submodule_search_locations=folders)


class Noted:
    """A plugin of pytest that notes the seconds of each test, and which failed; with a coverage, what each reached."""

    def __init__(self, measured: coverage.Coverage | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.measured = measured

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.measured is not None:
            self.measured.switch_context(item.nodeid)
        start = time.process_time()
        done = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid or 'conftest'}, which can't be imported")


def run_tests(tests: Sequence[str], plugin: object) -> int:
    """Run tests in this process, without a word, and return pytest's status."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silence, stream)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        options = ["-x", "-n", "0", "-p", "no:cacheprovider", "--tb", "no", "--basetemp", f"{folder}/tests"]
        return int(pytest.main([*options, *tests], plugins=[plugin]))


def measure(file: str, tells: Connection) -> None:
    """Tell what the tests of a file reach: their seconds, and the lines of each module."""
    measured = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / p) for p in MUTATED])
    noted = Noted(measured)
    measured.start()
    status = run_tests([file], noted)
    measured.stop()
    lines: dict[str, dict[str, list[int]]] = {}
    data = measured.get_data()
    for path in data.measured_files():
        for line, tests in data.contexts_by_lineno(path).items():
            for test in tests:
                lines.setdefault(test, {}).setdefault(str(Path(path).relative_to(ROOT)), []).append(line)
    tells.send((status, noted.failed, noted.seconds, lines))


def attempt(mutant: Mutant | None, tests: Sequence[str], tells: Connection) -> None:
    """Tell how tests of a mutant (None: of slim as it is) end, after slim was imported with it."""
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    noted = Noted()
    status = run_tests(tests, noted)
    tells.send((status, noted.failed))


class Served:
    """A plugin of pytest that runs chosen tests of mutants instead of all that were collected, and tells how they end,
    as `attempt` does."""

    def __init__(self, wanted: Sequence["Wanted"], tells: Connection) -> None:
        self.wanted, self.tells = wanted, tells

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items, kills = {item.nodeid: item for item in session.items}, Counter[str]()
        gc.freeze()
        for each in self.wanted:
            chosen = [items[test] for test in sorted(each.tests, key=lambda test: -kills[test])]
            told = in_a_process(swapped, each.mutant, chosen, seconds=each.limit)
            kills.update(told[1] if told else [])
            self.tells.send(told)
        return True


def serve(files: Sequence[str], wanted: Sequence["Wanted"], tells: Connection) -> None:
    """Tell, one after the other, how tests of mutants of functions end."""
    run_tests(files, Served(wanted, tells))


def swapped(mutant: Mutant, items: Sequence[pytest.Item], tells: Connection) -> None:
    """Put a mutant's code in the place of the original's and tell how tests end."""
    noted = Noted()
    items[0].config.pluginmanager.register(noted)
    put_in_place(mutant)
    for item, following in pairwise([*items, None]):
        assert item is not None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if noted.failed:
            break
    tells.send((int(bool(noted.failed)), noted.failed))


def put_in_place(mutant: Mutant) -> None:
    """Give the functions that a mutant changes their code, wherever they are known by now."""
    import_module(mutant.module)  # not by now, where slim looks its name up on first use
    path, function = str(ROOT / mutant.file), function_of(mutant)
    assert function is not None
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    [code] = [code for code in codes_in(compile(mutant.source, path, "exec")) if code.co_firstlineno == first]
    found = [f for f in known_functions() if f.__code__.co_filename == path and f.__code__.co_firstlineno == first]
    assert found, f"nothing has the code of {mutant}"
    for each in found:
        each.__code__ = code


def known_functions() -> list[FunctionType]:
    gc.unfreeze()
    return [each for each in gc.get_objects() if isinstance(each, FunctionType)]


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of the functions of a module and of its classes, without those within functions."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            if each.co_flags & CO_OPTIMIZED:
                yield each
            else:
                yield from codes_in(each)


def in_a_process(work: Callable[..., None], *given: Any, seconds: float) -> Any:
    """Return what a function tells from a process of its own; None where it takes longer, or ends without a word."""
    hears, tells = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=limited, args=(int(seconds), work, *given, tells))
    process.start()
    tells.close()
    told = None
    if hears.poll(6 * seconds):  # by the clock, as machines are busy
        with suppress(EOFError):
            told = hears.recv()
    process.join(5)
    if told is None and process.exitcode not in (None, -signal.SIGXCPU):
        told = f"exit {process.exitcode}", []
    process.kill()
    process.join()
    return told


def limited(seconds: int, work: Callable[..., None], *given: Any) -> None:
    """Work with so much of the processor's time, and of memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    work(*given)


# -- around it ---------------------------------------------------------------------------------------------------------


@dataclass
class Reach:
    """What the tests reach: the seconds of each, and the lines of each module; under "" what importing it reaches."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)  # file -> test -> lines

    @classmethod
    def of_all(cls, places: Sequence[str]) -> "Reach":
        """Measure all tests of some folders or files, or read what was measured of the same code."""
        reach, sources = cls(), "".join(read(str(path.relative_to(ROOT))) for path in sorted(ROOT.glob("slim/**/*.py")))
        paths = [path for place in places for pattern in (place, f"{place}/test_*.py") for path in ROOT.glob(pattern)]
        for path in sorted(path for path in paths if path.is_file() and path.stem not in LEFT_OUT):
            file, digest = (
                str(path.relative_to(ROOT)),
                hashlib.sha256((sources + path.read_text()).encode()).hexdigest(),
            )
            kept = Path(tempfile.gettempdir(), "slim-mutation", f"{path.stem}-{digest[:16]}.json")
            if not kept.exists():
                status, failed, *found = in_a_process(measure, file, seconds=1200) or (None, [], {}, {})
                if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    raise SystemExit(f"{file} fails although nothing is changed: {status}, {failed}")
                kept.parent.mkdir(exist_ok=True)
                kept.write_text(json.dumps(found))
                print(f"{file}: {len(found[0])} tests, {sum(found[0].values()):.0f} s", flush=True)
            reach.add(*json.loads(kept.read_text()))
        return reach

    def add(self, seconds: Mapping[str, float], lines: Mapping[str, Mapping[str, Iterable[int]]]) -> None:
        self.seconds |= seconds
        for test, modules in lines.items():
            for module, numbers in modules.items():
                self.lines.setdefault(module, {}).setdefault(test, set()).update(numbers)

    def tests(self, mutant: Mutant) -> list[str]:
        """Return the tests that reach what a mutant changes, the quickest first. What runs on import, any that comes
        by its module can tell, not only the one that happens to import it."""
        lines = statement(mutant) if function_of(mutant) else None
        reached = {test: own for test, own in self.lines.get(mutant.file, {}).items() if test}
        found = [test for test, own in reached.items() if lines is None or own & lines]
        return sorted(found, key=lambda test: self.seconds[test])

    def within(self, tests: Sequence[str], seconds: float) -> list[str]:
        """Return as many of the tests as fit, but for the first one, which is always there."""
        chosen, total = list(tests[:1]), self.seconds[tests[0]]
        for test in tests[1:]:
            total += self.seconds[test]
            if total > seconds:
                break
            chosen.append(test)
        return chosen


@dataclass(frozen=True)
class Wanted:
    """A mutant, the tests to run, of how many that reach it, and the seconds of processor time that they may take."""

    mutant: Mutant
    tests: list[str]
    reaching: int
    limit: float

    @classmethod
    def of(cls, mutant: Mutant, reach: Reach, seconds: float) -> "Wanted":
        reaching = reach.tests(mutant)
        tests = reach.within(reaching, seconds) if reaching else []
        return cls(mutant, tests, len(reaching), SLACK + 2 * sum(reach.seconds[test] for test in tests))

    def row(self, told: tuple[Any, list[str]] | None) -> dict[str, Any]:
        """Return what became of the mutant, as a row of the results."""
        mutant = self.mutant
        row = {"change": mutant.change, "line": mutant.line, "operator": mutant.operator.partition("/")[2]}
        if not self.tests:
            return row | {"outcome": "not reached"}
        row |= {"tests": len(self.tests), "of": self.reaching}
        if told is None:
            return row | {"outcome": "timeout"}
        status, failed = told
        if status == pytest.ExitCode.OK:
            return row | {"outcome": "survived"}
        return row | {"outcome": "killed", "by": failed[0] if failed else f"status {status}"}


def outcomes(wanted: Sequence[Wanted]) -> Iterator[dict[str, Any]]:
    """Yield what becomes of mutants: of those of functions first, whose tests are collected once for all of them."""
    within = [each for each in wanted if each.tests and function_of(each.mutant)]
    files = sorted({test.partition("::")[0] for each in within for test in each.tests})
    hears, tells = FORKED.Pipe(duplex=False)
    server = FORKED.Process(target=serve, args=(files, within, tells))
    server.start()
    tells.close()
    yield from (each.row(hears.recv()) for each in within)
    server.join()
    for each in wanted:
        if each not in within:
            yield each.row(in_a_process(attempt, each.mutant, each.tests, seconds=each.limit) if each.tests else None)


def check_unchanged(reach: Reach, seconds: float) -> None:
    """Stop where the quickest tests fail in this way although nothing is changed: then kills would mean nothing."""
    tests = reach.within(sorted(reach.seconds, key=lambda test: reach.seconds[test]), seconds)
    told = in_a_process(attempt, None, tests, seconds=SLACK + 2 * seconds)
    if told is None or told[0] != pytest.ExitCode.OK:
        raise SystemExit(f"tests fail although nothing is changed: {told}")


def main() -> None:
    options = shared.parser_of(__doc__)
    options.add_argument("--mutants", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--seconds", type=float, help="of tests for each mutant, at most (30; with --again any number)"
    )
    options.add_argument("--tests", nargs="+", default=TESTS, help=f"folders or files of tests ({' '.join(TESTS)})")
    options.add_argument("--again", action="store_true", help="try survivors once more")
    given = options.parse_args()
    for module in IMPORTED:
        import_module(module)
    reach = Reach.of_all(given.tests)
    check_unchanged(reach, given.seconds or 30)
    name = f"mutation_seed{given.seed}"
    file = shared.RESULTS / f"{name}-{date.today()}.jsonl"
    rows = {row["change"]: row for row in shared.read_rows(file)}
    known = {row["change"] for path in shared.RESULTS.glob("mutation*.jsonl") for row in shared.read_rows(path)}
    seconds = given.seconds or (float("inf") if given.again else 30)
    drawn = (mutant for mutant in islice(sampled(given.seed), given.mutants) if mutant.change not in known)
    mutants = survivors(rows.values()) if given.again else drawn
    for row in outcomes([Wanted.of(mutant, reach, seconds) for mutant in mutants]):
        rows[row["change"]] = row
        shared.add_row(file, row)
        print(row["outcome"], row["change"], row.get("by", ""), sep="  ", flush=True)
    print(shared.write(name, page_of(list(rows.values()), equivalents())))


def alive(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of mutants that no test has killed."""
    return [row for row in rows if row["outcome"] in ("survived", "not reached")]


def survivors(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mutant]:
    """Yield the mutants that survived, as far as the code that they change is still there."""
    for row in alive(row for row in rows if row["change"] not in equivalents()):
        everywhere = places(row["change"].partition(":")[0]).values()
        alike = (m for mutants in everywhere for m in mutants if m.operator.partition("/")[2] == row["operator"])
        yield from (mutant for mutant in alike if mutant.change == row["change"])


def equivalents() -> dict[str, str]:
    """Return the changes that were found to change nothing, with the reasons."""
    return dict(json.loads(EQUIVALENT.read_text(encoding="utf-8"))) if EQUIVALENT.exists() else {}


def page_of(rows: Sequence[Mapping[str, Any]], same: Mapping[str, str]) -> str:
    """Return the table of what became of the mutants, by module, and the survivors."""
    head = ["module", "mutants", *OUTCOMES, "equivalent", "killed of those that differ"]
    files = sorted({row["change"].partition(":")[0] for row in rows})
    lines = [counted(file, [row for row in rows if row["change"].startswith(f"{file}:")], same) for file in files]
    lines.append(counted("all", rows, same))
    parts = [f"# Mutants\n\n{shared.ran_on('cosmic-ray', 'pytest')}", shared.table(head, lines)]
    for title, chosen in (
        ("Survivors", [f"- {told(row)}" for row in alive(rows) if row["change"] not in same]),
        ("Equivalent", [f"- {told(row)}: {same[row['change']]}" for row in alive(rows) if row["change"] in same]),
    ):
        parts.append(f"## {title}\n\n" + ("\n".join(chosen) or "None."))
    return "\n\n".join(parts)


def counted(name: str, rows: Sequence[Mapping[str, Any]], same: Mapping[str, str]) -> list[Any]:
    """Return a line of the table. What tests took too long for counts as killed."""
    numbers = [sum(row["outcome"] == kind and row["change"] not in same for row in rows) for kind in OUTCOMES]
    equivalent = len(rows) - sum(numbers)
    share = f"{(numbers[0] + numbers[1]) / sum(numbers):.0%}" if sum(numbers) else "–"
    return [name, len(rows), *numbers, equivalent, share]


def told(row: Mapping[str, Any]) -> str:
    file, _, change = row["change"].partition(":")
    return f"{file}, line {row['line']}, {row['outcome']}: ``{change.strip()}``"


if __name__ == "__main__":
    main()
