"""The page with the network in int8."""

import shutil

import pytest
from PIL import Image

from hub_unets.hub_repos.browser import main
from hub_unets.hub_repos.repository.int8 import INT8, export_int8
from hub_unets.training.data.phantoms import phantom
from tests.hub_repos.test_browser import dice, hollow_runtime, open_page, picture, runtime  # noqa: F401


def test_the_repositorys_int8_is_taken_where_asked_for(repository, hollow_runtime, tmp_path):  # noqa: F811
    folder = shutil.copytree(repository, tmp_path / "repository")
    arguments = [str(folder), str(tmp_path / "page"), "--runtime", str(hollow_runtime), "--int8"]
    with pytest.raises(ValueError, match=f"has no {INT8}: `hub-unets quantise RUN DATA` writes it"):
        main(arguments)
    (folder / INT8).write_bytes(b"small")
    (folder / "model.onnx").write_bytes(b"large")
    main(arguments)
    assert (tmp_path / "page" / "model.onnx").read_bytes() == b"small"


@pytest.mark.long
def test_the_page_runs_int8(open_page, repository, picture, tmp_path):  # noqa: F811
    folder = shutil.copytree(repository, tmp_path / "repository")
    (folder / INT8).write_bytes(export_int8(folder, [Image.fromarray(phantom(1, 0, 64)[0])]))
    page = open_page(folder, int8=True)
    page.show(picture)
    mask, _ = page.expected(picture)
    assert 0.9 < dice(page.mask(picture.stem) == 255, mask == 1) < 1
