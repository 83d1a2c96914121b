"""Images of a benchmark that a judge is shown: read again from the file that holds them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_samples import png

from futurel1.data.benchmarks import read_images
from futurel1.data.samples import StoredImages
from futurel1.errors import BatchError, MissingFileError, RecordError


def test_references_lead_to_the_embedded_images(tmp_path):
    table = pa.Table.from_pylist([{"pictures": [png(1), png(2)]}, {"pictures": [png(3)]}])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)

    def stored(record: int, column: str = "pictures") -> StoredImages:
        return StoredImages(str(tmp_path / "a.parquet"), record, column)

    assert read_images(stored(1)) == [png(1), png(2)]
    assert read_images(stored(2)) == [png(3)]
    assert read_images(stored(2, "none")) == []
    with pytest.raises(RecordError, match=r"a\.parquet: record 3 of 2; the file has changed"):
        read_images(stored(3))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"a\.parquet: the file has gone"):
        read_images(stored(1))


def test_prompts_without_stored_images_say_where_those_come_from():
    with pytest.raises(BatchError, match="needs prompts of TwiFFBenchDataModule"):
        read_images(None)
