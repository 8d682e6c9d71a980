"""Opening an ONNX file in onnxruntime: which provider runs it, on how many threads, and clear errors."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnxruntime

from slim.errors import SlimError


def open_session(
    path: str | Path,
    provider: str = "auto",
    threads: int = 0,
    settings: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the file at `path`.

    `provider` is auto (CUDA where onnxruntime has it and it starts, else CPU), a short name such as cpu or
    cuda, or onnxruntime's own name such as CUDAExecutionProvider; `threads` is the number of CPU threads that
    one operator may use, 0 for all cores; `settings` are onnxruntime session configuration entries; `profile` starts
    the profiler, which writes to a file whose name begins so.

    Raises SlimError for a missing file, one that onnxruntime can't load, a provider that isn't there or
    doesn't start, and a negative `threads`.
    """
    wanted = find_provider(provider)
    if threads < 0:
        raise SlimError(f"threads {threads}: expected 0 (all cores) or more")
    if not Path(path).is_file():
        raise SlimError(f"no file {str(path)!r}: expected an ONNX file")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if wanted in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()  # finds CUDA's libraries where pip put them
    # TensorRT leaves to CUDA what it has no kernels for, and every provider to the CPU
    helpers = ["CUDAExecutionProvider"] if wanted == "TensorrtExecutionProvider" else []
    providers = list(dict.fromkeys([wanted, *helpers, "CPUExecutionProvider"]))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own errors share no base class
        raise SlimError(f"{str(path)!r} {_cause(str(error))}") from error
    started = session.get_providers()[0]
    if provider != "auto" and started != wanted:
        raise SlimError(f"provider {provider!r} doesn't start here (onnxruntime would use {started})")
    return session


def find_provider(name: str) -> str:
    """The onnxruntime name of the provider called `name`: auto, a short name (cpu, cuda) or the full one."""
    available = onnxruntime.get_available_providers()
    by_name = {full.removesuffix("ExecutionProvider").lower(): full for full in available}
    if name == "auto":
        return by_name.get("cuda", "CPUExecutionProvider")
    short = name.removesuffix("ExecutionProvider").lower()
    if short not in by_name:
        raise SlimError(f"provider {name!r} isn't in this onnxruntime: expected auto, {', '.join(sorted(by_name))}")
    return by_name[short]


def _cause(message: str) -> str:
    """What is wrong with a file that onnxruntime refuses with this message."""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if opset := re.search(r"Opset (\d+) .*?domain (\S+) is till opset (\d+)", message, re.DOTALL):
        return f"needs opset {opset[1]} of {opset[2]}: expected at most {opset[3]}, which {runtime} knows"
    if version := re.search(r"IR version: (\d+), max supported IR version: (\d+)", message):
        return f"has ONNX IR version {version[1]}: expected at most {version[2]}, which {runtime} reads"
    return f"is not an ONNX file that onnxruntime can run: {brief(message)}"


def brief(error: Exception | str) -> str:
    """onnxruntime's message without its prefix, on one line."""
    return " ".join(str(error).split(" : ", 3)[-1].split())[:200]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Neither logs, warnings nor prints: what matters of them is in the error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(disabled)
