"""Opening and running a network in onnxruntime: which provider runs it, on how many threads, and clear errors."""

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slim.deploy.target import sizes_in_words
from slim.errors import SlimError

CPU, CUDA, TENSORRT, OPENVINO = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt", "OpenVINO"))
ON_GPU = (CUDA, TENSORRT)
# For sessions that are timed in turn: by default the idle threads of one spin for a while after each run, and would
# take the cores from the next one's. With two networks in turn on 2 cores, that multiplied the 90th percentile by 5.
SESSION_SETTINGS = {"session.force_spinning_stop": "1"}


def open_session(
    model: str | Path | bytes,
    provider: str = "auto",
    threads: int = 0,
    settings: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session on `model`: an ONNX file's path, or the content of one.

    `provider` is auto (CUDA where onnxruntime has it and it starts, else CPU), a short name such as cpu or
    cuda, or onnxruntime's own name such as CUDAExecutionProvider; `threads` is the number of CPU threads that
    one operator may use, 0 for all cores, and OpenVINO gets it as its num_of_threads; `settings` are onnxruntime
    session configuration entries; `profile` starts the profiler, which writes to a file whose name begins so.

    Raises SlimError for a missing file, one that onnxruntime can't load, a provider that isn't there or
    doesn't start, and a negative `threads`.
    """
    wanted = find_provider(provider)
    if threads < 0:
        raise SlimError(f"threads {threads}: expected 0 (all cores) or more")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise SlimError(f"no file {str(model)!r}: expected an ONNX file")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # not even errors: they are raised as well
    options.intra_op_num_threads = threads
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if wanted in ON_GPU:
        with silence():
            onnxruntime.preload_dlls()  # finds CUDA's libraries where pip put them
    # TensorRT leaves to CUDA what it has no kernels for, and every provider to the CPU
    helpers = [CUDA] if wanted == TENSORRT else []
    providers: list[Any] = list(dict.fromkeys([wanted, *helpers, CPU]))
    if wanted == OPENVINO and threads:
        providers[0] = wanted, {"num_of_threads": str(threads)}  # its threads aren't onnxruntime's
    try:
        session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers)
    except Exception as error:  # onnxruntime's own errors share no base class
        if isinstance(model, bytes):
            raise SlimError(f"onnxruntime can't run this graph: {brief(error)}") from error
        raise SlimError(f"{str(model)!r} {_cause(str(error), Path(model).suffix)}") from error
    started = session.get_providers()[0]
    if provider != "auto" and started != wanted:
        raise SlimError(f"provider {provider!r} doesn't start here (onnxruntime would use {started})")
    return session


def find_provider(name: str) -> str:
    """Return the onnxruntime name of the provider called `name`: auto, a short name (cpu, cuda) or the full one.

    auto is CUDA where this onnxruntime has it, else CPU. The others have to be named, as each asks for a decision:
    TensorRT needs libraries of its own and builds an engine for every input shape, which takes up to minutes; OpenVINO
    compiles the whole network when it opens it, and either may choose another precision. CUDA and TensorRT weren't run
    for want of a GPU: tests stand in for a CUDA that doesn't start, and bind memory on the CPU. OpenVINO was tried by
    hand on a CPU (onnxruntime-openvino 1.24).

    Raises SlimError for a provider that this onnxruntime doesn't have. One that it has may still not start.
    """
    available = onnxruntime.get_available_providers()
    by_name = {full.removesuffix("ExecutionProvider").lower(): full for full in available}
    if name == "auto":
        return by_name.get("cuda", CPU)
    short = name.removesuffix("ExecutionProvider").lower()
    if short not in by_name:
        raise SlimError(f"provider {name!r} isn't in this onnxruntime: expected auto, {', '.join(sorted(by_name))}")
    return by_name[short]


def start_provider(name: str) -> str:
    """Return the name of a provider that starts here, as `find_provider` does; tried on a graph of one node.

    auto falls back to CPU; any other that doesn't start raises SlimError."""
    if find_provider(name) == CPU:
        return CPU
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1]) for value in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "one", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    started: str = open_session(made.SerializeToString(), name).get_providers()[0]
    return started


def ready_call(
    session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], name: str = "the network"
) -> Callable[[], None]:
    """Return one run of `session` on `feed`, to be timed: from memory where the inputs lie ready to memory where the
    outputs stay, which is the GPU's for a provider on the GPU.

    It raises SlimError where the network, here called `name`, can't run on that."""
    run = bound_run(session, feed, "cuda") if session.get_providers()[0] in ON_GPU else lambda: session.run(None, feed)

    def call() -> None:
        try:
            run()
        except Exception as error:  # onnxruntime's own errors share no base class
            raise SlimError(
                f"{name} doesn't run on {sizes_in_words(feed)}: "
                f"expected a batch and an image size that fit it ({brief(error)})"
            ) from error

    return call


def bound_run(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], device: str) -> Callable[[], None]:
    """Return a run whose inputs lie on the device before it starts and whose outputs stay there."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _cause(message: str, suffix: str) -> str:
    """Say what is wrong with a file of such a name that onnxruntime refuses with this message."""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if opset := re.search(r"Opset (\d+) .*?domain (\S+) is till opset (\d+)", message, re.DOTALL):
        return f"needs opset {opset[1]} of {opset[2]}: expected at most {opset[3]}, which {runtime} knows"
    if version := re.search(r"IR version: (\d+), max supported IR version: (\d+)", message):
        return f"has ONNX IR version {version[1]}: expected at most {version[2]}, which {runtime} reads"
    if suffix == ".safetensors":
        return "is a checkpoint: expected an ONNX file, which slim-export makes of it"
    return f"is not an ONNX file that onnxruntime can run: {brief(message)}"


def brief(error: Exception | str) -> str:
    """Return onnxruntime's message on one line, without its prefix and the place in onnxruntime's own code."""
    text = " ".join(str(error).split(" : ", 3)[-1].split())
    text = re.sub(r"/\S+:\d+ (.* was false\. )?", "", text)
    text = re.sub(r"Non-zero status .* while (running \S+ node)\. Name:('.*?') Status Message:", r"\1 \2:", text)
    return text[:200]


ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let through neither logs, warnings nor prints: what matters of them is in the error.

    One thread at a time: streams and log levels are the process's, and torch's exporter bears no other beside it.
    """
    ONE_AT_A_TIME.acquire()
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
        ONE_AT_A_TIME.release()
