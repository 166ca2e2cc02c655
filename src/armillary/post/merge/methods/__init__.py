"""One file per method of merging."""
