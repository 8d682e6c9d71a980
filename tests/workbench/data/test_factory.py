"""Data of the user's own, named as `package.module:factory` or `file.py:factory`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim.errors import Interrupted, SlimError
from slim.images import ImageSpec
from slim.workbench import data
from slim.workbench.config import ComputeConfig, DataConfig, OptimConfig
from slim.workbench.data import Dataset, Loaders
from slim.workbench.nested import Samples
from slim.workbench.run.networks import normalised_as
from slim.workbench.tasks import Classification
from slim.workbench.train import evaluate, fit

FILE = """
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as Dataset_
from slim.errors import Interrupted
from slim.images import ImageSpec
from slim.workbench.data import Dataset, Split

def samples(count):
    labels = torch.arange(count) % 3
    made = TensorDataset(torch.randn(count, 1, 6, 6) + labels[:, None, None, None], labels)
    made.classes = ["low", "middle", "high"]
    return made

class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples(40))

class Named(Dataset_):
    def __len__(self): return 60
    def __getitem__(self, i): return {"image": samples(60)[i][0].double(), "label": i % 3}

class Counted(Stream):
    def __len__(self): return 40

def maps(): return samples(100), None, samples(20)
def one(): return samples(100)
def classes(): return {"train": samples(60), "validation": samples(0), "test": samples(20), "classes": [1, 2, 3]}
def dicts(): return [Named(), samples(20), samples(20)]
def counted(): return Counted(), None, samples(20)
def none_left(): return samples(0), None, samples(20)
def no_split(): return {"train": samples(20), "eval": samples(20)}
def ends(): raise SystemExit(3)
def stopped(): raise Interrupted("stopped", 15)
def by_zero(): return named() | {"transform": lambda images: 1 / 0}
def too_large(): return named() | {"transform": lambda images: images.expand(10**9, *images.shape).clone()}
def named(): return {"train": samples(60), "val": samples(20), "test": samples(20)}
def whitened(): return {"train": lists()[0], "test": lists()[2], "transform": lambda images: (images - 1) / 2}
def no_function(): return named() | {"transform": 3}
def loaders(batch_size): return tuple(DataLoader(samples(60), batch_size) for _ in range(3))
def lists(): return tuple(list(DataLoader(samples(60), 20)) for _ in range(3))
def told(root, seed, image_size, batch_size): return ValueError((root, seed, image_size, batch_size))

def images():
    split = Split(torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 3)
    spec = ImageSpec((1, 6, 6), ("low", "middle", "high"), (0.5,), (0.3,))
    return Dataset("made", spec, split, split, split)

