"""Errors of emucxl.

EmucxlError
├── ArgumentError           an argument makes no sense (also a ValueError)
│   └── ArgumentTypeError   an argument is of the wrong type (also a TypeError)
├── UnavailableError        this system, or this build, has no such thing
├── MemoryAccessError
│   ├── BadPointerError     not a live allocation: never was, or freed
│   ├── OutOfBoundsError    the range leaves the allocation or region (also an IndexError)
│   ├── PoisonedError       the range holds memory that was reported bad
│   └── AccessDeniedError   the system, or the mode of access, forbids it (also a PermissionError)
├── CapacityError           (also a MemoryError)
│   ├── TierFullError       the tier's capacity is used up
│   ├── PoolFullError       the pool has too few free extents, or no free slot
│   ├── QuotaError          the host would hold more than it may
│   └── SystemMemoryError   the system cannot give that much
├── InUseError              a view, a copy in flight, another host or process uses it (also a BufferError)
├── ClosedError             the object was freed or closed (also a ValueError)
├── WaitTimeout             a bounded wait ended (also a TimeoutError)
├── CancelledError          it was cancelled before it was done
├── FencedError             this host's lease ran out; what it held is no longer its own
├── NameTakenError          the name is taken
├── NotFoundError           there is nothing of that name (also a LookupError)
├── FormatError
│   ├── CorruptError        a structure contradicts itself
│   └── ForeignError        not made by this library, or by another version of it
├── TooFastError            the model asks for more than this machine can do
├── SystemCallError         a system call failed in a way that no other class tells
└── SegmentError            a shared segment could not be made, attached or used
"""


class EmucxlError(Exception):
    """Base of every error that emucxl raises on purpose."""


class ArgumentError(EmucxlError, ValueError):
    """An argument makes no sense."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is of the wrong type."""


class UnavailableError(EmucxlError):
    """This system, or this build, has no such thing."""


class MemoryAccessError(EmucxlError):
    """Base of the errors of touching memory that may not be touched."""


class BadPointerError(MemoryAccessError):
    """Not a live allocation of this context: it never was one, or it was freed."""


class OutOfBoundsError(MemoryAccessError, IndexError):
    """The range leaves the allocation or region."""


class PoisonedError(MemoryAccessError):
    """The range holds memory that was reported bad."""


class AccessDeniedError(MemoryAccessError, PermissionError):
    """The system, or the mode of access, forbids it."""


class CapacityError(EmucxlError, MemoryError):
    """Base of the errors of asking for more than there is."""


class TierFullError(CapacityError):
    """The tier's capacity is used up."""


class PoolFullError(CapacityError):
    """The pool has too few free extents, or no free slot."""


class QuotaError(CapacityError):
    """The host would hold more of the pool than it may."""


class SystemMemoryError(CapacityError):
    """The system cannot give that much memory."""


class InUseError(EmucxlError, BufferError):
    """A view, a copy in flight, another host or another process uses it."""


class ClosedError(EmucxlError, ValueError):
    """The object was freed or closed."""


class WaitTimeout(EmucxlError, TimeoutError):
    """A bounded wait ended before what it waited for."""


class CancelledError(EmucxlError):
    """It was cancelled before it was done."""


class FencedError(EmucxlError):
    """This host's lease ran out; what it held is no longer its own."""


class NameTakenError(EmucxlError):
    """The name is taken."""


class NotFoundError(EmucxlError, LookupError):
    """There is nothing of that name."""


class FormatError(EmucxlError):
    """Base of the errors of bytes that are not what they should be."""


class CorruptError(FormatError):
    """A structure contradicts itself."""


class ForeignError(FormatError):
    """Not made by this library, or by another version of it."""


class TooFastError(EmucxlError):
    """The model asks for more than this machine can do."""


class SystemCallError(EmucxlError):
    """A system call failed in a way that no other class tells."""


class SegmentError(EmucxlError):
    """A shared segment could not be made, attached or used."""
