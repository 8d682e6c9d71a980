"""Settings: what a file and the command line may say, and what is told to who makes a mistake."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slim.errors import SlimError
from slim.workbench import config
from slim.workbench.config import RunConfig, updated

CONFIGS = Path(__file__).parents[2] / "configs"


def test_values_arrive_and_the_rest_stays() -> None:
    values = {
        "seed": 3,
        "train": {"lr": 1, "schedule": "step"},
        "data": {"image_size": 32},
        "model": {"gamma": None},
    }
    new = updated(RunConfig(), values)
    expected = RunConfig(seed=3)
    expected.train.lr, expected.train.schedule = 1.0, "step"
    expected.data.image_size, expected.model.gamma = 32, None
    assert new == expected and type(new.train.lr) is float


def test_text_stands_for_the_value_it_spells() -> None:
    spelled = {"train": {"lr": "1e-3", "nesterov": "false"}, "bench": {"batch_sizes": "[1, 8]"}, "name": "7"}
    new = updated(RunConfig(), spelled)
    assert (new.train.lr, new.train.nesterov, new.bench.batch_sizes, new.name) == (1e-3, False, [1, 8], "7")


def test_the_given_config_is_left_alone() -> None:
    old = RunConfig()
    updated(old, {"train": {"lr": 1}, "model": {"kwargs": {"depth": 3}}})
    assert old == RunConfig()


def test_a_budget_takes_the_place_of_another() -> None:
    new = updated(RunConfig(), {"prune": {"flops": 0.4}})
    assert (new.prune.ratio, new.prune.flops, new.prune.params) == (None, 0.4, None)
    new = updated(new, {"prune": {"floor": 0.2}})
    assert (new.prune.ratio, new.prune.flops) == (None, 0.4)
    new = updated(new, {"prune": {"ratio": 0.3, "flops": None}})
    assert (new.prune.ratio, new.prune.flops) == (0.3, None)


def test_one_text_stands_for_a_list_of_one() -> None:
    assert updated(RunConfig(), {"prune": {"keep": "*.bn1"}}).prune.keep == ["*.bn1"]
    assert updated(RunConfig(), {"prune": {"keep": "[a.*, b]"}}).prune.keep == ["a.*", "b"]


@pytest.mark.parametrize(
    ("values", "section", "name", "meant"),
    [
        ({"data": {"std": "1e-3, .5e+0,2.5E-1"}}, "data", "std", [0.001, 0.5, 0.25]),
        ({"data": {"std": "[1e-3, 1]"}}, "data", "std", [0.001, 1.0]),
        ({"sparsity": {"penalty_kwargs": "{p: 5e-1}"}}, "sparsity", "penalty_kwargs", {"p": 0.5}),
        ({"prune": {"latency": "1e-1"}}, "prune", "latency", 0.1),
    ],
)
def test_a_power_of_ten_needs_no_point(values: dict[str, Any], section: str, name: str, meant: Any) -> None:
    new = updated(RunConfig(), values)
    assert getattr(getattr(new, section), name) == meant


def test_a_name_that_looks_like_a_power_stays_text(tmp_path: Path) -> None:
    new = updated(RunConfig(), {"name": "1e-3", "prune": {"keep": ["2e5"]}})
    (tmp_path / "config.yaml").write_text(config.to_yaml(new))
    assert updated(RunConfig(), config.read(tmp_path / "config.yaml")) == new


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"prune": {"ratio": 0.5, "flops": 0.5}}, ["prune.ratio and prune.flops", "expected one"]),
        ({"train": {"lrr": 1}}, ["'train.lrr'", "did you mean 'train.lr'"]),
        ({"trian": {"lr": 1}}, ["'trian'", "did you mean 'train'"]),
        ({"ratio": 0.5}, ["'ratio'", "did you mean 'prune.ratio'"]),
        ({"train": {"schedule": "cosin"}}, ["'cosin'", "did you mean 'cosine'"]),
        ({"train": {"lr": "fast"}}, ["train.lr", "'fast'", "a number"]),
        ({"train": {"epochs": 1.5}}, ["train.epochs", "1.5", "a whole number"]),
        ({"train": {"epochs": True}}, ["train.epochs", "True", "a whole number"]),
        ({"train": {"epochs": float("inf")}}, ["train.epochs", "inf"]),
        ({"train": {"lr": float("nan")}}, ["train.lr", "nan", "more than 0"]),
        ({"train": {"nesterov": 1}}, ["train.nesterov", "1", "true or false"]),
        ({"train": 3}, ["train", "3", "epochs"]),
        ({"train": None}, ["train", "None", "epochs"]),
        ({"seed": None}, ["seed", "None", "a whole number"]),
        ({"name": 3}, ["name", "3", "text"]),
        ({"name": "../up"}, ["'../up'", "folder name"]),
        ({"model": {"kwargs": [1]}}, ["model.kwargs", "[1]", "mapping"]),
        ({"prune": {"ratio": 1}}, ["prune.ratio", "1", "[0, 1)"]),
        ({"prune": {"ratio": -0.1}}, ["prune.ratio", "-0.1", "[0, 1)"]),
        ({"data": {"batch_size": 0}}, ["data.batch_size", "0", "at least 1"]),
        ({"bench": {"batch_sizes": [1, 0]}}, ["bench.batch_sizes", "0", "at least 1"]),
        ({"bench": {"batch_sizes": []}}, ["bench.batch_sizes", "[]", "list"]),
    ],
)
def test_a_mistake_is_named_in_one_line(values: dict, parts: list[str]) -> None:
    with pytest.raises(SlimError) as caught:
        updated(RunConfig(), values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_list_of_one_needs_no_brackets() -> None:
    made = updated(
        RunConfig(), {"bench": {"batch_sizes": "8"}, "train": {"milestones": 0.9}, "prune": {"keep": "stem.*"}}
    )
    assert (made.bench.batch_sizes, made.train.milestones, made.prune.keep) == ([8], [0.9], ["stem.*"])
    made = updated(RunConfig(), {"bench": {"threads": "1, 2"}, "data": {"mean": "0.5,0,0.001"}})  # nor do several
    assert (made.bench.threads, made.data.mean) == ([1, 2], [0.5, 0.0, 0.001])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"train: [", "line"),
        (b"- 1", "expected settings"),
        (b"\xff\xfe\x00", "not text"),
        (None, "can't be read"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SlimError) as caught:
        config.read(path)
    assert part in str(caught.value) and "broken.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_every_range_holds_its_default_and_refuses_something() -> None:
    def nested(key: str, value: object) -> dict:
        section, _, name = key.rpartition(".")
        return {section: {name: value}} if section else {name: value}

    ranged = [s for s in config.settings().values() if s.within]
    assert len(ranged) > 20
    for s in ranged:
        updated(RunConfig(), nested(s.key, s.default))
        outside = [-1] if isinstance(s.default, list) else float(s.within[1:-1].split(",")[0]) - 1
        with pytest.raises(SlimError, match="expected"):
            updated(RunConfig(), nested(s.key, outside))


def test_every_setting_explains_itself() -> None:
    assert all(s.help for s in config.settings().values())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    updated(RunConfig(), config.read(path))


def test_the_digits_file_says_what_the_defaults_are() -> None:
    assert updated(RunConfig(), config.read(CONFIGS / "digits.yaml")) == RunConfig(name="digits")


def test_yaml_out_and_in_again(tmp_path: Path) -> None:
    made = updated(
        RunConfig(),
        {
            "name": "on",
            "train": {"weight_decay": 1e-5},
            "model": {"kwargs": {"depth": 40}},
            "bench": {"batch_sizes": [3]},
        },
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(made), encoding="utf-8")
    again = updated(RunConfig(), config.read(tmp_path / "config.yaml"))
    assert dataclasses.asdict(again) == dataclasses.asdict(made)


def test_settings_come_without_torch() -> None:
    code = "import sys, slim, slim.workbench.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2020-99-99",
        "seed: !!int abc",
        "seed: !!float abc",
        "seed: !!bool abc",
        "seed: !!timestamp abc",
        "seed: !!binary é",
        "seed: !!python/object/apply:os.system [true]",
        f"seed: {'9' * 5000}",
        "seed: " + "[" * 5000,
        "{" * 5000,
        BOMB,
        "\x00",
        "- a",
        "? [a]\n: b",
        "seed: 1\nseed: : 2",
    ],
    ids=lambda text: text[:20],
)
def test_no_yaml_makes_more_than_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(SlimError) as caught:
        config.updated(RunConfig(), config.read(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["2020-99-99", "!!int abc", "9" * 5000, "[" * 5000, "1e999", "nan", "\x00"])
def test_no_value_on_the_command_line_makes_a_traceback(value: str) -> None:
    with pytest.raises(SlimError):
        config.updated(RunConfig(), {"seed": value})
    with pytest.raises(SlimError):
        config.updated(RunConfig(), {"prune": {"keep": value if value != "nan" else "{a: b}"}, "seed": -1})
