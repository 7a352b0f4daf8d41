"""Errors of emucxl.

EmucxlError
└── SegmentError        a shared segment could not be made, attached or used
"""


class EmucxlError(Exception):
    """Base of every error that emucxl raises on purpose."""


class SegmentError(EmucxlError):
    """A shared segment could not be made, attached or used."""
