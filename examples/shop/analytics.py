"""Analytics, a worker of the shop: what was sold, for how much. Python with its standard library alone.

It is told of each order by an HTTP request (a CloudEvent) and answers 204 once the order is on disk, in a file that only grows
below $DATA_DIR: one JSON text per line. An order that comes again changes nothing. What comes within a few milliseconds, or while
the disk is written, is written with one sync.

    POST /events                           an event: ce-type, ce-subject (the order), data as the body
    GET  /api/ledger/effects/analytics     {"order_id", "count", "type"} per line, ?after=ORDER
    GET  /api/ledger/effects/analytics/revenue
    GET  /healthz

The whole of it is one thread, and another one that waits for the disk. HTTP is no more than what such requests need: the general
server of the library spends twice as long on each.
"""

import asyncio
import bisect
import json
import os
import signal
import sys
from urllib.parse import parse_qs, urlsplit

PAGE_LINES = 5000
HEAD_LIMIT_BYTES = 64 * 1024
BODY_LIMIT_BYTES = 1024 * 1024
GATHER_SECONDS = 0.01
LEAVE_WITHIN_SECONDS = 10
PLACED = "order.placed"
EFFECTS = "/api/ledger/effects/analytics"
REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    411: "Length Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


class Ledger:
    """Orders and what they brought, in memory and in a file."""

    def __init__(self, folder):
        self.orders = []  # sorted
        self.known = set()
        self.revenue_cents = 0
        self.lines = []  # not yet on their way to the disk
        self.waiting = []  # whom to call when they are there
        self.writing = None  # the task
        self.file = open(os.path.join(folder, "orders.ndjson"), "a+b")
        self._read()

    def _read(self):
        """What is there. A last line without its end was never promised to anybody: it is cut off."""
        self.file.seek(0)
        whole = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            self.known.add(entry["order_id"])
            self.revenue_cents += entry["total_cents"]
            whole += len(line)
        self.file.truncate(whole)
        self.file.seek(0, os.SEEK_END)
        self.orders = sorted(self.known)

    def count(self, order_id, total_cents, when_written):
        """Calls back when the order is on disk, whoever brought it there: an order that is known may still be on its way."""
        if order_id not in self.known:
            self.known.add(order_id)
            bisect.insort(self.orders, order_id)
            self.revenue_cents += total_cents
            entry = {"order_id": order_id, "total_cents": total_cents}
            self.lines.append(json.dumps(entry).encode() + b"\n")
        self.waiting.append(when_written)
        if self.writing is None:
            self.writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(GATHER_SECONDS)
        while self.waiting:
            lines, self.lines = self.lines, []
            waiting, self.waiting = self.waiting, []
            try:
                await loop.run_in_executor(None, self._sync, b"".join(lines))
            except OSError as error:
                # What a failed sync left behind is unknown: only reading the file anew tells.
                print(f"analytics: can't write: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            for when_written in waiting:
                when_written()
        self.writing = None

    def _sync(self, text):
        """Nothing to write is nothing to wait for: all before it is on disk."""
        if text:
            self.file.write(text)
            self.file.flush()
            os.fsync(self.file.fileno())

    def page(self, after):
        start = bisect.bisect_right(self.orders, after)
        return self.orders[start : start + PAGE_LINES]


class Refusal(Exception):
    def __init__(self, status, error):
        super().__init__(error)
        self.status = status


class Request:
    """A head, and how long the body is that follows."""

    def __init__(self, head):
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise Refusal(400, "no request")
        self.method, self.target, version = parts
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        wish = self.headers.get("connection", "").lower()
        self.keeps = wish != "close" and (version != "HTTP/1.0" or wish == "keep-alive")
        length = self.headers.get("content-length", "0" if self.method == "GET" else "")
        is_number = length.isascii() and length.isdigit() and len(length) < 10
        if "transfer-encoding" in self.headers or not is_number or int(length) > BODY_LIMIT_BYTES:
            raise Refusal(411, "a body of a known, modest length is needed")
        self.length = int(length)


class Connection(asyncio.Protocol):
    """One request after the other: the next one is read when the last one is answered."""

    def __init__(self, analytics):
        self.analytics = analytics
        self.received = bytearray()
        self.request = None  # whose body is awaited
        self.busy = False
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        self.analytics.connections.add(self)

    def connection_lost(self, _):
        self.analytics.connections.discard(self)

    def data_received(self, data):
        self.received += data
        if self.busy and len(self.received) > HEAD_LIMIT_BYTES + BODY_LIMIT_BYTES:
            self.transport.abort()  # sends on and on, and reads nothing
        self.proceed()

    def proceed(self):
        try:
            while not self.busy and not self.transport.is_closing():
                request = self.request = self.request or self.head()
                if request is None or len(self.received) < request.length:
                    return
                body = bytes(self.received[: request.length])
                del self.received[: request.length]
                self.busy = True
                self.handle(request, body)
        except Refusal as refusal:
            # Where the next request would begin is not known.
            self.analytics.refuse(self, refusal)
            self.transport.close()

    def head(self):
        end = self.received.find(b"\r\n\r\n")
        if end > HEAD_LIMIT_BYTES or (end < 0 and len(self.received) > HEAD_LIMIT_BYTES):
            raise Refusal(431, "the head is too long")
        if end < 0:
            return None
        head = bytes(self.received[:end])
        del self.received[: end + 4]
        return Request(head)

    def handle(self, request, body):
        try:
            self.analytics.handle(self, request, body)
        except Refusal as refusal:
            self.analytics.refuse(self, refusal)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.analytics.refuse(self, Refusal(400, f"not understood: {error!r}"))

    def answer(self, status, text="", kind=None):
        body = text.encode()
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\n"
        if kind:
            head += f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        keeps = self.request is not None and self.request.keeps and not self.analytics.leaving
        if not keeps:
            head += "connection: close\r\n"
        self.transport.write(head.encode() + b"\r\n" + body)
        self.request = None
        self.busy = False
        if not keeps:
            self.transport.close()

    def written(self):
        """An order is on disk: so is its answer due, and the next request."""
        self.answer(204)
        self.proceed()


class Analytics:
    """What is answered to what."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.connections = set()
        self.leaving = False

    def handle(self, connection, request, body):
        address = urlsplit(request.target)
        if request.method == "POST" and address.path == "/events":
            self.take(connection, request.headers, json.loads(body))
        elif request.method == "GET" and address.path == "/healthz":
            connection.answer(200, "ok\n", "text/plain")
        elif request.method == "GET" and address.path == EFFECTS:
            self.effects(connection, parse_qs(address.query).get("after", [""])[0])
        elif request.method == "GET" and address.path == EFFECTS + "/revenue":
            sums = {"orders": len(self.ledger.known), "revenue_cents": self.ledger.revenue_cents}
            connection.answer(200, json.dumps(sums) + "\n", "application/json")
        else:
            raise Refusal(404, "no such page")

    def take(self, connection, headers, data):
        if data.get("poison") is True:
            raise Refusal(500, "this message is poison")
        if headers.get("ce-type") != PLACED:
            return connection.answer(204)
        order_id = headers.get("ce-subject") or data["order_id"]
        self.ledger.count(order_id, int(data["total_cents"]), connection.written)

    def effects(self, connection, after):
        line = '{{"order_id":{},"count":1,"type":"%s"}}\n' % PLACED
        lines = [line.format(json.dumps(order)) for order in self.ledger.page(after)]
        connection.answer(200, "".join(lines), "application/x-ndjson")

    def refuse(self, connection, refusal):
        error = json.dumps({"error": str(refusal)}) + "\n"
        connection.answer(refusal.status, error, "application/json")

    async def leave(self):
        """What has begun is answered; connections that are only kept don't hold up the end."""
        self.leaving = True
        while self.ledger.writing is not None:
            await self.ledger.writing
        for connection in list(self.connections):
            connection.transport.close()


async def serve():
    analytics = Analytics(Ledger(os.environ["DATA_DIR"]))
    loop = asyncio.get_running_loop()
    terminated = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]))
    server = await loop.create_server(lambda: Connection(analytics), *address, backlog=128)
    print(f"analytics: {len(analytics.ledger.known)} orders so far", flush=True)
    await terminated.wait()
    server.close()
    await asyncio.wait_for(analytics.leave(), LEAVE_WITHIN_SECONDS)


if __name__ == "__main__":
    asyncio.run(serve())
