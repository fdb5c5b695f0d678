"""Quiet and offline settings, one thread, and the real data set where it is present."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def fresh():
    """Each test starts with the same seed, and logs errors: a Trainer sets the log level of the whole process."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def kvasir():
    """The folder of Kvasir-SEG, or the test is skipped."""
    folder = Path(os.environ.get("KVASIR_SEG") or Path(__file__).parents[2] / "shared" / "kvasir-seg")
    if not (folder / "images").is_dir():
        pytest.skip("Kvasir-SEG not found; set KVASIR_SEG to its folder")
    return folder
