"""`python -m fairlead.cli` is `fairlead`."""

from fairlead.cli.main import app

app()
