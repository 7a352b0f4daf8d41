"""`make gpu`: what one GPU can settle in minutes, in stages. docs/gpu.md says what each is and what it asks for.

`commands` reads the options, `script` runs the stages of `stages` one after the other, each in a process (`process`,
`stage`) that tells what it finds through a file (`findings`), and `table` makes of that a report and a record. A
stage is a module with `run(job)`. It measures `device`, which in a dry run stands in for a GPU.
"""