def raw():
    draw = torch.Generator().manual_seed(0)
    def some(count): return torch.randint(256, (count, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return [TensorDataset(some(count), torch.arange(count) % 3) for count in (60, 20, 20)]

class Pictures(Dataset_):
    def __init__(self, images): self.images = images
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return Image.fromarray(self.images[i][0][0].numpy()), i % 3

def pictures(): return [Pictures(part) for part in raw()]
class Masks(Pictures):
    def __getitem__(self, i):
        mask = Image.fromarray(torch.full((6, 6), 255 if i else 2).byte().numpy())
        if i % 2:
            mask = mask.convert("P")
            mask.putpalette([9, 8, 7] * 256)
        return {"image": super().__getitem__(i)[0], "mask": mask}

def masks(): return [Masks(part) for part in raw()]
def raw_whitened(): return dict(zip(("train", "val", "test"), raw()), transform=lambda images: images / 127.5 - 1)
def halves(): return {"train": samples(60), "test": samples(20), "transform": lambda images: {"x": images.half()}}
def raw_as_they_are(): return dict(zip(("train", "val", "test"), raw()), transform=lambda images: images)
def three(): return 3
def arrays(): return tuple([(images.numpy(), labels.numpy()) for images, labels in part] for part in lists())
def pair(): return samples(100), samples(20)
def four(): return [samples(20)] * 4

def module():
    from lightning import LightningDataModule
    class Module(LightningDataModule):
        def setup(self, stage): setattr(self, stage, samples(60))
        def train_dataloader(self): return DataLoader(self.fit, 20)
        def test_dataloader(self): return DataLoader(self.test, 20)
    return Module()

def no_test(): return list(samples(20)), samples(20), None
def number(): return samples(20), None, 7
def empty(): return [], None, []
def once(): return iter(lists()[0]), None, lists()[2]
def fails(): raise FileNotFoundError("no images\\nhere")
def streams(): return Stream(), None, Stream()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(FILE)


def load(factory: str, **settings: Any) -> Dataset | Loaders:
    name = f"mydata.py:{factory}"
    return data.load_any(DataConfig(name=name, **settings), 3, allow_code=[name])


@pytest.mark.parametrize(("factory", "spread"), [("raw", 1.0), ("pictures", 1.0), ("raw_whitened", 0.577)])
def test_images_in_bytes_are_normalised_where_no_transform_does_it(factory: str, spread: float) -> None:
    made = load(factory)
    assert isinstance(made, Loaders) and made.spec.shape == (1, 6, 6)
    own = normalised_as(ImageSpec(mean=(0.0,), std=(1 / 255,)), made)  # as a network was trained
    for loaders, deviation in ((made, spread), (own, spread if spread < 1 else 255 / 12**0.5)):
        found = torch.cat([images for images, _ in data.ordered(loaders, loaders.test or [], 20, torch.device("cpu"))])
        assert found.dtype == torch.float32 and float(found.std()) == pytest.approx(deviation, rel=0.05)
    _, maps = next(iter(data.ordered(load("masks"), load("masks").test or [], 20, torch.device("cpu"))))
    assert maps.shape == (20, 6, 6) and maps[0].eq(2).all() and maps[1:].eq(255).all()
    kept = data.ordered(load("raw_as_they_are"), made.test or [], 20, torch.device("cpu"))
    assert next(iter(kept))[0].dtype == torch.uint8  # for a network that normalises them itself
    halves = data.ordered(load("halves"), load("halves").test or [], 20, torch.device("cpu"))
    assert next(iter(halves))[0]["x"].dtype == torch.float32
    fit(network(), made, OptimConfig(epochs=1), compute=ComputeConfig(device="cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("factory", "classes"),
    [
        *(
            (name, ("low", "middle", "high"))
            for name in ("maps", "named", "loaders", "images", "one", "pair", "module")
        ),
        ("classes", ("1", "2", "3")),
        *((name, None) for name in ("dicts", "streams", "counted")),
    ],
)
def test_every_kind_trains_and_is_evaluated(factory: str, classes: tuple[str, ...] | None) -> None:
    loaded = load(factory, batch_size=20)
    assert loaded.spec.shape == (1, 6, 6) and loaded.spec.classes == classes
    assert loaded.task == Classification(3 if classes else None)
    compute = ComputeConfig(device="cpu")
    model = network()
    records = fit(model, loaded, OptimConfig(epochs=3, lr=0.01, warmup=0), compute=compute, seed=3)
    assert (records[-1]["val_accuracy"] is None) == (factory in ("streams", "counted", "module"))
    assert records[0]["images"] in (40, 60, 80, 100)
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert loaded.test is not None
    assert 0 <= evaluate(model, loaded.test, loaded, compute=compute)["accuracy"] <= 1


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for _ in range(2):
        model = network()
        fit(model, load("maps", batch_size=20), OptimConfig(epochs=2), compute=ComputeConfig(device="cpu"), seed=3)
        found.append(model[1].weight)  # type: ignore[index]
    assert torch.equal(*found)


def test_validation_samples_are_held_out() -> None:
    loaded = load("maps", batch_size=30, val_fraction=0.2)
    assert isinstance(loaded, Loaders) and loaded.val is not None
    train, val = (torch.cat([images for images, _ in part]) for part in (loaded.train, loaded.val))
    assert len(train) == 60 and len(val) == 20  # of 80, in batches of 30
    assert not {tuple(image.flatten().tolist()) for image in train} & {tuple(i.flatten().tolist()) for i in val}
    assert load("maps", val_fraction=0).val is None


def test_images_of_several_sizes_are_named() -> None:
    """They train detectors; batches to prune by are made of images of one size."""
    images = [torch.zeros(3, size, 6) for size in (6, 7, 6)]
    for inputs in ([Samples(images)], [image[None] for image in images]):
        with pytest.raises(
            SlimError, match=r"the data has images of several sizes, such as \[3, 6, 6\] and \[3, 7, 6\]"
        ):
            data.sample_inputs(Loaders([(each, torch.zeros(len(each))) for each in inputs]), 9, seed=0)
    assert data.sample_inputs(Loaders([(Samples(images[::2]), torch.zeros(2))]), 9, seed=0).shape == (2, 3, 6, 6)


def test_a_factory_gets_what_it_has_parameters_for() -> None:
    with pytest.raises(SlimError, match=r"mydata.py:told' gave an object of type ValueError"):
        load("told", root="there", image_size=7, batch_size=9)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("three", r"gave an object of type int: expected \(train, test\), \(train, val, test\), or"),
        ("four", r"gave 4 parts: expected \(train, test\), \(train, val, test\), or a Dataset"),
        ("none_left", "gave no train data: expected samples or batches"),
        ("no_split", "gave eval: expected some of train, training, val, .*, transform, classes"),
        ("by_zero", r"the transform of 'mydata.py:by_zero' failed \(ZeroDivisionError"),
        ("too_large", "^out of memory: expected a smaller data.batch_size"),
        ("no_function", "the transform of .* is of type int: expected a function"),
        ("no_test", "gave no test data: expected samples or batches"),
        ("number", "the test data of 'mydata.py:number' are of type int: expected samples or batches"),
        ("empty", "gave no training batch: expected at least one"),
        ("once", "can be had once only: expected an iterable, such as a list"),
        ("fails", r"the data factory 'mydata.py:fails' failed \(FileNotFoundError: no images here\)"),
        ("ends", r"the data factory 'mydata.py:ends' failed \(SystemExit: 3\)"),
        ("mapz", "unknown data in mydata.py 'mapz': did you mean 'maps'"),
    ],
)
def test_mistakes(factory: str, message: str) -> None:
    with pytest.raises(SlimError, match=message) as error:
        load(factory)
    assert "\n" not in str(error.value)


def test_a_signal_is_no_failure_of_the_users_code() -> None:
    """Nor of an exporter's: a run that was asked to end while it wrote a file went on without it."""
    with pytest.raises(Interrupted):
        load("stopped")


def test_only_what_the_user_named_is_run() -> None:
    with pytest.raises(SlimError, match=r"data 'mydata.py:maps' would run 'mydata.py'.*--allow-code mydata.py:maps"):
        data.load_any(DataConfig(name="mydata.py:maps"), 0, allow_code=["other:thing"])


def test_batches_of_arrays_are_those_of_tensors() -> None:
    made, same = load("arrays"), load("lists")
    assert isinstance(made, Loaders) and isinstance(same, Loaders)
    for got, expected in zip(*(data.ordered(each, each.train, 8, torch.device("cpu")) for each in (made, same))):
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_a_transform_is_called_on_the_inputs_of_every_batch() -> None:
    made, cpu = load("whitened"), torch.device("cpu")
    assert isinstance(made, Loaders) and isinstance(made.train, list)
    feed = data.feed(made, cpu)
    assert torch.equal(feed.few()[0], (made.train[0][0][:2] - 1) / 2)
    for given in (feed.epoch(0, 0, (0, 1)), data.ordered(made, made.train, 8, cpu)):
        for (inputs, *_), batch in zip(given, made.train, strict=True):
            assert torch.equal(inputs, (batch[0] - 1) / 2)
    assert torch.equal(data.sample_inputs(made, 20, seed=0), (made.train[0][0] - 1) / 2)
