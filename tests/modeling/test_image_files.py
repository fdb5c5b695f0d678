"""Files of each kind, written by the libraries that write them, and the values that they held."""

import io
import sys
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from hub_unets.modeling.image_files import read_values

WORDS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000  # 0 to 55000: no 8 bits hold them
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
FIVE = np.arange(60, dtype=np.uint16).reshape(3, 4, 5) * 1000


def saved(image, name, **options):
    file = io.BytesIO()
    image.save(file, format=name, **options)
    return file.getvalue()


def as_tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def as_npy(array, save=np.save):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


def as_dicom(pixels, syntax=ExplicitVRLittleEndian, **fields):
    """A file of uint16 H x W, or frames x H x W, with these fields beside those that every file has."""
    frames = len(pixels) if pixels.ndim == 3 else 1
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[-2:], 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", pixels.astype("<u2").tobytes()
    if frames > 1:
        data.NumberOfFrames = frames
    for name, value in fields.items():
        setattr(data, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(Image.fromarray(WORDS), "PNG"), WORDS),
        (saved(Image.fromarray(WORDS), "TIFF"), WORDS),
        (saved(Image.fromarray(WORDS), "PPM"), WORDS),
        (saved(Image.fromarray(WORDS.astype(np.float32) / 7), "TIFF"), WORDS.astype(np.float32) / 7),
        (saved(Image.fromarray((WORDS // 250).astype(np.uint8)), "BMP"), WORDS // 250),
        (saved(Image.fromarray(WORDS > 9999), "PNG"), WORDS > 9999),
        (as_tiff(WORDS.astype(np.float64) / 7), WORDS / 7),
        (as_tiff(WORDS.astype(">u2"), byteorder=">"), WORDS),
        (as_npy(WORDS), WORDS),
        (as_npy(WORDS[..., None].astype(np.int32) - 30000), WORDS.astype(int) - 30000),
        (as_npy(WORDS / 3, np.savez), WORDS / 3),
        (as_npy(WORDS / 3, np.savez_compressed), WORDS / 3),
        (as_dicom(WORDS % 4096), WORDS % 4096),
    ],
)
def test_one_channel_keeps_its_values(content, expected):
    pixels = read_values(content, 1).pixels
    assert pixels.shape == (3, 4, 1)
    np.testing.assert_array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize(
    "content",
    [
        as_tiff(FIVE, **BANDS),
        as_tiff(np.moveaxis(FIVE, -1, 0), photometric="minisblack", planarconfig="separate"),
        as_tiff(np.moveaxis(FIVE, -1, 0), photometric="minisblack"),  # pages
        as_tiff(np.moveaxis(FIVE, -1, 0), photometric="minisblack", metadata=None),  # pages that nothing joins
        as_tiff(
            FIVE, photometric="rgb", planarconfig="contig", extrasamples=(0, 0)
        ),  # Pillow would leave two of them out
        saved(
            Image.fromarray(FIVE[..., 0]),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(FIVE[..., channel]) for channel in range(1, 5)],
        ),
        as_npy(FIVE),
        as_npy(np.moveaxis(FIVE, -1, 0)),
        as_dicom(np.moveaxis(FIVE % 4096, -1, 0)),
    ],
    ids=["contig", "planes", "pages", "loose pages", "spare samples", "Pillow's pages", "npy", "npy planes", "DICOM"],
)
def test_five_channels_keep_their_order_and_values(content):
    expected = FIVE % 4096 if content[128:132] == b"DICM" else FIVE
    np.testing.assert_array_equal(read_values(content, 5).pixels, expected)


def test_colours_of_16_bits_are_not_cut_to_8(tmp_path):
    three = FIVE[..., :3] + np.uint16(3)
    np.testing.assert_array_equal(read_values(as_tiff(three, photometric="rgb"), 3).pixels, three)
    planes = as_tiff(np.moveaxis(three, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_values(planes, 3).pixels, three)
    path = tmp_path / "colours.png"
    path.write_bytes(png_of_16_bits(three, 2))
    values = read_values(path, 3)
    np.testing.assert_array_equal(values.pixels, three)
    assert values.full_range == (0, 65535)
    pnm = b"P6 4 3 65535\n" + three.astype(">u2").tobytes()
    jpeg2000 = bytearray(saved(Image.new("RGB", (40, 30)), "JPEG2000"))
    assert read_values(jpeg2000, 3).full_range == (0, 255)
    start = jpeg2000.find(b"\xff\x4f\xff\x51")
    for channel in range(3):
        jpeg2000[start + 42 + 3 * channel] = 15  # bits less one
    for content in (pnm, jpeg2000):
        with pytest.raises(ValueError, match="colours of 16 bits are read from PNG, TIFF and NumPy files"):
            read_values(content, 3)
    with pytest.raises(ValueError, match="grey of 16 bits with opacity is not read: save it without opacity"):
        read_values(png_of_16_bits(three[..., :2], 4), 1)
    with pytest.raises(ValueError, match="changes its values .* give the file itself"):
        read_values(Image.open(path), 3)


def png_of_16_bits(pixels, kind):
    """A PNG of a kind that Pillow can't write: 2 is colours, 4 grey with opacity."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, kind, 0, 0, 0])
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint16", "uint32", "float32"])
def test_a_tiff_s_numbers_keep_sign_and_range(kind, photometric):
    is_float, size = kind == "float32", np.dtype(kind).itemsize
    limits = np.finfo(kind) if is_float else np.iinfo(kind)
    pixels = np.array([[limits.min, limits.max, 100]], kind)
    values = read_values(as_tiff(pixels, photometric=photometric), 1)
    np.testing.assert_array_equal(values.pixels[..., 0], pixels)
    assert values.full_range == ((limits.min, limits.max) if size < 4 else None)
    assert values.is_inverted == (photometric == "miniswhite")


def test_an_array_s_channels_lie_where_their_number_says_or_the_caller():
    square = np.arange(50.0).reshape(5, 2, 5)
    np.testing.assert_array_equal(read_values(square, 5).pixels, square)
    np.testing.assert_array_equal(read_values(square, 5, "channels_first").pixels, np.moveaxis(square, 0, -1))
    tensor = torch.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_values(tensor, 2).pixels, tensor.permute(1, 2, 0))
    assert read_values(np.ones((1, 4, 6)), 3).pixels.shape == (4, 6, 3)
    assert read_values(np.ones((3, 4, 6)), 3).pixels.shape == (4, 6, 3)


def test_grey_colours_and_opacity_fit_where_nothing_is_lost():
    grey = Image.fromarray((WORDS // 250).astype(np.uint8))
    np.testing.assert_array_equal(read_values(grey.convert("RGB"), 1).pixels[..., 0], grey)
    np.testing.assert_array_equal(read_values(grey.convert("LA"), 1).pixels[..., 0], grey)
    np.testing.assert_array_equal(read_values(grey.convert("P"), 1).pixels[..., 0], grey)
    assert read_values(grey.convert("LA"), 2).pixels.shape == (3, 4, 2)
    assert read_values(grey.convert("RGBA"), 4).pixels.shape == (3, 4, 4)
    assert read_values(grey.convert("RGBA"), 3).pixels.shape == (3, 4, 3)
    np.testing.assert_array_equal(read_values(Image.fromarray(WORDS), 3).pixels[..., 2], WORDS)
    with pytest.raises(ValueError, match="3 channels, the network takes 1 .* in colours: make it grey first"):
        read_values(np.dstack([grey, grey, WORDS // 300]), 1)


def test_exif_turns_an_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(WORDS), "PNG", exif=exif)
    np.testing.assert_array_equal(read_values(content, 1).pixels[..., 0], np.rot90(WORDS, -1))


@pytest.mark.parametrize(
    ("content", "num_channels", "message"),
    [
        (as_npy(FIVE), 1, r"an array|5 channels, the network takes 1"),
        (as_tiff(np.moveaxis(FIVE, -1, 0), photometric="minisblack"), 4, "5 pages, .* 4 channels .* one of its pages"),
        (as_dicom(np.moveaxis(FIVE, -1, 0)), 1, "5 frames, the network takes 1 .* one of its frames at a time"),
        (as_npy(np.array([None])), 1, "an image holds numbers, this array object"),
        (as_npy(np.array(["a"])), 1, "an image holds numbers"),
        (as_npy(np.ones((2, 2, 2, 2))), 2, "H x W x C"),
        (b"\x93NUMPY\x01\x00", 1, "EOF"),
        (as_npy(WORDS)[:-4], 1, "replace it|array"),
        (b"plain text", 1, "not a file of a known kind"),
        (b"II*\0 and nothing", 1, "replace it"),
        (as_dicom(WORDS, PhotometricInterpretation="PALETTE COLOR"), 1, "a palette"),
        (as_dicom(WORDS)[:-8], 1, "less than expected"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_what_to_do(content, num_channels, message):
    with pytest.raises(ValueError, match=message):
        read_values(content, num_channels)


def test_an_error_names_the_path_and_several_arrays(tmp_path):
    np.savez(tmp_path / "two.npz", a=WORDS, b=WORDS)
    with pytest.raises(ValueError, match=r"two.npz: a .npz file must hold one array, .* 2: a, b"):
        read_values(tmp_path / "two.npz", 1)


def test_a_header_that_claims_too_much_is_refused_before_it_is_read():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(ValueError, match="more than 536,870,912"):
        read_values(header.getvalue(), 1)


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.new("I;16", (300, 200)), "PNG")[:60],
        png_of_16_bits(np.zeros((200, 300, 3)), 2)[:60],
        as_tiff(np.zeros((200, 300, 3), np.uint16), photometric="rgb", compression="zlib")[:-20],
        as_npy(np.zeros((200, 300)))[:200],
        as_npy(np.zeros((200, 300)), np.savez_compressed),
        as_dicom(np.zeros((200, 300)))[:-100],
        saved(Image.new("L", (170, 170)), "PNG"),  # 28,900 values, as three channels 86,700
    ],
    ids=["PNG", "colours", "TIFF", "npy", "npz", "DICOM", "grey for three"],
)
def test_a_file_of_more_values_than_asked_for_is_refused_before_it_is_decoded(content):
    with pytest.raises(ValueError, match="values, more than 59,999: make it smaller"):
        read_values(content, 3, most=59_999)


def test_a_deflated_dicom_file_is_not_unpacked_beyond_its_bound():
    content = as_dicom(np.zeros((3000, 3000)), DeflatedExplicitVRLittleEndian)
    assert len(content) < 100_000 and read_values(content, 1).pixels.shape == (3000, 3000, 1)
    with pytest.raises(ValueError, match="a deflated DICOM file of more than 10,000 values: make it smaller"):
        read_values(content, 1, most=10_000)


def test_a_tiff_s_strips_are_not_unpacked_beyond_their_pixels():
    pixels = np.arange(6000, dtype=np.uint16).reshape(30, 40, 5)
    options = {**BANDS, "compression": "zlib", "rowsperstrip": 30, "shape": pixels.shape, "dtype": pixels.dtype}
    for spare in (0, 100):
        content = as_tiff(iter([zlib.compress(pixels.tobytes() + bytes(spare))]), **options)
        np.testing.assert_array_equal(read_values(content, 5).pixels, pixels)
    with pytest.raises(ValueError, match="strips or tiles hold more than their pixels: save it again"):
        read_values(as_tiff(iter([zlib.compress(bytes(1_000_000))]), **options), 5)


def test_an_npz_unpacks_to_what_its_header_says_at_most():
    header, claim = io.BytesIO(), {"descr": "|V1000000", "fortran_order": False, "shape": (1, 1)}
    np.lib.format.write_array_header_1_0(header, claim)
    for method, message in ((zipfile.ZIP_DEFLATED, "holds numbers"), (zipfile.ZIP_LZMA, "as NumPy's savez")):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("a.npy", header.getvalue() + bytes(1000))
        with pytest.raises(ValueError, match=message):
            read_values(file.getvalue(), 1)


def test_dicom_takes_slope_and_intercept_range_and_window():
    plain = read_values(as_dicom(WORDS % 4096), 1)
    assert (plain.full_range, plain.window, plain.is_inverted) == ((0, 4095), None, False)
    values = read_values(
        as_dicom(np.full((1, 2), 1024), RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=40, WindowWidth=400), 1
    )
    assert values.pixels.ravel().tolist() == [1048, 1048]
    assert values.full_range == (-1000, 7190)
    assert values.window == (-160, 239)  # 40 - .5 -+ 399 / 2: PS3.3 C.11.2.1.2.1
    exact = read_values(as_dicom(WORDS, WindowCenter=[50, 1], WindowWidth=[20, 1], VOILUTFunction="LINEAR_EXACT"), 1)
    assert exact.window == (40, 60)
    assert read_values(as_dicom(WORDS, PhotometricInterpretation="MONOCHROME1"), 1).is_inverted
    with pytest.raises(ValueError, match="kind SIGMOID: set intensity"):
        read_values(as_dicom(WORDS, WindowCenter=50, WindowWidth=20, VOILUTFunction="SIGMOID"), 1)


def test_dicom_of_several_frames_says_them_of_all_or_of_each():
    def groups(slopes):
        steps = []
        for slope in slopes:
            values, window, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            values.RescaleSlope, values.RescaleIntercept = slope, -1
            window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 50, 20 * slope, "LINEAR_EXACT"
            group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [values], [window]
            steps.append(group)
        return steps

    pixels = np.full((2, 1, 3), 10)
    for name, slopes in (("SharedFunctionalGroupsSequence", [2]), ("PerFrameFunctionalGroupsSequence", [2, 2])):
        values = read_values(as_dicom(pixels, **{name: groups(slopes)}), 2)
        assert values.pixels.ravel().tolist() == [19] * 6
        assert values.window == (30, 70)
    with pytest.raises(ValueError, match="frames of different slopes"):
        read_values(as_dicom(pixels, PerFrameFunctionalGroupsSequence=groups([1, 2])), 2)


def test_signed_dicom_keeps_negative_values():
    pixels = np.array([[-1024, 0, 1000]], np.int16)
    values = read_values(as_dicom(pixels, PixelRepresentation=1), 1)
    assert values.pixels.ravel().tolist() == [-1024, 0, 1000]
    assert values.full_range == (-2048, 2047)


@pytest.mark.parametrize(("package", "content"), [("pydicom", as_dicom(WORDS)), ("tifffile", as_tiff(FIVE, **BANDS))])
def test_a_missing_package_is_named(monkeypatch, package, content):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs the package {package}: pip install {package}"):
        read_values(content, 5)
