"""Archives of every version, written once and kept: they have to read for ever.

Each was written by `write_archive(url, make_layout(), rejected_blocks=((1, 0, 0),))` of the conftest beside it. The
bytes of a part, and with them its name, differ between versions of pyarrow, so what is compared is what they say. In
version 1 parts are named without a digest, as they were before: a reader takes whatever path the manifest gives.
"""

from pathlib import Path

import pytest

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import manifest_to_json
from vcinr_batch.archive.rows import check_row

GOLDEN = Path(__file__).parent / "golden"
FILE_FACTS = {"path", "bytes", "sha256", "crc32", "payloads", "rejected"}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_archive_of_any_version_reads_as_it_was_written(version, tmp_path, archive_at):
    written = archive_at(str(tmp_path), rejected_blocks=((1, 0, 0),))
    archive = Archive.open(str(GOLDEN / version))
    assert archive.rows() == written.rows
    assert archive.rejected() == written.rejected
    assert archive.bundle_bytes() == b"stands for a bundle"
    for row in archive.rows():
        check_row(row, archive.manifest.bundle_sha256)
    golden, fresh = manifest_to_json(archive.manifest), manifest_to_json(written.manifest)
    for part in [*golden["parts"], *fresh["parts"]]:
        for fact in FILE_FACTS & part.keys():
            del part[fact]
    assert golden == fresh
