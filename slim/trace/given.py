"""Which attributes of modules hold sizes that operators were given: those that must follow their channels."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from slim.trace.attributes import StoredSize, sizes_within, words_in, words_of
from slim.trace.classes import Classes, Ints
from slim.trace.codes import Bools
from slim.trace.labeller import Executed
from slim.trace.traced import Trace

Counted = Ints | list[Ints]  # the labels that a stored size counts, or those of each of a list of sizes
AHEAD = 2  # operators that one call may have come to, had it not failed: reshape copies, then views
RECENT = 60  # operators back from a failure, among which the one that was given a stored size is looked for


def sizes_given(
    traced: Trace,
    error: Exception,
    executed: list[Executed],
    followed: Mapping[str, Counted],
    taken: list[Ints],
) -> tuple[dict[str, Counted], dict[str, Ints]]:
    """Return attributes of the modules that ran when `error` came up, and that hold what an operator was given; and
    those of `followed` among them that the last operator was given for other labels. `taken` are the channels that an
    operator takes which the thin network alone has: forward code has compared their number, it may be."""
    given = [step.sizes for step in reversed(executed[-RECENT:]) if step.sizes]
    held = _at_hand(traced, error)
    found = {name: counted for name, value in held.items() if (counted := _counted(given, value)) is not None}
    if taken:
        found = {**_of_widths(held, taken), **found}
    if not found and not followed.keys() & held.keys():
        parts = {name: part for name, value in held.items() if (part := _several(given, value)) is not None}
        if parts:
            return {name: own for name, (own, _) in parts.items()}, {name: rest for name, (_, rest) in parts.items()}
        # forward code may check a width that it gives to no operator
        found = _of_widths(held, [codes.labels for step in executed[-AHEAD - 1 :] for codes in step.codes])
    return found, _shared_sizes(given[: AHEAD + 1], found, followed, list(held), traced.classes)


def _of_widths(held: Mapping[str, StoredSize], taken: list[Ints]) -> dict[str, Counted]:
    """Return the attributes that hold how many these channels are."""
    widths = {len(labels): labels for labels in taken}
    return {name: widths[value] for name, value in held.items() if isinstance(value, int) and value in widths}


def labels_at_hand(traced: Trace, error: Exception) -> Ints:
    """Return the labels of the tensors of the innermost module that ran when `error` came up, of which its code has a
    word: it may ask them for a size that no operator is given."""
    running, _ = _running(traced, error)
    found = [np.zeros(0, np.int64)]
    for prefix, _, spoken in running[-1:]:
        for dims in (traced.labels.get(prefix + word, {}) for word in sorted(spoken)):
            found += dims.values()
    return np.concatenate(found)


def _running(traced: Trace, error: Exception) -> tuple[list[tuple[str, nn.Module, set[str]]], set[str]]:
    """Return the modules that ran when `error` came up, each with how the names of what it holds begin and the words in
    the code that ran; and the words in all code that did, and that these modules may call."""
    names = {id(module): name for name, module in traced.state.modules}
    running: list[tuple[str, nn.Module, set[str]]] = []
    words: set[str] = set()
    trace = error.__traceback__
    while trace is not None:
        module: Any = trace.tb_frame.f_locals.get("self")
        own = isinstance(module, nn.GroupNorm | nn.Unflatten) or not type(module).__module__.startswith("torch.nn")
        spoken = words_in(trace.tb_frame.f_code, trace.tb_frame.f_globals)
        words |= spoken
        if id(module) in names and own:
            running.append((names[id(module)], module, spoken))
            words |= words_of(type(module)).union(*map(words_in, vars(module).values()))
        trace = trace.tb_next
    return running, words


def _at_hand(traced: Trace, error: Exception) -> dict[str, StoredSize]:
    """Return the sizes that modules hold which ran when `error` came up, or that these read of modules within them, by
    name, those of the innermost first. A network's whole configuration may hang on each of them: of a dict or an
    object, what their code has a word for."""
    running, words = _running(traced, error)
    found: dict[str, StoredSize] = {}
    for prefix, module, spoken in reversed(running):
        found |= {prefix + name: size for name, size in sizes_within(module) if _is_said(name.split(".")[1:], words)}
        within = (name for name in traced.sizes.read if name.startswith(prefix))
        found |= {
            n: traced.sizes[n] for n in within if n not in found and _is_said(n[len(prefix) :].split("."), spoken)
        }
    return found


def _is_said(parts: list[str], words: set[str]) -> bool:
    """Return whether code has a word for each part of a name, but for the numbers."""
    return all(part in words or part.isdigit() for part in parts)


def _counted(given: list[list[tuple[int, Ints]]], value: StoredSize) -> Counted | None:
    """Return the labels of what an operator was given this size for, or these sizes; None where none was."""
    if isinstance(value, int):
        return next((labels for sizes in given for size, labels in sizes if size == value), None)
    beginnings = (sizes[: len(value)] for sizes in given)
    return next(([labels for _, labels in some] for some in beginnings if [s for s, _ in some] == list(value)), None)


def _several(given: list[list[tuple[int, Ints]]], value: StoredSize) -> tuple[Ints, Ints] | None:
    """Return the labels that a stored size counts, and the others, where the last operators were given a small multiple
    of it, such as 2 * self.half."""
    if not isinstance(value, int) or value < 2:
        return None
    for size, labels in itertools.chain(*given[: AHEAD + 1]):
        if size == len(labels) and size in (2 * value, 3 * value, 4 * value):
            return labels[:value], labels[value:]
    return None


def _shared_sizes(
    given: list[list[tuple[int, Ints]]],
    found: Mapping[str, Counted],
    followed: Mapping[str, Counted],
    at_hand: list[str],
    classes: Classes,
) -> dict[str, Ints]:
    """Return for stored sizes at hand the labels of what operators were given beside what they count.

    That may be several parts of the same size, and what forward computes from it: each part of 2 * self.size has it.
    """
    shared: dict[str, Ints] = {}
    counted = {name: followed.get(name, found.get(name)) for name in at_hand}
    own = {len(known) for known in counted.values() if known is not None and not isinstance(known, list)}
    for name, known in counted.items():
        if known is None or isinstance(known, list) or len(known) < 2:
            continue
        for sizes in given:
            parts = [labels for size, labels in sizes if size == len(labels)]
            whole = sum(len(part) for part in parts) / 2  # which a split is given as well
            fitting = [part for part in parts if len(part) % len(known) == 0 and len(part) != whole]
            if name not in followed and len(fitting) < max(2, len(parts) - 1):
                continue  # it may be that size by chance
            fitting = [part for part in fitting if len(part) == len(known) or len(part) not in own]
            pieces = [piece for part in fitting for piece in part.reshape(-1, len(known))]
            others = [piece for piece in pieces if (classes.roots(piece) != classes.roots(known)).any()]
            if others:
                shared[name] = np.concatenate(others)
                break
    return shared


def taken_for(traced: Trace, error: Exception, executed: list[Executed], kept: Bools) -> tuple[str, Ints, Ints] | None:
    """Return the channels of which the last operators were given the number, and others of which there were as many,
    where forward code takes the size of these for that: it fails with what is left of them, as the message says. Its
    name comes first.

    None where the others can't go: nothing is won by cutting both alike.
    """
    said = {int(number) for number in re.findall(r"\d+", str(error))}
    read = [codes.labels for step in reversed(executed[-RECENT:]) for codes in step.codes]
    for size, labels in itertools.chain(*(step.sizes for step in executed[-AHEAD - 1 :])):
        left = kept[labels].sum()
        for others in read if size == len(labels) else ():
            now = kept[others].sum() if len(others) == size else left
            if now != left and int(now) in said and not traced.classes.frozen(others).any():
                running, _ = _running(traced, error)
                return f"{running[-1][0] if running else ''}forward", labels, others
    return None


def kept_size(counted: Counted, kept: Bools) -> int | list[int]:
    """Return what a stored size comes to when only `kept` labels stay."""
    return [int(kept[c].sum()) for c in counted] if isinstance(counted, list) else int(kept[counted].sum())
