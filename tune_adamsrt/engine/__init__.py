"""Many trials per GPU in one process: `--trials-per-gpu`."""
