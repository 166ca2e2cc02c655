"""One run over many ranks: the process group, ranks on this machine, and ranks started by a launcher."""
