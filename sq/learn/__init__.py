"""What learned methods share: a block to train on, learned clips, Cayley steps, and the log of a training."""
