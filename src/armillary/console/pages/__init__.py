"""One module for each page: it reads places and returns what the template of that name shows."""
