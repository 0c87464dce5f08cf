"""One loop for every task: optimiser, schedule, checkpoints, ranks."""
