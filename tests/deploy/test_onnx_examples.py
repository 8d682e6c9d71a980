"""The examples of docs/howto/onnx.md, in Python and in JavaScript, on digits that the network has not seen."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy.onnx_networks import CLASSES
from networks import digits_network
from sklearn.datasets import load_digits

from slim.deploy.onnx.write import export_onnx

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "onnx.md"


def test_javascript_example_classifies_a_real_digit(tmp_path: Path) -> None:
    """In node, where there is one and $SLIM_NODE_MODULES is a folder node_modules with onnxruntime-web in it
    (npm install onnxruntime-web). The page and its canvas are stood in for."""
    modules = os.environ.get("SLIM_NODE_MODULES")
    if not modules or shutil.which("node") is None:
        pytest.skip("no node, or no SLIM_NODE_MODULES")
    match = re.search(r"<!-- onnxruntime-web-example -->\n+```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match, "onnx.md has no block marked <!-- onnxruntime-web-example -->"
    assert len([line for line in match.group(1).splitlines() if line.strip()]) <= 10
    net, mean, std = digits_network()
    export_onnx(
        net, torch.zeros(1, 1, 8, 8), tmp_path / "model.onnx", preprocess=True, metadata={"mean": [mean], "std": [std]}
    )
    digits = load_digits()
    (tmp_path / "node_modules").symlink_to(Path(modules).resolve())
    for index in (-1, -2, -9):
        grey = np.round(digits.images[index] / 16 * 255).astype(int).ravel()
        pixels = np.stack([grey, grey, grey, np.full(64, 255)], 1).ravel().tolist()
        page = (
            f"const data = Uint8ClampedArray.from({pixels});\n"
            "globalThis.document = { querySelector: () => null };\n"
            "globalThis.OffscreenCanvas = class { getContext() { "
            "return { drawImage() {}, getImageData: () => ({ data }) }; } };\n"
        )
        (tmp_path / "page.mjs").write_text(page)
        (tmp_path / "example.mjs").write_text('import "./page.mjs";\n' + match.group(1))
        done = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == str(digits.target[index])


def test_readme_example_classifies_a_real_digit(tmp_path: Path) -> None:
    digits = load_digits()
    net, mean, std = digits_network()
    match = re.search(r"<!-- onnxruntime-example -->\n+```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match, "onnx.md has no block marked <!-- onnxruntime-example -->"
    code = match.group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    path = tmp_path / re.search(r'"([^"]*model\.onnx)"', code).group(1)  # type: ignore[union-attr]
    export_onnx(net, torch.zeros(1, 1, 8, 8), path, metadata={"classes": CLASSES, "mean": [mean], "std": [std]})
    index = int(re.search(r"images\[(-?\d+)\]", code).group(1))  # type: ignore[union-attr]
    assert index < 0 or index >= 1500  # a digit that the network hasn't seen
    code += "\nimport sys\nassert not {'slim', 'torch', 'onnx'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == CLASSES[digits.target[index]]
