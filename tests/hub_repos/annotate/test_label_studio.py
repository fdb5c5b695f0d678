"""The backend's predictions; where label-studio-ml is installed, by its own app, and exported by its converter."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hub_unets.hub_repos.annotate import label_studio
from hub_unets.hub_repos.annotate.label_studio import POLYGON, Control, prediction, version_of
from hub_unets.hub_repos.annotate.regions import Annotator, has_hole, outline
from hub_unets.training.data.phantoms import phantom
from hub_unets.training.data.reading import read_labels
from hub_unets.training.data.sources import load_source
from hub_unets.training.errors import UserError

POLYGONS = '<PolygonLabels name="outline" toName="frame"><Label value="Polyp"/></PolygonLabels>'
BRUSHES = '<BrushLabels name="brush" toName="frame"><Label value="Lesion" predicted_values="polyp"/></BrushLabels>'


@pytest.fixture(scope="module")
def annotator(checkpoint):
    return Annotator(str(checkpoint))


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(phantom(7, 1, 80)[0])


class TestPredictions:
    """Without label-studio-ml, which can't be installed beside the newest NumPy and OpenCV."""

    CONTROLS = (Control(POLYGON, "outline", "frame", {"polyp": "Polyp"}),)

    def test_polygons_in_percent(self, annotator, picture):
        result, (regions, uncertainty) = prediction(annotator, picture, self.CONTROLS), annotator(picture)
        assert result["score"] == 1 - uncertainty and len(result["result"]) == len(regions) > 0
        for entry, region in zip(result["result"], regions, strict=True):
            points = np.array(entry["value"].pop("points"))
            np.testing.assert_allclose(points * picture.size / 100, outline(region))
            assert entry == {
                "from_name": "outline",
                "to_name": "frame",
                "type": "polygonlabels",
                "original_width": picture.width,
                "original_height": picture.height,
                "image_rotation": 0,
                "score": region.score,
                "value": {"closed": True, "polygonlabels": ["Polyp"]},
            }
        json.dumps(result)

    def test_labels_that_the_interface_lacks_are_left_out(self, three_class_checkpoint, picture):
        annotator = Annotator(str(three_class_checkpoint))
        regions, _ = annotator(picture)
        polyps = [region for region in regions if annotator.labels[region.label] == "polyp"]
        result = prediction(annotator, picture, self.CONTROLS)["result"]
        assert 0 < len(polyps) == len(result) < len(regions)

    def test_each_label_goes_where_the_interface_has_it(self, three_class_checkpoint, picture):
        annotator = Annotator(str(three_class_checkpoint))
        other = Control(POLYGON, "other", "frame", {"boundary": "Edge", "polyp": None})
        result = prediction(annotator, picture, (*self.CONTROLS, other))["result"]
        assert len(result) == len(annotator(picture)[0])
        assert {(entry["from_name"], *entry["value"]["polygonlabels"]) for entry in result} == {
            ("outline", "Polyp"),
            ("other", "Edge"),
        }

    def test_nothing_in_the_image(self, annotator):
        result = prediction(annotator, Image.new("RGB", (64, 64)), ())
        assert result["result"] == [] and 0 <= result["score"] <= 1

    def test_other_weights_are_another_version(self, annotator, checkpoint, three_class_checkpoint):
        version = version_of("you/run", annotator.model)
        assert version.startswith("run-") and version == version_of("you/run", Annotator(str(checkpoint)).model)
        assert version != version_of("you/run", Annotator(str(three_class_checkpoint)).model)

    def test_what_is_missing_is_named(self, checkpoint, monkeypatch):
        monkeypatch.setattr(label_studio.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="need label-studio-ml: pip install 'label-studio-ml @ git"):
            label_studio.main([str(checkpoint)])


