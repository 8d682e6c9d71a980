"""Networks on the Hub, against a fake of its API: a folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slim
from slim.errors import SlimError
from slim.workbench.models.build import build

hub = pytest.importorskip("huggingface_hub")
X = torch.randn(2, 3, 32, 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake keeps its repositories."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            if repo_id.startswith("refused/"):
                raise OSError("403 Forbidden:\nyou are not refused")
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (root / repo_id / ".private").write_text(str(private))

        def upload_file(self, path_or_fileobj: bytes, path_in_repo: str, repo_id: str) -> None:
            (root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def download(repo_id: str, filename: str, revision: str | None = None) -> str:
        found = root / repo_id / filename
        if not found.exists():
            raise hub.errors.EntryNotFoundError(f"404: no {filename}")
        copied = tmp_path / f"cached-{filename}"
        shutil.copy(found, copied)
        return str(copied)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return root


def saved(folder: Path) -> tuple[Any, Path]:
    torch.manual_seed(0)
    model = build("slim:vgg7", num_classes=3).eval()
    plan = slim.plan(model, X, ratio=0.5, score="auto")
    thin = plan.apply(model)
    path = slim.save(
        folder / "thin.safetensors", thin, plan, arch="slim:vgg7", arch_kwargs={"num_classes": 3},
        metrics={"accuracy": 0.91}, images=slim.ImageSpec(classes=("cat", "dog", "cow")),
    )  # fmt: skip
    return thin, path


def test_what_is_pushed_is_loaded_with_a_card_that_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    thin, path = saved(tmp_path)
    assert slim.push_to_hub(path, "me/thin", private=True) == "https://huggingface.co/me/thin"
    loaded = slim.load("hf-hub:me/thin")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), thin.state_dict().values(), strict=True))
    card = (folder / "me/thin/README.md").read_text()
    assert card.startswith("---\nlibrary_name: slim\n") and (folder / "me/thin/.private").read_text() == "True"
    for said in ("slim:vgg7", "50.0% of the channels", "| accuracy | 0.91 |", "cat, dog, cow", '"hf-hub:me/thin"'):
        assert said in card


def test_the_card_of_a_run_and_ones_own_come_first(folder: Path, tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    (tmp_path / "model_card.md").write_text("# The run's card")
    (tmp_path / "model.onnx").write_text("what it describes")
    slim.push_to_hub(path, "me/thin")
    assert "# The run's card" in (folder / "me/thin/README.md").read_text()
    assert (folder / "me/thin/model.onnx").read_text() == "what it describes"
    slim.push_to_hub(path, "me/thin", card="---\nlicense: mit\n---\n# Mine")
    assert (folder / "me/thin/README.md").read_text().startswith("---\nlicense: mit\n---\n# Mine")


@pytest.mark.parametrize("arch", [None, f"{__name__}:own", "slim:vgg7"])
def test_what_the_card_says_loads_the_network(folder: Path, tmp_path: Path, arch: str | None) -> None:
    torch.manual_seed(0)
    model = own()
    slim.save(tmp_path / "whole.safetensors", model, arch=arch, arch_kwargs={"num_classes": 3} if arch else None)
    slim.push_to_hub(tmp_path / "whole.safetensors", "me/whole")
    code = (folder / "me/whole/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"model": own()}
    exec(code, names)
    assert torch.equal(names["network"](X), model(X))


def own(num_classes: int = 3) -> nn.Module:
    return build("slim:vgg7", num_classes=num_classes).eval()


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    for repository, said in (("thin", "expected owner/name"), ("refused/thin", "the Hub refused refused/thin: 403")):
        with pytest.raises(SlimError, match=said):
            slim.push_to_hub(path, repository)
    wrong: Any  # of wrong types
    for wrong in ((path, None), (torch.nn.ReLU(), "me/thin")):
        with pytest.raises(SlimError, match="expected"):
            slim.push_to_hub(*wrong)
    (tmp_path / "other.safetensors").write_text("no")
    with pytest.raises(SlimError):
        slim.push_to_hub(tmp_path / "other.safetensors", "me/thin")
    with pytest.raises(SlimError, match="nothing/there"):
        slim.load("hf-hub:nothing/there")
