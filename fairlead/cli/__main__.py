"""`python -m fairlead.cli` runs `fairlead`."""

from fairlead.cli.main import app

app()
