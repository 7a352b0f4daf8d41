"""ranks: the processes and threads of a job, from their start to a group that executes batches, one Runner each."""
