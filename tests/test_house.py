"""The order of the rooms: each imports from rooms before it, imports for type checkers included; no circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SLIM = Path(__file__).parents[1] / "slim"
ROOMS = [  # in the order in which the data flows
    *("errors", "version", "extras", "files", "memory", "images", "batches", "tables", "progress"),
    *("trace", "prune", "sparsity", "deploy", "compression", "checkpoint", "trainers"),
    *(f"workbench.{room}" for room in ("config", "presets", "causes", "malloc", "code", "nested", "tasks", "data")),
    *(f"workbench.{room}" for room in ("models", "train", "report", "run", "doctor", "cli")),
]
DOORS = {"slim", "slim.__main__"}  # public names, and the command: what they lead to may be in any room
MODULES = {
    ".".join(path.relative_to(SLIM.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SLIM.rglob("*.py"))
}


def room_of(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "workbench" else parts[0]


def imports_of(module: str) -> Iterator[str]:
    """The modules of slim that a module imports, wherever in the file: at its top, in a function, for type checkers."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


IMPORTS = {
    module: {found for found in imports_of(module) if found != module} for module in MODULES if module not in DOORS
}


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in IMPORTS if module != "slim.workbench"} <= set(ROOMS)


def test_rooms_import_from_rooms_before_them() -> None:
    wrong = {
        (room_of(module), room_of(found))
        for module, imported in IMPORTS.items()
        for found in imported - {"slim", "slim.workbench"}
        if module != "slim.workbench" and ROOMS.index(room_of(module)) < ROOMS.index(room_of(found))
    }
    assert not wrong, wrong


def test_nothing_imports_in_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for found in sorted(IMPORTS.get(module, ())):
            visit(found, (*path, module))
        done.add(module)

    for module in IMPORTS:
        visit(module, ())


@cache
def loaded_after(code: str) -> set[str]:
    """The top-level packages that are loaded once a fresh interpreter has run `code`."""
    show = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


COMMANDS = ["train", "prune", "sensitivity", "finetune", "export", "bench", "predict", "report", "run"]


def test_import_slim_and_help_stay_without_torch() -> None:
    assert not {"torch", "onnx", "onnxruntime", "plotly", "sklearn"} & loaded_after("import slim")
    helps = "".join(
        f"from slim.workbench.cli.{command} import main\ntry: main(['--help'])\nexcept SystemExit: print()\n"
        for command in COMMANDS
    )
    assert "torch" not in loaded_after(helps)


PRUNING = """
import torch, slim
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
x = torch.randn(8, 3, 12, 12)
sparsity = slim.sparsify(net, torch.optim.SGD(net.parameters(), 0.1), slim.L1(1e-4))
plan = slim.plan(net, x, ratio=0.5)
thin = plan.apply(net)
slim.verify(net, thin, plan, x)
slim.recover(net, thin, plan, x)
print(plan)
"""


def test_pruning_ones_own_model_needs_few_packages() -> None:
    assert not {"lightning_fabric", "sklearn", "plotly", "onnx", "onnxruntime", "torchvision"} & loaded_after(PRUNING)


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def test_functions_take_at_most_ten_parameters() -> None:
    def count(arguments: ast.arguments) -> int:
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return len([each for each in named if each.arg not in ("self", "cls")])

    many = {node.name for module, node in functions() if count(node.args) > 10 and "cli" not in module}
    assert many == {"plan"}  # the network, its inputs and a budget, and ten keywords


def test_functions_of_the_library_have_at_most_sixty_lines() -> None:
    long = {node.name for module, node in functions() if (node.end_lineno or 0) - node.lineno >= 60}
    assert long <= {"fit"}  # the workbench's, most of it the description of its arguments


SAME_MEANING = {"Bools", "Floats", "Ints", "Shape", "SlimCallback"}  # arrays of these; a shape; a callback of a trainer


def test_no_type_has_the_name_of_another() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            names = [getattr(target, "id", getattr(target, "name", "")) for target in targets]
            for name in names:
                if name[:1].isupper() and not name.isupper():
                    homes.setdefault(name, []).append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1 and name not in SAME_MEANING} == {}
