"""What a mask means is decided once: class indices, black and white, or an error that says why neither."""

import hashlib
import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from hub_unets.training.data.reading import (
    check_boundary_width,
    file_digest,
    read_image,
    read_labels,
    read_pair,
    with_boundary,
)
from hub_unets.training.errors import UserError

SHAPE = 24, 32


def stored(image: Image.Image, suffix="PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def mask_of(*values, mode="L", dtype=np.uint8) -> Image.Image:
    """A mask whose columns hold `values` in turn, one block each."""
    row = np.repeat(np.array(values, dtype), -(-SHAPE[1] // len(values)))[: SHAPE[1]]
    image = Image.fromarray(np.tile(row, (SHAPE[0], 1)))
    return image if image.mode == mode else image.convert(mode)


def palette_of(*values, colours=((0, 0, 0), (200, 0, 0), (0, 200, 0)), **transparency) -> Image.Image:
    """Indices in columns as `mask_of`; the palette's last entry, 255, is white."""
    image = mask_of(*values)
    indexed = Image.frombytes("P", image.size, image.tobytes())
    palette = np.arange(256).repeat(3).reshape(256, 3)[::-1].copy()
    palette[: len(colours)], palette[255] = colours, 255
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    indexed.info.update(transparency)
    return indexed


def with_opacity(grey, opacity) -> Image.Image:
    """LA, in columns as `mask_of`."""
    return Image.merge("LA", [mask_of(*grey), mask_of(*opacity)])


BLACK, WHITE, YELLOW, RED = (0, 0, 0), (255, 255, 255), (255, 255, 0), (200, 0, 0)


class TestImages:
    def test_path_and_bytes_give_the_same_rgb(self, tmp_path):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), np.uint8))
        image.save(tmp_path / "a.png")
        for value in {"bytes": None, "path": str(tmp_path / "a.png")}, stored(image), stored(image.convert("RGBA")):
            read = read_image(value, "a")
            assert read.mode == "RGB" and np.array_equal(read, image)

    def test_upright(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        image = mask_of(0, 255, mode="RGB")
        assert read_image(stored(image, "JPEG", exif=exif), "a").size == (24, 32)
        labels = read_labels(stored(image, "JPEG", exif=exif), "a")
        assert labels.shape == (32, 24)
        assert not labels[:15].any() and labels[17:].all()

    def test_truncated(self, tmp_path):
        content = stored(Image.effect_noise((64, 64), 50), "JPEG")["bytes"]
        (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"a \(.*a.jpg\): not a readable image \(.*truncated.*\): replace"):
            read_image({"bytes": None, "path": str(tmp_path / "a.jpg")}, "a")

    def test_text_called_jpg(self, tmp_path):
        (tmp_path / "a.jpg").write_text("not an image")
        with pytest.raises(ValueError, match=r"a.jpg\): not a readable image \(of no known format"):
            read_image({"bytes": None, "path": str(tmp_path / "a.jpg")}, "a")

    def test_file_gone(self, tmp_path):
        with pytest.raises(ValueError, match=r"a.jpg\): not a readable image .*No such file"):
            read_image({"bytes": None, "path": str(tmp_path / "a.jpg")}, "a")

    @pytest.mark.parametrize("limit", [500, 300])  # 768 pixels: above the limit Pillow warns, above twice it raises
    def test_bomb(self, monkeypatch, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"^a: too large an image .*the limit is {limit} pixels: make it smaller"):
            read_image(stored(mask_of(0)), "a")

    def test_bomb_as_shipped(self):
        image = stored(Image.new("1", (14000, 14000)))
        with pytest.raises(ValueError, match="too large an image"):
            read_image(image, "a")


class TestTwoLabels:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (mask_of(0, 255), {0, 1}),
            (mask_of(255), {1}),
            (mask_of(0), {0}),
            (mask_of(0, 1), {0, 1}),
            (mask_of(1), {1}),
            (mask_of(0, 1, 255), {0, 1, 255}),
            (mask_of(0, 60, 128, 255), {0, 1}),
            (mask_of(0, 255, mode="1"), {0, 1}),
            (mask_of(0, 255, mode="RGB"), {0, 1}),
            (mask_of(0, 255, mode="RGBA"), {0, 1}),
            (mask_of(0, 255, mode="LA"), {0, 1}),
            (mask_of(0, 3, 250, mode="RGB"), {0, 1}),
            (palette_of(0, 1), {0, 1}),
            (palette_of(0, 255), {0, 1}),
            (mask_of(0, 1, mode="RGB"), {0, 1}),
            (mask_of(0, 1, dtype=np.uint16, mode="I;16"), {0, 1}),
        ],
    )
    def test_lossless(self, image, expected):
        labels = read_labels(stored(image), "a")
        assert labels.dtype == np.uint8 and labels.shape == SHAPE
        assert set(np.unique(labels)) == expected

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_lossy_is_cut_at_127(self, mode):
        labels = read_labels(stored(mask_of(0, 127, 128, 255, mode=mode), "JPEG", quality=100), "a")
        assert [labels[5, column] for column in (3, 11, 20, 28)] == [0, 0, 1, 1]

    @pytest.mark.parametrize("suffix", ["JPEG", "AVIF", "JPEG2000"])
    @pytest.mark.parametrize("quality", [5, 75, 100])
    def test_lossy_and_plain_black_is_empty(self, suffix, quality):
        options = {} if suffix == "JPEG2000" else {"quality": quality}
        assert not read_labels(stored(mask_of(0, mode="RGB"), suffix, **options), "a").any()

    @pytest.mark.parametrize("values", [(0, 1), (0, 2, 1), (0, 8, 16, 4)])
    @pytest.mark.parametrize("num_labels", [2, 3, 20])
    @pytest.mark.parametrize("suffix", ["JPEG", "WEBP"])
    def test_class_indices_in_a_lossy_format(self, suffix, values, num_labels):
        with pytest.raises(ValueError, match="^a: all but black, found 0, .*do not survive a lossy format: export"):
            read_labels(stored(mask_of(*values), suffix, quality=100), "a", num_labels)

    def test_class_indices_in_a_lossy_tiff(self):
        with pytest.raises(ValueError, match="do not survive a lossy format"):
            read_labels(stored(mask_of(0, 9), "TIFF", compression="jpeg"), "a", 10)

    @pytest.mark.parametrize("values", [(0, 2), (0, 1, 2), (0, 127), (5,), (0, 2, 255), (0, 1, 2, 3, 255)])
    def test_out_of_range(self, values):
        listed = ", ".join(map(str, values))
        with pytest.raises(ValueError, match=rf"^a: labels out of range: found {listed}; .*0..1 .*raise num_labels"):
            read_labels(stored(mask_of(*values)), "a")

    def test_lossy_out_of_range(self):
        with pytest.raises(ValueError, match="labels out of range: found 0, .*100"):
            read_labels(stored(mask_of(0, 100), "JPEG", quality=100), "a")

    @pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
    def test_class_indices_in_another_channel(self, suffix):
        empty, indices = mask_of(0), mask_of(0, 9)
        image = Image.merge("RGB", [empty, empty, indices])
        with pytest.raises(ValueError, match="labels out of range: found 0, 9|do not survive a lossy format"):
            read_labels(stored(image, suffix), "a", 3)

    def test_class_indices_in_three_channels_are_those_of_one(self):
        with pytest.raises(ValueError, match="labels out of range: found 0, 3; a mask holds class indices 0..1"):
            read_labels(stored(mask_of(0, 3, mode="RGB")), "a")
        assert set(np.unique(read_labels(stored(mask_of(0, 3, mode="RGB")), "a", 4))) == {0, 3}

    @pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (-np.inf, "-inf"), (-1, "-1.0")])
    def test_what_is_no_number_from_zero(self, value, text):
        values = np.zeros(SHAPE, np.float32)
        values[3, 4], values[5:9] = value, 1
        with pytest.raises(ValueError, match=f"^a: a mask with the value {text}: write class indices"):
            read_labels(stored(Image.fromarray(values), "TIFF"), "a")

    def test_several_pictures(self):
        pages = stored(mask_of(0, 255), "TIFF", save_all=True, append_images=[mask_of(255, 0)])
        with pytest.raises(ValueError, match="^a: a mask of 2 pictures: join them into one"):
            read_labels(pages, "a")

    def test_more_than_eight_bits(self):
        with pytest.raises(ValueError, match="labels out of range: found 0, 65535"):
            read_labels(stored(mask_of(0, 65535, dtype=np.uint16, mode="I;16")), "a")

    def test_colours(self):
        with pytest.raises(ValueError, match="^a: a mask in colours: .*save it as class indices"):
            read_labels(stored(Image.new("RGB", (32, 24), (255, 0, 0))), "a")

    def test_unreadable(self):
        with pytest.raises(ValueError, match="^a: not a readable image"):
            read_labels({"bytes": b"x", "path": None}, "a")

    @pytest.mark.parametrize("read", [read_labels, read_image])
    def test_an_eps_file_is_not_run(self, read, monkeypatch):
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: pytest.fail("it was run"))
        content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\n"
        with pytest.raises(ValueError, match="a: not a readable image"):
            read({"bytes": content, "path": None}, "a")

    def test_a_kind_of_file_that_holds_images_alone(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
        with pytest.raises(ValueError, match="a mask is a picture, or a .npy file of class indices"):
            read_labels({"bytes": None, "path": str(tmp_path / "a.dcm")}, "a")


class TestMoreLabels:
    @pytest.mark.parametrize("values", [(0, 1, 2), (0, 2), (2, 255), (1,)])
    def test_class_indices(self, values):
        for image in mask_of(*values), palette_of(*values):
            assert set(np.unique(read_labels(stored(image), "a", 3))) == set(values)

    def test_black_and_white_is_class_one(self):
        assert set(np.unique(read_labels(stored(mask_of(0, 255)), "a", 3))) == {0, 1}
        assert set(np.unique(read_labels(stored(mask_of(0, 255), "JPEG"), "a", 3))) == {0, 1}
        assert set(np.unique(read_labels(stored(mask_of(0)), "a", 3))) == {0}

    @pytest.mark.parametrize("values", [(0, 3), (0, 1, 2, 200), (0, 3, 255)])
    def test_out_of_range(self, values):
        with pytest.raises(ValueError, match=r"labels out of range: .*class indices 0..2"):
            read_labels(stored(mask_of(*values)), "a", 3)


class TestPalettes:
    """What counts is what a viewer shows, whatever the order of the entries."""

    @pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "GIF"])
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (palette_of(0, 1, colours=(WHITE, BLACK)), (1, 0)),
            (palette_of(0, 1, colours=(BLACK, WHITE)), (0, 1)),
            (palette_of(1, 2, colours=(RED, BLACK, WHITE)), (0, 1)),
            (palette_of(0, 2, colours=(BLACK, RED, WHITE)), (0, 1)),
            (palette_of(0, 255, colours=(WHITE, RED)), (1, 1)),
            (palette_of(0, 1, colours=((250, 255, 251), (9, 0, 0))), (1, 0)),
            (palette_of(0, 1, colours=(BLACK, RED)), (0, 1)),
            (palette_of(0, 1, colours=(BLACK, BLACK[:2] + (60,))), (0, 1)),
            (palette_of(0, 1, colours=((1, 1, 1), (0, 0, 0))), (1, 0)),
        ],
    )
    def test_two_labels(self, suffix, image, expected):
        labels = read_labels(stored(image, suffix), "a")
        assert (labels[0, 0], labels[0, -1]) == expected

    def test_more_labels(self):
        greys = (BLACK, (128,) * 3, WHITE)
        assert read_labels(stored(palette_of(0, 1, 2)), "a", 3)[0, ::12].tolist() == [0, 1, 2]
        assert read_labels(stored(palette_of(0, 1, 2, colours=greys)), "a", 3)[0, ::12].tolist() == [0, 1, 2]
        assert read_labels(stored(palette_of(0, 1, 2, colours=greys)), "a", 2)[0, ::12].tolist() == [0, 1, 1]

    @pytest.mark.parametrize(
        "image",
        [
            palette_of(0, 1, colours=(YELLOW, BLACK)),
            palette_of(0, 1, colours=(WHITE, RED)),
            palette_of(0, 1, 2, colours=(BLACK, RED, RED)),
            palette_of(0, 1, colours=(RED, BLACK), transparency=1),
        ],
    )
    def test_unclear(self, image):
        with pytest.raises(ValueError, match="^a: a palette whose entry 0 is not black, .*save the class indices"):
            read_labels(stored(image), "a", 3)

    def test_alike_and_dark(self):
        with pytest.raises(ValueError, match="labels out of range: found 0, 4"):
            read_labels(stored(palette_of(0, 1, colours=(BLACK, (4, 4, 4)))), "a")


