"""Prefill, decode, a job of many prompts and a cold start: Interlace beside its peers, interleaved in one run.

`systems` says who is run, `participant` holds each one's process and samples, `drive` takes the samples,
`report` and `record` turn them into tables and JSON. The workloads are those of `interlace bench`.
"""
