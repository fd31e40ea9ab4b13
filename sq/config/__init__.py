"""From Hydra's configs to typed settings, all mistakes of a command in one error, before anything is loaded."""
