"""Images streamed from files, and the cache of decoded ones."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import folder, write_tree
from PIL import ExifTags, Image

from slim.errors import SlimError
from slim.workbench.config import DataConfig
from slim.workbench.data import batches, load
from slim.workbench.data.files import WORTHWHILE, ImageFiles


def test_streamed_batches_are_those_from_memory_bit_for_bit(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 430, "b": 330}, size=(9, 8))
    memory = folder(tmp_path, storage="host", cache=False, augment="crop+flip+randaugment+cutout")
    streamed = folder(tmp_path, storage="stream", workers=2, augment="crop+flip+randaugment+cutout")
    assert len(streamed.train) > WORTHWHILE  # so that processes do the work
    assert streamed.spec == memory.spec
    assert streamed.train.images.shape == memory.train.images.shape
    assert not list(tmp_path.glob(".slim*"))
    state = torch.get_rng_state()
    for settings in (
        {},
        {"shuffle_seed": 1, "augment": True},
        {"shuffle_seed": 1, "augment": True, "start": 3, "shard": (1, 2)},
    ):
        pairs = zip(batches(memory.train, memory, 64, **settings), batches(streamed.train, streamed, 64, **settings))
        count = 0
        for ours, theirs in pairs:
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
            count += 1
        assert count >= 5
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mistake_in_a_worker_is_one_line(tmp_path: Path) -> None:
    files = sorted(write_tree(tmp_path, {"a": 400, "b": 400}))
    data = folder(tmp_path, storage="stream", workers=2)
    for file in files[1:]:
        file.write_bytes(b"no image")
    with pytest.raises(SlimError, match="not an image that Pillow can read") as error:
        list(batches(data.train, data, 64, shuffle_seed=0))
    assert "\n" not in str(error.value)


def test_only_folders_are_streamed() -> None:
    with pytest.raises(SlimError, match=r"data\.storage stream is for image folders, digits comes in one piece"):
        load(DataConfig(storage="stream"), seed=0)


def test_storage_follows_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    size = 40 * 3 * 6 * 6
    for free, in_memory in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr("slim.workbench.data.folder.free_memory", lambda free=free: free)
        assert isinstance(folder(tmp_path).train.images, torch.Tensor) == in_memory
    assert isinstance(folder(tmp_path, storage="host").train.images, torch.Tensor)
    assert not isinstance(folder(tmp_path, storage="stream").train.images, torch.Tensor)

    data = folder(tmp_path, storage="host")
    needed = data.train.nbytes + data.val.nbytes
    assert needed == data.train.decoded().numel() + data.val.decoded().numel()
    limits: list[tuple[str, float, bool]] = [
        ("auto", 2 * needed, True),
        ("auto", 2 * needed - 2, False),
        ("device", 0, True),
        ("host", math.inf, False),
    ]
    for storage, available, moves in limits:
        monkeypatch.setattr("slim.workbench.data.splits._free_on", lambda device, available=available: available)
        placed = replace(data, storage=storage).to("meta")
        assert (placed.train.decoded().device.type, placed.train.labels.device.type) == (
            "meta" if moves else "cpu",
            "meta",
        )


def test_the_cache_saves_decoding_and_follows_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_tree(tmp_path, {"a": 30, "b": 30})
    decoded = []
    original = ImageFiles.decoded

    def counted(files: ImageFiles) -> torch.Tensor:
        decoded.append(len(files))
        return original(files)

    monkeypatch.setattr(ImageFiles, "decoded", counted)

    def everything() -> list[bytes]:
        data = folder(tmp_path)
        splits = (data.train, data.val, data.test)
        return sorted(map(bytes, torch.cat([s.decoded() for s in splits]).permute(0, 2, 3, 1).numpy()))

    first = everything()
    assert first == sorted(map(bytes, files.values()))
    assert (everything(), decoded) == (first, [60])

    changed, removed, *_ = sorted(files)
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(changed)
    removed.unlink()
    expected = sorted([bytes(108), *(bytes(files[path]) for path in files if path not in (changed, removed))])
    assert (everything(), decoded) == (expected, [60, 59])
    assert folder(tmp_path, image_size=3).image_size == (3, 3)  # another size has a file of its own
    assert (everything(), decoded) == (expected, [60, 59, 59])

    [cache] = tmp_path.glob(".slim-*as-they-are*")
    cache.write_bytes(cache.read_bytes()[:-100])  # cut short: not believed
    assert (everything(), decoded) == (expected, [60, 59, 59, 59])
    assert folder(tmp_path, cache=False).train.images.shape[1:] == (3, 6, 6)
    assert decoded[4:] == [59]


def test_a_cache_of_photographs_that_were_not_turned_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_tree(tmp_path, {"a": 10, "b": 10})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # its first row is the right-hand side
    for path, pixels in files.items():
        Image.fromarray(pixels).save(path, exif=exif)

    def everything() -> list[bytes]:
        data = folder(tmp_path, storage="host")
        splits = (data.train, data.val, data.test)
        return sorted(map(bytes, torch.cat([s.decoded() for s in splits]).permute(0, 2, 3, 1).numpy()))

    with monkeypatch.context() as earlier:  # slim before it turned them
        earlier.setattr("slim.images.upright", lambda picture: picture)
        earlier.setattr("slim.workbench.data.folder.FORMAT", "1")
        assert everything() == sorted(map(bytes, files.values()))
    turned = sorted(np.rot90(pixels, -1).tobytes() for pixels in files.values())
    assert everything() == turned == everything()


def test_a_cache_that_can_not_be_written_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    (tmp_path / ".slim-6x6-as-they-are.safetensors" / "in the way").mkdir(parents=True)
    assert len(folder(tmp_path).train) > 20
    assert "can't keep the decoded images" in capsys.readouterr().err


def test_training_from_a_stream_gives_the_same_weights(tmp_path: Path) -> None:
    from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
    from slim.workbench.models import build
    from slim.workbench.train import evaluate, fit

    on_cpu = ComputeConfig(device="cpu")
    write_tree(tmp_path, {"a": 40, "b": 40}, size=(8, 8))
    results = []
    for storage in ("host", "stream"):
        data = folder(tmp_path, storage=storage, workers=1)
        torch.manual_seed(0)
        model = build("slim:mlp", num_classes=2, in_channels=3, image_size=8)
        sparsity = SparsityConfig(penalty="group_lasso")  # which looks at images before the training
        records = fit(model, replace(data, batch_size=16), OptimConfig(epochs=2), compute=on_cpu, sparsity=sparsity)
        scores = evaluate(model, data.test, data, compute=on_cpu)
        results.append(
            (records[-1]["train_loss"], scores["loss"], torch.cat([p.flatten() for p in model.parameters()]))
        )
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])
