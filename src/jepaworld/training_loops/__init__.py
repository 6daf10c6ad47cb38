"""The epoch loop, the phase around it (early stopping, checkpoints, resume) and the state decoder's training."""
