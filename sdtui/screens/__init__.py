"""Screens and wizard pages; each module is imported when its screen is first shown."""
