"""Keeps what it is sent at /events, and shows it to who asks."""

import http.server
import os

BOX = os.path.join(os.environ["BOX_DIR"], "all")


class Mail(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        message = self.rfile.read(int(self.headers["Content-Length"]))
        with open(BOX, "ab") as box:
            box.write(message + b"\n")
        self.answer(b"")

    def do_GET(self):
        self.answer(open(BOX, "rb").read() if os.path.exists(BOX) else b"")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Mail).serve_forever()
