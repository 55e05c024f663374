"""The dashboards: which panels each has, and the queries of each panel.

A metric that fairlead/metrics does not have fails when the dashboards are written. Knows nothing about
Grafana's format.
"""

from monitoring.boards.api import API
from monitoring.boards.base import Board, Panel
from monitoring.boards.feedback import FEEDBACK
from monitoring.boards.run import RUN
from monitoring.boards.services import SERVICES

__all__ = ["BOARDS", "Board", "Panel"]

BOARDS = (RUN, SERVICES, API, FEEDBACK)
"""All dashboards."""
