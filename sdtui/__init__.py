"""The terminal program: screens over the engine; importing it loads neither Textual nor torch."""
