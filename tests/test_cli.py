"""`hub-unets`: each sub-command has a help text, a misspelt one names the nearest, errors are one line."""

import subprocess
import sys

import pytest

from hub_unets.hub_repos import cli
from hub_unets.training.errors import UserError, about_input, run_command


def test_help_lists_every_command(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name:<12}" in output for name in cli.COMMANDS)
    assert {"train", "sweep", "evaluate", "check-data", "build", "push", "verify", "predict"} <= cli.COMMANDS.keys()
    assert {"browser", "demo", "bench", "report"} <= cli.COMMANDS.keys()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        cli.main([name, "--help"])
    output = capsys.readouterr().out
    assert output.startswith("usage: ") and len(output.splitlines()) > 3
    assert f"hub-unets {name}" in output or name in ("train", "check-data", "sweep")


@pytest.mark.parametrize(("typed", "command"), [("trian", "train"), ("verfy", "verify"), ("check_data", "check-data")])
def test_a_misspelt_command_names_the_nearest(typed, command):
    with pytest.raises(UserError, match=rf"has no command '{typed}'; did you mean {command}\? There are check-data, "):
        cli.main([typed])


def test_check_data_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["check-data", "unet_phantoms", "--data", "phantoms?count=10&size=64", "--split", "own"])
    assert ", of them bad: 0" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_installed_script_prints_an_error_in_one_line(tmp_path):
    command = [sys.executable, "-m", "hub_unets.hub_repos.cli", "build", "nowhere", "out"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert (
        process.stderr == "error: nowhere is not a finished run: config.json is missing; train with training/run.py.\n"
    )


def failing(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"), [(UserError("a\n  reason"), "0"), (OSError("a reason"), "error: process 1: a reason")]
)
def test_only_the_first_process_prints_a_users_error(error, message, monkeypatch):
    """A system error may occur in one process only, so that process prints it."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit, match="^error: a reason$"):
        run_command(failing(error))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match=f"^{message}$"):
        run_command(failing(error))


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ValueError, match="^of torch$"):
        run_command(failing(ValueError("of torch")))


def test_a_librarys_error_about_input_becomes_a_users_error():
    with pytest.raises(UserError, match="^no such field$") as raised, about_input():
        raise ValueError("no such field")
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(TypeError), about_input():
        raise TypeError("a bug")


def test_the_exit_code_is_what_main_returns():
    with pytest.raises(SystemExit, match="^1$"):
        run_command(lambda argv: int(argv[0]), ["1"])
