"""Code of the user's own, by name: `package.module:name` or `file.py:name`."""

import sys
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from slim.errors import SlimError, unknown
from slim.workbench.causes import told

Allowed = str | Collection[str]  # names of code that may be run: those that the user wrote, never what a file says

FAILURES = (Exception, SystemExit)  # of the user's code: anything can go wrong in it


def names_code(name: str) -> bool:
    """Say whether a name is one of these."""
    place, _, thing = name.rpartition(":")
    return bool(place and thing)


def import_object(what: str, name: str, *, allow_code: Allowed, kind: type | None = None) -> Callable[..., Any]:
    """Return the function or class that `name` names; `what` it is for is said in errors, such as "task".

    That is a class, of `kind` or one that the module defines, or a function that it or a part of its package defines:
    `os:system` is neither. A file is looked up from the working folder, and may import what lies beside it.
    Raises SlimError where code isn't allowed, isn't there or can't be run.
    """
    place, _, thing = name.rpartition(":")
    if name not in ([allow_code] if isinstance(allow_code, str) else allow_code):
        raise SlimError(
            f"{what} {name!r} would run {place!r}, which only you can allow (allow_code): expected --allow-code {name}"
        )
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else import_module(place)
    except FAILURES as error:  # importing runs the user's code
        reason = told(error, None)
        raise SlimError(
            f"can't import the {what} {name!r} ({reason}): expected package.module:name or file.py:name"
        ) from error
    found: Any = getattr(module, thing, None)
    if not _is_offered(found, module, kind):
        offered = [key for key, value in vars(module).items() if _is_offered(value, module, kind)]
        raise unknown(f"{what} in {place}", thing, offered)
    return found


def _is_offered(value: Any, module: ModuleType, kind: type | None) -> bool:
    """Say whether a module offers a value as something that makes what is wanted."""
    if kind is not None and isinstance(value, type):
        return issubclass(value, kind)
    home = getattr(value.func if isinstance(value, partial) else value, "__module__", None) or ""
    return callable(value) and (home == module.__name__ or home.startswith(f"{module.__name__}."))


def _module_of_file(path: Path) -> ModuleType:
    """Run a file as a module, once: worker processes find its classes under the same name."""
    path = path.resolve(strict=True)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(loaded.__file__ or "").resolve() == path:
        return loaded
    if loaded is None:
        return import_module(path.stem)
    spec = spec_from_file_location(f"{path.stem}_{abs(hash(path)):x}", path)  # another module has its name
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module
