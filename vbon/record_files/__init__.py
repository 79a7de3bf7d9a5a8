"""Files of records as people have them: text, JSON, CSV, Parquet, datasets' forms, compressed or not.

Readers of prompts and of labelled text are built on :func:`vbon.record_files.read.read_records`.
"""
