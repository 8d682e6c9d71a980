"""The settings files that come with slim, by name: `digits` is configs/digits.yaml."""

from pathlib import Path

import slim
from slim.errors import unknown

SUFFIXES = (".yaml", ".yml")


def names() -> dict[str, Path]:
    """Return name -> file; those of a folder are named with it, as paper/vgg19-70."""
    root = _root()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def is_one(word: str) -> bool:
    """Say whether a word on the command line names settings: a YAML file, or what comes with slim."""
    return Path(word).suffix in SUFFIXES or (word in names() and not Path(word).exists())


def find(word: str) -> Path:
    """Return the file of settings that a word names; SlimError, with the nearest name, where it names none."""
    if Path(word).suffix in SUFFIXES or Path(word).is_file():
        return Path(word)
    known = names()
    if word not in known:
        raise unknown("config", word, known)
    return known[word]


def about(path: Path) -> str:
    """Return what a file says of itself: the first sentence of the comment that it begins with."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence, _, _ = " ".join(comment).partition(". ")
    return sentence.rstrip(".:")


def overview() -> str:
    """Return all of them, a line for each."""
    known = names()
    width = max(map(len, known))
    return "\n".join(f"{name:<{width}}  {about(path)}" for name, path in known.items())


def _root() -> Path:
    """Return their folder: within an installed package, or beside that of a checkout."""
    package = Path(slim.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
