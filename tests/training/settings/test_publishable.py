"""What a record prints of the settings: no folder of the machine, and no password."""

import pytest

from hub_unets.training.settings.publishable import command_of, publishable, without_folders, without_password


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("data", "/home/ann/polyps/kvasir", "kvasir"),
        ("data", "/home/ann/my polyps/kvasir/", "kvasir"),
        ("data", "/home/ann/all.zip?part=1", "all.zip?part=1"),
        ("data", "~/polyps", "polyps"),
        ("data", "../../ann/polyps", "polyps"),
        ("data", "file:///home/ann/polyps", "polyps"),
        ("data", r"C:\Users\ann\polyps", "polyps"),
        ("data", "phantoms?count=20&size=64", "phantoms?count=20&size=64"),
        ("data", "owner/name", "owner/name"),
        ("data", "data/kvasir", "data/kvasir"),
        ("data", "https://host.example/a/b.zip", "https://host.example/a/b.zip"),
        ("output_dir", "runs/unet", "runs/unet"),
        ("start_from", "owner/name@main", "owner/name@main"),
        ("augmentation", "[{Affine: {scale: [0.5, 1/2]}}]", "[{Affine: {scale: [0.5, 1/2]}}]"),
        ("augmentation", "[{Overlay: {path: /home/ann/x.png}}]", "[{Overlay: {path: x.png}}]"),
        ("split", "80/10/10", "80/10/10"),
        ("learning_rate", "1e-3", "1e-3"),
    ],
)
def test_no_path_of_the_machine(name, text, expected):
    assert publishable({name: text}) == {name: expected}


@pytest.mark.parametrize("argv", [["--data=/home/ann/x"], ["--data", "/home/ann/x"], ["--data=~/x"]])
def test_a_command_is_written_from_what_was_parsed(argv):
    command = command_of("run", ["/home/ann/mine.yaml", *argv, "--model.depth=2", "--image_mean", "0.5", "0.5", "0.5"])
    assert command == ("accelerate launch training/run.py mine.yaml --data x --model.depth 2 --image_mean 0.5 0.5 0.5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:se:cr@et@db.example:5432/s", "postgresql://ann:***@db.example:5432/s"),
        ("postgresql://db/s?user=ann&password=secret&x=1", "postgresql://db/s?user=ann&password=***&x=1"),
        ("can't reach postgresql+psycopg://ann:secret@db/s now", "can't reach postgresql+psycopg://ann:***@db/s now"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_no_password(text, expected):
    assert without_password(text) == expected


def test_paths_in_a_sentence():
    assert without_folders("there is no file /home/ann/w.safetensors; give another") == (
        "there is no file w.safetensors; give another"
    )
