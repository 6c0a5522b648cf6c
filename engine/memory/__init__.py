"""How much graphics memory a run takes, whether that fits a card, and the cheapest way to make it fit. Torch-free."""

from engine.memory.forecast import PARTS, Forecast, forecast
from engine.memory.request import FAMILY_NAMES, FamilyName, Request, request_for
from engine.memory.verdict import Verdict, verdict

__all__ = [
    "FAMILY_NAMES",
    "PARTS",
    "FamilyName",
    "Forecast",
    "Request",
    "Verdict",
    "forecast",
    "request_for",
    "verdict",
]
