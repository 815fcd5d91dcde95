"""Stored telemetry as files for other programs: Parquet, CSV, InfluxDB line protocol."""
