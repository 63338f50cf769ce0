import gzip

import pytest

from lq.data.idx import find_idx, read_idx

CONTENT = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_reads_plain_and_gzipped(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    assert read_idx(file).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert find_idx(tmp_path, "a") == file
    assert find_idx(tmp_path, "b") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\x89PNG and more", "is not an IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "is not an IDX file of unsigned bytes"),
        (CONTENT[:-1], r"holds 5 bytes of data, but its header says shape \(2, 3\).*fetch it again"),
        (CONTENT + b"\0", "holds 7 bytes of data"),
        (CONTENT[:9], "ends within its header, after 9 of 12 bytes"),
    ],
)
def test_refuses_what_is_not_whole(tmp_path, content, message):
    file = tmp_path / "a"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(file)


PACKED = gzip.compress(CONTENT, mtime=0)


@pytest.mark.parametrize(
    "content",
    [PACKED[:-6], b"<html>not found</html>", PACKED[:-8] + b"12345678", PACKED[:10] + b"\xff" + PACKED[11:]],
    ids=["cut off", "a web page", "another checksum", "changed"],
)
def test_a_file_that_cannot_be_unpacked_is_named(tmp_path, content):
    file = tmp_path / "a.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.gz cannot be unpacked .*fetch it again"):
        read_idx(file)


def test_a_file_may_hold_no_image(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 28]))
    assert read_idx(file).shape == (0, 28)
