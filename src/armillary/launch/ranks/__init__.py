"""One run over many ranks: the process group, ranks started on this machine, and ranks of a launcher."""
