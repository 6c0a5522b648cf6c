"""The training engine: everything sdtui does apart from its screens; importing it loads no torch."""
