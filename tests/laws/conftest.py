"""Tables for the tests of what reads files."""

import csv

import pytest


@pytest.fixture(scope="session")
def write():
    """Writes a CSV file and returns its path."""

    def of(path, columns, rows):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        return path

    return of