class TestTransparency:
    """What is transparent is background, unless the colours say something else."""

    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (with_opacity((255, 255), (0, 255)), (0, 1)),
            (with_opacity((0, 255), (0, 255)), (0, 1)),
            (with_opacity((0, 255), (255, 254)), (0, 1)),
            (with_opacity((0, 0), (0, 0)), (0, 0)),
            (with_opacity((0, 1), (255, 255)), (0, 1)),
            (mask_of(0, 255, mode="RGBA"), (0, 1)),
            (palette_of(0, 1, colours=(WHITE, WHITE), transparency=0), (0, 1)),
            (palette_of(0, 1, colours=(YELLOW, RED), transparency=0), (0, 1)),
            (palette_of(0, 1, colours=(WHITE, RED), transparency=1), (1, 0)),
        ],
    )
    def test_shapes(self, image, expected):
        labels = read_labels(stored(image), "a")
        assert (labels[0, 0], labels[0, -1]) == expected

    @pytest.mark.parametrize(
        "image",
        [
            with_opacity((0, 0), (0, 255)),
            with_opacity((255, 0), (0, 255)),
            with_opacity((0, 255), (0, 0)),
            palette_of(0, 1, colours=(WHITE, BLACK), transparency=0),
        ],
    )
    def test_at_odds_with_the_colours(self, image):
        with pytest.raises(ValueError, match="^a: a mask whose transparency and colours disagree .*: flatten it"):
            read_labels(stored(image), "a")


