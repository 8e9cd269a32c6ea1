"""Checkpoints survive kills, damage and full disks, misfit adapters are refused; signals are heard."""

import errno
import logging
import multiprocessing
import os
import pickle
import random
import signal
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkal.errors import CheckpointError, ClipkalError
from clipkal.recording import checkpoint
from clipkal.recording.checkpoint import Checkpoint, save_adapter
from clipkal.recording.interrupt import Interrupt
from clipkal.tracking.tensors import read_tensors, write_tensors

PRINT = {"classes": "abc", "C": 10, "d": 512, "adapter": "linear", "shape": (2, 3)}


def slots(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.?{path.suffix}"))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# -- what comes back -----------------------------------------------------------------------------------------


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    adam = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 4)}},
        "param_groups": [{"lr": 1e-3}],
    }
    state = {
        "weight": weight.detach(),
        "half": torch.randn(2).bfloat16(),
        "optimizer": adam,
        "rng": torch.get_rng_state(),
        "python_rng": random.getstate(),
        "step": 7,
        "lr": 0.1 + 0.2,
        "flag": True,
        "none": None,
        "name": "ü",
        "nested": [{"a": (1, [2.5, "x"])}, torch.tensor(3)],
    }
    Checkpoint.save(tmp_path / "c.pt", state | {"weight": weight}, PRINT)
    assert equal(Checkpoint.load(tmp_path / "c.pt", PRINT), state)


def test_kinds_that_stand_for_plain_ones(tmp_path: Path) -> None:
    state = {"n": np.float64(0.5), "i": np.int64(3), "o": OrderedDict(a=1), "b": np.bool_(True)}
    Checkpoint.save(tmp_path / "c.pt", state, {})
    assert equal(Checkpoint.load(tmp_path / "c.pt", {}), {"n": 0.5, "i": 3, "o": {"a": 1}, "b": True})


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    Checkpoint.save(tmp_path / "c.pt", {"view": big[:10]}, {})
    assert slots(tmp_path / "c.pt")[0].stat().st_size < 10_000


@pytest.mark.parametrize("value", [np.zeros(2), object(), {1, 2}, {(1, 2): 3}, lambda: None])
def test_what_could_not_be_read_back_is_refused_when_saving(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[0\]"):
        Checkpoint.save(tmp_path / "c.pt", {"a": [value]}, {})
    assert not slots(tmp_path / "c.pt")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path / "c.pt", PRINT) is None
    assert Checkpoint.load(tmp_path / "nowhere" / "c.pt", PRINT) is None


def test_newest_of_two_is_loaded_and_both_can_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run" / "c.pt"
    for step in range(5):
        Checkpoint.save(path, {"step": step}, PRINT)
        assert Checkpoint.load(path, PRINT) == {"step": step}
    assert len(slots(path)) == 2
    Checkpoint.delete(path)
    assert not list(path.parent.iterdir())
    Checkpoint.delete(path)


# -- damage --------------------------------------------------------------------------------------------------


def saved(folder: Path, steps: int = 3) -> tuple[Path, Path]:
    """A path with `steps` saves, and the file of the newest."""
    path = folder / "c.pt"
    for step in range(steps):
        Checkpoint.save(path, {"step": step, "x": torch.full((50,), float(step))}, PRINT)
    return path, max(slots(path), key=checkpoint._sequence)


def damaged(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "empty": b"",
        "one byte": data[:1],
        "half": data[:middle],
        "last byte missing": data[:-1],
        "flipped bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "flipped header": data[:60] + bytes([data[60] ^ 4]) + data[61:],
        "zeros": b"\0" * len(data),
        "longer": data + b"x",
        "other version": data.replace(b"checkpoint 1", b"checkpoint 9", 1),
        "pickle": pickle.dumps({"step": 9}),
    }[how]


CUT = ["empty", "one byte", "half", "last byte missing"]
HOWS = [*CUT, "flipped bit", "flipped header", "zeros", "longer", "other version", "pickle"]


