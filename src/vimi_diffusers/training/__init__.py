"""What the training scripts share: configuration, loss, data, loop and checkpoints."""
