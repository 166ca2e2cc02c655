"""One run over many ranks: its process group, ranks started on this machine, and a launcher's own."""