def test_damaged_exif_is_upright():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    content = stored(mask_of(0, 255, mode="RGB"), "JPEG", exif=exif)["bytes"]
    offset = content.index(b"MM\x00*") + 8
    for damaged in (content[:offset] + b"\xff" * 30 + content[offset + 30 :], content.replace(b"MM\x00*", b"XX\x00*")):
        value = {"bytes": damaged, "path": None}
        assert read_image(value, "a").size == (32, 24)
        assert read_labels(value, "a")[0, ::31].tolist() == [0, 1]


def test_an_image_with_negative_values_is_named():
    with pytest.raises(UserError, match="^a: Pixels must lie in"):
        read_image(stored(Image.fromarray(np.full(SHAPE, -1, np.float32)), "TIFF"), "a")


def square(size=11):
    """7 x 7 pixels of polyp inside a background of 11 x 11."""
    labels = np.zeros((size, size), np.uint8)
    labels[2:9, 2:9] = 1
    return labels


class TestBoundary:
    @pytest.mark.parametrize(("width", "inside"), [(1, np.s_[3:8, 3:8]), (2, np.s_[4:7, 4:7]), (9, np.s_[:0, :0])])
    def test_of_a_square(self, width, inside):
        expected = 2 * square()
        expected[inside] = 1
        labels = with_boundary(square(), width, "a")
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)

    @pytest.mark.parametrize(("width", "label"), [(1, 1), (2, 2)])
    def test_the_distance_is_euclidean(self, width, label):
        labels = np.ones((9, 9), np.uint8)
        labels[:4, :4] = 0
        assert with_boundary(labels, width, "a")[4, 4] == label  # the corner pixel is 1.41 from background

    def test_the_border_of_the_image_is_no_background(self):
        labels = square()[2:9]  # the polyp touches both borders
        expected = labels.copy()
        expected[:, [2, 8]] = 2
        assert np.array_equal(with_boundary(labels, 1, "a"), expected)

    def test_ignored_pixels_are_no_background_and_stay(self):
        labels = square()
        labels[:, :2] = 255
        expected = labels.copy()
        expected[2:9, 8] = expected[[2, 8], 2:9] = 2
        assert np.array_equal(with_boundary(labels, 1, "a"), expected)

    @pytest.mark.parametrize("label", [0, 1])
    def test_nothing_but_background_or_polyp(self, label):
        labels = np.full((5, 5), label, np.uint8)
        assert np.array_equal(with_boundary(labels, 2, "a"), labels)

    @pytest.mark.parametrize(
        "image", [mask_of(0, 255), mask_of(0, 1), mask_of(0, 255, mode="RGB"), palette_of(0, 255)]
    )
    def test_of_any_two_labels(self, image):
        labels = read_labels(stored(image), "a", 3, boundary_width=2)
        assert labels[0].tolist() == [0] * 16 + [2] * 2 + [1] * 14
        row = {"name": "a", "image": stored(image), "annotation": stored(image)}
        assert np.array_equal(read_pair(row, 3, boundary_width=2)[1], labels)

    def test_a_mask_of_three_labels_is_named(self, tmp_path):
        mask_of(0, 1, 2).save(tmp_path / "a.png")
        value = {"bytes": None, "path": str(tmp_path / "a.png")}
        with pytest.raises(
            ValueError, match=r"^a \(.*a.png\): boundary_width=3 .* label 2 already: leave boundary_width"
        ):
            read_labels(value, "a", 3, boundary_width=3)

    @pytest.mark.parametrize(
        ("width", "num_labels", "message"),
        [
            (3, 2, "boundary_width=3 needs three labels .*, got num_labels=2: set num_labels to 3"),
            (3, 4, "got num_labels=4"),
            (0, 3, "boundary_width must be at least 1 pixel, got 0"),
        ],
    )
    def test_refused(self, width, num_labels, message):
        with pytest.raises(ValueError, match=message):
            check_boundary_width(width, num_labels)

    @pytest.mark.parametrize(("width", "num_labels"), [(1, 3), (None, 2), (None, 5)])
    def test_not_refused(self, width, num_labels):
        check_boundary_width(width, num_labels)


def test_one_label_is_refused():
    with pytest.raises(ValueError, match="num_labels must be 2 or more, got 1"):
        read_labels(stored(mask_of(0, 255)), "a", 1)


def test_pair():
    row = {"name": "a", "image": stored(mask_of(9, mode="RGB"), "JPEG"), "annotation": stored(mask_of(0, 255))}
    image, labels = read_pair(row, 2)
    assert image.size == (32, 24) and labels.shape == (24, 32)


def test_pair_of_two_sizes():
    row = {"name": "a", "image": stored(mask_of(9)), "annotation": stored(mask_of(0, 255).resize((16, 12)))}
    with pytest.raises(ValueError, match="^a: the image is 32 x 24 pixels, its mask 16 x 12 .*resize it with nearest"):
        read_pair(row, 2)


def test_digest_is_of_the_stored_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"frame")
    expected = hashlib.sha256(b"frame").hexdigest()
    assert file_digest({"bytes": b"frame", "path": "elsewhere.jpg"}) == expected
    assert file_digest({"bytes": None, "path": str(tmp_path / "a.jpg")}) == expected
