"""Share a network on the Hugging Face Hub, with a card that says what it is. Needs the package huggingface_hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slim import checkpoint
from slim.errors import SlimError, check_type
from slim.extras import named_if_missing
from slim.prune.plan import PruningPlan
from slim.version import DISTRIBUTION
from slim.workbench.models.build import LIBRARIES
from slim.workbench.models.libraries import HUB, first_file

FILE, CARD = "model.safetensors", "README.md"
RUN_CARD, RUN_FILE = "model_card.md", "model.onnx"  # what a run writes beside its files, and what that describes
HEADER = "---\nlibrary_name: slim\ntags:\n- pruning\n- pytorch\n---\n\n"


def push_to_hub(path: str | Path, repository: str, *, private: bool = False, card: str | None = None) -> str:
    """Upload the network in `path`, as `slim.save` and the commands write it, and return its address.

        slim.push_to_hub("thin.safetensors", "owner/name")
        thin = slim.load("hf-hub:owner/name")

    repository: "owner/name", made where it isn't there. card: Markdown; by default the model card of the run that the
    file lies in, with the model.onnx that it describes, else one from what the file says. The token is
    huggingface_hub's own affair (`hf auth login`).
    Raises SlimError where the file isn't one of slim's, or the Hub refuses.
    """
    check_type("path", path, "a file, as slim.save writes it", str, Path)
    check_type("repository", repository, "owner/name", str)
    about = checkpoint.read_metadata(path)  # whole, unaltered
    if repository.startswith(HUB) or repository.count("/") != 1:
        raise SlimError(f"repository {repository!r}: expected owner/name")
    files, beside = {FILE: Path(path).read_bytes()}, Path(path).with_name(RUN_CARD)
    if card is None and beside.is_file():
        card = beside.read_text(encoding="utf-8")
        if (exported := beside.with_name(RUN_FILE)).is_file():
            files[RUN_FILE] = exported.read_bytes()
    files[CARD] = with_loading(card or described(about), repository, about["arch"]).encode()
    with named_if_missing():
        import huggingface_hub
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        for name, content in files.items():
            api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repository)
    except Exception as error:  # of its HTTP library, its own, and of the operating system
        said = " ".join(str(error).split())[:200]
        raise SlimError(f"the Hub refused {repository}: {said or type(error).__name__}") from error
    return f"https://huggingface.co/{repository}"


def from_hub(source: str) -> Path:
    """Return the file of `hf-hub:owner/name`, with `@revision` where it isn't the newest, downloaded to the cache."""
    return first_file(source, (FILE,))


def described(about: Mapping[str, Any]) -> str:
    """Return a card as Markdown, from what a checkpoint says of itself."""
    lines = [f"# {about['arch'] or 'A network'}{', pruned by slim' if about['plans'] else ''}"]
    for number, record in enumerate(about["plans"], 1):
        plan = PruningPlan.from_dict(record)
        which = f"Plan {number}" if len(about["plans"]) > 1 else "The plan"
        lines.append(f"{which} removed {plan.ratio_achieved:.1%} of the channels: {plan.summary()}.")
    numbers = {k: v for k, v in about["metrics"].items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if numbers:
        rows = [f"| {key} | {value:,.6g} |" for key, value in numbers.items()]
        lines.append("\n".join(["| | |", "|---|---|", *rows]))
    if about.get("classes"):
        lines.append(f"Classes: {', '.join(about['classes'])}.")
    return "\n\n".join(lines)


def with_loading(card: str, repository: str, arch: str | None) -> str:
    """Return the card with the lines that load the network, under a header where it has none."""
    header = "" if card.startswith("---\n") else HEADER
    if arch is None:
        rest = ", model)  # model: the unpruned network"
    else:
        rest = ")" if arch.partition(":")[0] in LIBRARIES else f", allow_code={arch!r})"
    return (
        f"{header}{card.rstrip()}\n\n```python\nimport slim  # pip install {DISTRIBUTION}\n\n"
        f'network = slim.load("{HUB}{repository}"{rest}\n```\n'
    )
