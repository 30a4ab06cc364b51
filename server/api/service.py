"""The service: the RPCs of all resources, and which limit each of them has."""

from server.api.inventory import Inventory
from server.api.numbers import Numbers
from server.api.orders import Orders
from server.batching import Batcher
from server.config import Settings
from server.reading import Reads
from server.writing import Writer

READS = frozenset({"SearchNumbers", "GetBulkOrder", "GetOrder", "FindOrder", "GetHold", "ListNumbers", "GetNumber"})


class PhoneNumberService:
    """ordernumbers.v1.PhoneNumberService: one attribute per RPC, with the RPC's name."""

    def __init__(self, settings: Settings, batcher: Batcher, writer: Writer, reads: Reads) -> None:
        self._batcher = batcher
        self._writer = writer
        self._reads = reads
        resources = (
            Orders(batcher, writer, reads),
            Inventory(writer, reads, settings.held_numbers_max),
            Numbers(writer, reads, settings.rest_ms),
        )
        self.begin = {"OrderNumbers": resources[0].begin_order}
        """RPCs that can begin without a task of their own."""
        for resource in resources:
            for name in vars(type(resource)):
                if name[0].isupper():  # begin_order is no RPC
                    setattr(self, name, getattr(resource, name))

    def is_full(self, method: str) -> bool:
        """Whether a call of the method would be refused at once, because too many like it are in progress."""
        if method == "OrderNumbers":
            return self._batcher.is_full
        return self._reads.is_full if method in READS else self._writer.is_full
