"""Run the quickstart: `python -m examples.parcel_help`."""

from examples.parcel_help.quickstart import main

if __name__ == "__main__":
    raise SystemExit(main())
