"""Finds out what a training step allocates by running it on tensors without data; the only maker of the memory table.

Needs torch and diffusers, so the torch-free forecast (engine/memory/) never imports it: it reads the table instead, and
starts `python -m engine.memory_trace` in a process of its own for a UNet that the table does not know.
"""