class TestApp:
    @pytest.fixture
    def post(self, annotator, tmp_path, monkeypatch):
        """A function (path, fields) -> what label-studio-ml's app answers to a POST."""
        pytest.importorskip("label_studio_ml", reason="label-studio-ml needs an older NumPy and OpenCV")
        monkeypatch.setenv("MODEL_DIR", str(tmp_path))
        from label_studio_ml.api import init_app
        from label_studio_sdk._extensions.label_studio_tools.core.utils import io

        monkeypatch.setattr(io, "LOCAL_FILES_DOCUMENT_ROOT", str(tmp_path))
        client = init_app(label_studio.backend(annotator, "v")).test_client()
        return lambda path, **fields: client.post(path, json={"project": "1.2", **fields})

    @pytest.fixture
    def files(self, tmp_path):
        for index in range(3):
            Image.fromarray(phantom(7, index, 80)[0]).save(tmp_path / f"{index}.png")
        return [tmp_path / f"{index}.png" for index in range(3)]

    def tasks(self, files):
        return [
            {"id": 5 + number, "data": {"picture": f"/data/local-files/?d={path.name}"}}
            for number, path in enumerate(files)
        ]

    def config(self, *controls):
        return f'<View><Image name="frame" value="$picture"/>{"".join(controls)}</View>'

    def test_setup(self, post):
        assert post("/setup", schema=self.config(POLYGONS)).json == {"model_version": "v"}

    @pytest.mark.parametrize("controls", [(POLYGONS,), (BRUSHES,), (POLYGONS, BRUSHES)])
    def test_predict(self, post, files, annotator, controls):
        from label_studio_sdk.converter.brush import decode_rle

        answer = post("/predict", tasks=self.tasks(files), label_config=self.config(*controls))
        assert answer.status_code == 200, answer.text
        results, kinds = answer.json["results"], set()
        assert len(results) == 3 and [result["model_version"] for result in results] == ["v"] * 3
        for path, result in zip(files, results, strict=True):
            regions, uncertainty = annotator(Image.open(path))
            assert result["score"] == pytest.approx(1 - uncertainty)
            for entry, region in zip(result["result"], regions, strict=True):
                brushed = BRUSHES in controls and (len(controls) == 1 or has_hole(region))
                kinds.add(entry["type"])
                assert entry["type"] == ("brushlabels" if brushed else "polygonlabels")
                assert entry["value"][entry["type"]] == ["Lesion" if brushed else "Polyp"]
                if brushed:
                    shape = entry["original_height"], entry["original_width"], 4
                    pixels = decode_rle(entry["value"]["rle"]).reshape(shape)[..., 3] > 0
                    x, y, width, height = region.box
                    np.testing.assert_array_equal(pixels[y : y + height, x : x + width], region.mask)
                    assert pixels.sum() == region.mask.sum()
        assert len(kinds) == len(controls)

    @pytest.mark.parametrize("controls", [POLYGONS.replace("Polygon", "Rectangle"), POLYGONS.replace("Polyp", "Tool")])
    def test_an_interface_that_can_not_show_it(self, post, files, controls):
        answer = post("/predict", tasks=self.tasks(files), label_config=self.config(controls))
        assert answer.status_code == 500
        assert "needs a <PolygonLabels> or <BrushLabels> with one of the model's labels, polyp" in answer.text

    @pytest.mark.parametrize("controls", [POLYGONS, BRUSHES])
    def test_an_export_is_masks_to_train_on(self, post, files, annotator, tmp_path, monkeypatch, controls):
        from label_studio_sdk.converter import Converter

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        tasks, config = self.tasks(files), self.config(controls)
        results = post("/predict", tasks=tasks, label_config=config).json["results"]
        for task, result in zip(tasks, results, strict=True):
            entries = [{"id": str(number), **entry} for number, entry in enumerate(result["result"])]
            task["annotations"] = [{"id": task["id"], "completed_by": 1, "result": entries}]
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        converter = Converter(config, project_dir=str(tmp_path), download_resources=False)
        kind = "COCO" if controls == POLYGONS else "BRUSH_TO_COCO"
        converter.convert(str(tmp_path / "tasks.json"), str(tmp_path / "export"), kind, is_dir=False)
        (exported,) = (tmp_path / "export").rglob("*.json")
        rows = load_source(str(exported), str(tmp_path))["all"]  # where the images are
        assert len(rows) == 3
        for row, path in zip(rows, files, strict=True):
            regions, _ = annotator(Image.open(path))
            marked = read_labels(row["annotation"], row["name"]).sum()
            filled = sum(ndimage.binary_fill_holes(region.mask).sum() for region in regions)
            # the converter draws brushed masks through their pixels' centres, half a pixel too small
            assert marked == pytest.approx(filled, rel=0.02 if controls == POLYGONS else 0.12)
