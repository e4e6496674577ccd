"""Training: state, one step, the loop, checkpoints, schedules, precision."""
