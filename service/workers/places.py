"""The sockets that workers connect to: those of their parent, and one of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from service.wire.replicas import Address


@dataclass(frozen=True, slots=True)
class Places:
    """The servers, in a directory that only its own user may enter.

    Attributes:
        secret: the word that workers must know.
    """

    directory: str
    secret: str

    @property
    def engines(self) -> Address:
        """The server of the engines."""
        return self.of("engines")

    @property
    def limits(self) -> Address:
        """The server of the limits."""
        return self.of("limits")

    @property
    def reloads(self) -> Address:
        """The server of reloads."""
        return self.of("reloads")

    @property
    def holder(self) -> Address:
        """The server of the worker that holds load tests, pairs and tables."""
        return self.of("holder")

    @property
    def metrics(self) -> Address:
        """The server that adds up metrics."""
        return self.of("metrics")

    def of(self, name: str) -> Address:
        """The server of a part; of a scorer, ``reward`` or ``gold``."""
        return Address(f"ipc://{self.directory}/{name}", self.secret)
