"""Base of objects that are closed: a `with` block closes them, and so does their collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class WithBlock:
    """Base of objects that a `with` block closes.

    Where the block ends by an exception, an error of closing is a note on it and does not take its place. What ended
    the block, Ctrl-C for one, may also be why closing fails: its traceback holds what the block had.
    """

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as error:
            if value is None:
                raise
            value.add_note(f"while it was on its way, {type(self).__name__}.close: {error}")


class Closing(WithBlock):
    """Base of objects whose `_handle` is open until `close`, and None from then on."""

    _handle: Any

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:  # also when the constructor failed
            self.close()
