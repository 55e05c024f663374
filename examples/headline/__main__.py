"""Run the headline: `make headline`, or `python -m examples.headline`."""

from examples.headline.command import main

if __name__ == "__main__":
    raise SystemExit(main())
