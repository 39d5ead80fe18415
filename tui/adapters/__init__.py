"""Screen F3: adapters on this machine, swapped in, trained, compared, brought in and out."""
