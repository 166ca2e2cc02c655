"""``python -m armillary`` is ``armillary``, for launchers that start modules."""

from armillary.cli import main

if __name__ == "__main__":
    main()
