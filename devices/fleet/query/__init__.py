"""The query layer: store -> typed results, apart from how they are shown.

The command line, exports, the Python API and pages all ask here: `status.fleet_status`, `devices.device_rows`,
`runs.runs`, `logs.logs`, `alerts.alerts`, `series.samples`, `series.series`, `compare.compare`. Each takes an open
store and the present, and answers with a document of `records`.
"""
