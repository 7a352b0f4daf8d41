"""Base of objects that are closed: a `with` block closes them, and so does their collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class WithBlock:
    """Base of objects that a `with` block closes."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Closing(WithBlock):
    """Base of objects whose `_handle` is open until `close`, and None from then on."""

    _handle: Any

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:  # also when the constructor failed
            self.close()
