"""Try slim with the lowest or the newest versions of all that it needs.

    python scripts/try_versions.py lowest
    python scripts/try_versions.py highest [TEST ...]

Makes an empty environment, installs slim there (uv: "lowest-direct" takes the floors of pyproject.toml), and
runs a sample of the tests. Ends with the versions, and with pytest's status.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLE = [
    "tests/prune/test_planning.py",
    "tests/prune/test_pruning.py",
    "tests/sparsity/test_sparsity_steps.py",
    "tests/test_checkpoint.py",
    "tests/deploy/test_onnx_export.py",
    "tests/deploy/test_int8.py",
    "tests/workbench/test_chain.py",
]
SHOWN = [
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "rich",
    "pillow",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "plotly",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("resolution", choices=["lowest", "highest"])
    parser.add_argument("tests", nargs="*", default=SAMPLE, metavar="TEST")
    args = parser.parse_args()
    rule = {"lowest": "lowest-direct", "highest": "highest"}[args.resolution]
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        subprocess.run(["uv", "venv", "--quiet", "--python", "3.11", "--clear", folder], check=True)
        install = ["uv", "pip", "install", "--no-config", "--quiet", "--python", str(python)]
        subprocess.run([*install, "--resolution", rule, f"{ROOT}[all]"], check=True)
        subprocess.run([*install, "pytest", "pytest-xdist"], check=True)
        show = f"from importlib.metadata import version\nfor p in {SHOWN}: print(p, version(p))"
        subprocess.run([python, "-c", show], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([python, "-m", "pytest", "-n", "0", *args.tests], cwd=ROOT, env=environment, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
