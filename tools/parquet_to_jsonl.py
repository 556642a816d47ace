"""Rewrites parquet files as JSON lines, the form that `conclave eval` reads.

    parquet_to_jsonl.py FILE.parquet ...      writes FILE.jsonl beside each; needs pyarrow
"""
import json
import pathlib
import sys

import pyarrow.parquet

for name in sys.argv[1:]:
    path = pathlib.Path(name)
    with open(path.with_suffix(".jsonl"), "w", encoding="utf-8") as out:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
