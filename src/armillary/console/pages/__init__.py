"""One module per page: it reads places and returns the values for the template of the same name."""
