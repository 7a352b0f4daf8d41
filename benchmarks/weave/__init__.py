"""Weaving: the time that it hides (`blocked`), the whole engine woven and not (`end_to_end`), and where it splits."""