@pytest.mark.parametrize("how", HOWS)
def test_damaged_newest_falls_back_with_a_warning(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, newest = saved(tmp_path)
    newest.write_bytes(damaged(newest.read_bytes(), how))
    state = Checkpoint.load(path, PRINT)
    assert state is not None and state["step"] == 1
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert newest.name in record.getMessage()
    for step in (10, 11):
        Checkpoint.save(path, {"step": step}, PRINT)
        assert Checkpoint.load(path, PRINT) == {"step": step}


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path, newest = saved(tmp_path)
    whole = newest.read_bytes()
    for size in range(0, len(whole), 97):
        newest.write_bytes(whole[:size])
        state = Checkpoint.load(path, PRINT)
        assert state is not None and state["step"] == 1


def test_all_damaged_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    for slot in slots(path):
        slot.write_bytes(slot.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"c\.a\.pt.*c\.b\.pt.*damaged.*delete"):
        Checkpoint.load(path, PRINT)


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    path, newest = saved(tmp_path)
    newest.unlink()
    newest.mkdir()
    assert Checkpoint.load(path, PRINT) is not None


# -- belonging -----------------------------------------------------------------------------------------------


def test_another_fingerprint_lists_the_keys(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    other = PRINT | {"C": 12, "adapter": "x" * 200, "new": None}
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path, other)
    line = str(caught.value)
    assert "C: 10 there, 12 here" in line and 'new: "(absent)" there, null here' in line
    assert "delete it" in line and "d:" not in line and "\n" not in line and len(line) < 500


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("signed", [True, False])
def test_malicious_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if signed:  # a whole checkpoint file, digest and all, around a bad payload
        monkeypatch.setattr(checkpoint, "_storable", lambda value, where: {"bomb": Bomb()})
        Checkpoint.save("c.pt", {}, PRINT)
    else:
        torch.save({"bomb": Bomb()}, "c.a.pt")
    with pytest.raises(CheckpointError, match=r"c\.a\.pt"):
        Checkpoint.load("c.pt", PRINT)
    assert not (tmp_path / "exploded").exists()


def test_huge_header_length_is_harmless(tmp_path: Path) -> None:
    data = checkpoint.MAGIC + b"\0" * 32 + struct.pack("<Q", 1 << 62) + b"{}"
    (tmp_path / "c.a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.load(tmp_path / "c.pt", PRINT)


# -- disks and kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner, call", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_refusing_disk_keeps_both_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path, _ = saved(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(ClipkalError, match=rf"{os.strerror(code)}.*output_dir="):
        Checkpoint.save(path, {"step": 9}, PRINT)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_failed_delete_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    path, _ = saved(tmp_path)
    monkeypatch.setattr(Path, "unlink", refuse)
    Checkpoint.delete(path)
    assert len(caplog.records) == 2


def save_for_ever(path: Path) -> None:
    for step in range(1_000_000):
        Checkpoint.save(path, {"step": step, "x": torch.full((20_000,), float(step))}, PRINT)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_killed_while_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(0)
    for attempt in range(12):
        path = tmp_path / str(attempt) / "c.pt"
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        while len(slots(path)) < 2:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        state = Checkpoint.load(path, PRINT)
        assert state is not None and torch.equal(state["x"], torch.full((20_000,), float(state["step"])))
        assert state["step"] >= max(map(checkpoint._sequence, slots(path)))
    assert not caplog.records  # neither file was ever damaged


# -- trained adapters ----------------------------------------------------------------------------------------

META = {"adapter": "linear", "classes_sha256": "1" * 64, "backbone_sha256": "2" * 64}


def test_adapter_comes_back(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    state = {
        "weight": base,
        "tied": base,
        "half": base.half().T,
        "scale": torch.tensor(2.5),
        "none": torch.empty(0),
    }
    save_adapter(tmp_path / "adapter.safetensors", state, META)
    back, metadata = read_tensors(tmp_path / "adapter.safetensors")
    assert equal(back, state | {"half": base.half().T.contiguous()})
    assert metadata["shapes"]["weight"] == [4, 4] and metadata["shapes"]["scale"] == []


@pytest.mark.parametrize(
    "how", ["empty", "half", "last byte missing", "flipped last bit", "zeros", "text", "header"]
)
def test_damaged_adapter_names_the_file(tmp_path: Path, how: str) -> None:
    path = save_adapter(tmp_path / "a.safetensors", {"weight": torch.randn(20, 20)}, META)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    header = struct.pack("<Q", 1 << 40) + data[8:]
    special = {"flipped last bit": flipped, "text": b"hello", "header": header}
    path.write_bytes(special[how] if how in special else damaged(data, how))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged.*run clipkal again"):
        read_tensors(path)


def test_missing_adapter_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such file"):
        read_tensors(tmp_path / "a.safetensors")


def test_tensors_of_others_can_be_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors")[1] == {}
    write_tensors(tmp_path / "y.safetensors", {}, {"n": np.int64(3)})
    assert read_tensors(tmp_path / "y.safetensors") == ({}, {"n": 3})


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_disk_that_fills_up_half_way_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    """The limit on the size of a file stands for a full disk: the write itself fails, after some bytes."""
    import resource

    import pyarrow as pa

    from clipkal.tracking import RunDirectory

    path, big = tmp_path / "r" / "checkpoint.pt", {"w": torch.ones(5000)}
    directory = RunDirectory(tmp_path / "r")
    directory.begin("a" * 16, "seed: 1")
    Checkpoint.save(path, {"epoch": 1, **big}, {"run": "a"})
    table = pa.table({"p": torch.rand(5000).numpy()})
    writes: list[Callable[[], object]] = [
        lambda: Checkpoint.save(path, {"epoch": 2, **big}, {"run": "a"}),
        lambda: save_adapter(directory.path / "adapter.safetensors", big, {}),
        lambda: directory.save_tensors("posterior", big, {}),
        lambda: directory.write_predictions(table),
        lambda: directory.write_results({"x": list(range(5000))}),
    ]
    before = {p.name: p.read_bytes() for p in directory.path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        for write in writes:
            with pytest.raises(ClipkalError, match=r"cannot be written \(.*output_dir=") as caught:
                write()
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        directory.close()
    assert {p.name: p.read_bytes() for p in directory.path.iterdir()} == before
    state = Checkpoint.load(path, {"run": "a"})
    assert state is not None and state["epoch"] == 1


# -- signals -------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143, "SIGUSR2": 143}


@posix
@pytest.mark.parametrize("name", CODES)
def test_a_signal_is_noted_and_the_handlers_put_back(name: str) -> None:
    before = {n: signal.getsignal(getattr(signal, n)) for n in CODES}
    with Interrupt() as interrupt:
        assert not interrupt.requested and interrupt.exit_code == 0
        signal.raise_signal(getattr(signal, name))
        assert interrupt.requested and interrupt.exit_code == CODES[name]
    assert {n: signal.getsignal(getattr(signal, n)) for n in CODES} == before
    assert interrupt.exit_code == CODES[name]


@posix
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_stops_at_once(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupt, "PATIENCE", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested
        signal.raise_signal(getattr(signal, second))
    assert signal.getsignal(signal.SIGTERM) is before


@posix
def test_the_same_request_come_twice_is_one() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested and interrupt.exit_code == 143


@posix
def test_a_schedulers_warning_after_sigterm_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupt, "PATIENCE", 0.0)
    heard: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in numbers]
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR2)
            assert interrupt.requested
        assert heard == list(numbers), (
            "submitit is told of both, and puts the job back into the queue on the second"
        )
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@posix
def test_handlers_are_put_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


@posix
def test_a_handler_of_others_hears_of_the_signal_afterwards() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with Interrupt() as outer:
            with Interrupt() as inner:
                signal.raise_signal(signal.SIGUSR1)
                assert inner.requested and not outer.requested and not heard
            assert outer.requested and not heard
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@posix
def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_sits_out_ctrl_c_and_dies_of_sigterm() -> None:
    with Interrupt() as interrupt:
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        worker.start()
        time.sleep(0.2)
        os.kill(worker.pid or 0, signal.SIGINT)
        os.kill(worker.pid or 0, signal.SIGUSR1)
        time.sleep(0.2)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM and not interrupt.requested


def test_no_handlers_outside_the_main_thread() -> None:
    found: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with Interrupt() as interrupt:
            found.append((interrupt.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
