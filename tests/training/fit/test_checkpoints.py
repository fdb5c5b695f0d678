"""What a checkpoint promises: complete or passed over, one run in a folder, and nothing lost on a full disk."""

import errno
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hub_unets.training.errors import UserError
from hub_unets.training.fit.checkpoints import (
    MARKER,
    RunFolder,
    checkpoints,
    is_complete,
    last_complete,
    mark_complete,
    naming_write_errors,
    remove_older,
)
from tests.training import runs
from tests.training.runs import run, start

needs_mounts = pytest.mark.skipif(not runs.has_own_mounts(), reason="the system permits no mount namespace")
EPOCHS = {"ema_decay": 0.5, "num_train_epochs": 3, "per_device_train_batch_size": 20}  # a step and a checkpoint each


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(step, complete=True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        if complete:
            mark_complete(folder)
        return folder

    return make


@pytest.fixture
def other_disk(tmp_path):
    """A function that mounts something on `tmp_path`/disk, where runs see it and this process does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    yield lambda *commands: [runs.shell(f"{command} {disk}") for command in commands]
    runs.shell(f"umount {disk}")


def test_complete_means_every_file_as_it_was_written(make_checkpoint):
    folder = make_checkpoint(1)
    assert is_complete(folder)
    (folder / "model.safetensors").write_bytes(b"x" * 99 + b"y")
    assert not is_complete(folder)
    (folder / "model.safetensors").write_bytes(b"x" * 99)
    assert not is_complete(folder)
    (folder / "model.safetensors").unlink()
    assert not is_complete(folder)


def test_marker_of_an_earlier_release_holds_sizes(make_checkpoint):
    folder = make_checkpoint(1, complete=False)
    (folder / MARKER).write_text('{"model.safetensors": 100}')
    assert is_complete(folder)
    (folder / MARKER).write_text('{"model.safetensors": 99}')
    assert not is_complete(folder)


@pytest.mark.parametrize(
    "content", ["", "{", '{"model.safetensors": 1', "[1]", '{"model.safetensors": {"size": 100}}']
)
def test_damaged_marker_is_not_complete(make_checkpoint, content):
    folder = make_checkpoint(1)
    (folder / MARKER).write_text(content)
    assert not is_complete(folder)


def test_leftover_of_a_killed_marker_does_no_harm(make_checkpoint):
    folder = make_checkpoint(1, complete=False)
    (folder / f".{MARKER}").write_text("half")
    mark_complete(folder)
    assert is_complete(folder)


def test_newest_complete_is_found_by_number(make_checkpoint, tmp_path):
    make_checkpoint(2)
    make_checkpoint(10)
    half = [make_checkpoint(step, complete=False) for step in (100, 30)]
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-10", half)
    assert last_complete(tmp_path / "nowhere") == (None, [])


def test_newest_and_best_are_kept(make_checkpoint, tmp_path):
    for step in (1, 2, 3, 4):
        make_checkpoint(step)
    remove_older(tmp_path, {3, 1})
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 3, 4]
    remove_older(tmp_path, {4, None})
    assert [step for step, _ in checkpoints(tmp_path)] == [4]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed (inline_container.cc:1)"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_write_error_names_the_folder_and_what_is_kept(make_checkpoint, tmp_path, error):
    make_checkpoint(2)
    expected = "checkpoint-4 can't be written .*checkpoint-2, is kept: make room"
    with pytest.raises(OSError, match=expected) as raised, naming_write_errors(tmp_path / "checkpoint-4"):
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        SafetensorError("Error while deserializing header: invalid header"),
        RuntimeError("PytorchStreamReader failed reading zip archive (inline_container.cc:1)"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        UserError("frame2.jpg can't be read"),
    ],
)
def test_what_is_no_full_disk_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, naming_write_errors(tmp_path / "checkpoint-4"):
        raise error
    assert raised.value is error


def test_other_settings_are_refused_by_name(tmp_path):
    with RunFolder(tmp_path / "run", {"learning_rate": "0.1", "seed": "0"}):
        pass
    with RunFolder(tmp_path / "run", {"learning_rate": "0.1", "seed": "0"}):
        pass
    with pytest.raises(ValueError, match="learning_rate=0.1, not 0.2"):
        RunFolder(tmp_path / "run", {"learning_rate": "0.2", "seed": "0"}).__enter__()
    with pytest.raises(ValueError, match="seed=0, not None"):
        RunFolder(tmp_path / "run", {"learning_rate": "0.1"}).__enter__()


def test_settings_file_of_a_killed_start_is_written_again(tmp_path):
    (tmp_path / ".settings.json").write_text("{")
    with RunFolder(tmp_path, {"seed": "0"}):
        assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": "0"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b"\0" * 20])
def test_damaged_settings_are_said_and_leave_no_lock(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match="settings.json is damaged: .* Remove it to go on"):
        RunFolder(tmp_path, {"seed": "0"}).__enter__()
    assert (tmp_path / "settings.json").read_bytes() == content
    (tmp_path / "settings.json").unlink()
    with RunFolder(tmp_path, {"seed": "0"}):
        pass


def test_settings_that_cant_be_written_leave_no_lock(tmp_path):
    (tmp_path / ".settings.json").mkdir()  # in the way of the file
    folder = RunFolder(tmp_path, {"seed": "0"})
    with pytest.raises(OSError, match="can't be written"):
        folder.__enter__()
    assert not folder.lock.is_locked
    (tmp_path / ".settings.json").rmdir()
    with RunFolder(tmp_path, {"seed": "0"}):
        pass


def test_second_run_into_a_folder_is_refused_and_the_first_ends_well(tmp_path):
    first = start(runs.arguments(tmp_path / "run", **EPOCHS), moment=("after_step", 2, "SIGSTOP"))
    assert runs.finish(first).code == -19  # stopped, and holding the folder
    second = run(tmp_path / "run", **EPOCHS)
    assert one_error(second).endswith("/run is in use by another run: wait for it, or choose another.")
    runs.resume_stopped(first)
    assert runs.finish(first).code == 0
    other = run(tmp_path / "run", **{**EPOCHS, "learning_rate": 0.5})
    assert "learning_rate=0.01, not 0.5" in one_error(other)
    assert run(tmp_path / "run", **EPOCHS).code == 0


@needs_mounts
def test_full_disk_keeps_the_last_checkpoint_and_resumes_with_room(tmp_path, other_disk):
    assert other_disk("mount -t tmpfs -o size=300k tmpfs") == [0]
    full = run(tmp_path / "disk/run", **EPOCHS)
    assert "checkpoint-2 can't be written" in one_error(full)
    assert "checkpoint-1, is kept: make room and repeat the command to resume" in full.stderr
    other_disk("mount -o remount,size=64m")
    ended = run(tmp_path / "disk/run", **EPOCHS)
    assert "Passed over" in ended.stdout and "checkpoint-1." in ended.stdout, ended
    runs.shell(f"cp -r {tmp_path}/disk/run {tmp_path}/ended")
    assert run(tmp_path / "whole", **EPOCHS).code == 0
    weights, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ended", "whole"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@needs_mounts
@pytest.mark.parametrize("kilobytes", [16, 100])
def test_disk_too_small_for_any_checkpoint_is_one_error(tmp_path, other_disk, kilobytes):
    other_disk(f"mount -t tmpfs -o size={kilobytes}k tmpfs")
    assert "can't be written" in one_error(run(tmp_path / "disk/run", draws=kilobytes == 16, **EPOCHS))


@needs_mounts
def test_read_only_disk_is_one_error(tmp_path, other_disk):
    assert other_disk(f"mount --bind {tmp_path}/disk", "mount -o remount,ro,bind") == [0, 0]
    assert "disk/run can't be written (Read-only file system)" in one_error(run(tmp_path / "disk/run"))


def test_output_below_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run can't be written (Not a directory)" in one_error(run(tmp_path / "file/run"))
    assert "file can't be written (File exists)" in one_error(run(tmp_path / "file"))


def test_weights_of_a_killed_run_survive_another_kill_in_the_same_place(tmp_path):
    for _ in range(2):
        assert run(tmp_path / "run", ("before_marker", 2), **EPOCHS).code == -9
        assert last_complete(tmp_path / "run")[0].name == "checkpoint-1"
    shutil.rmtree(tmp_path / "run")


def one_error(ended):
    """The one line of a user's error."""
    assert ended.code == 1 and "Traceback" not in ended.stderr, ended
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and ended.stderr.strip().endswith(lines[0]), ended.stderr
    return lines[0]
