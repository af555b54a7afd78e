"""Parallel text that a caller sends: checked and cleaned while it arrives, stored whole or not at all.

An upload is worked on in a process of its own, which imports neither torch nor the web framework.
"""
